"""Batches that the compiled step makes of examples on the devices.

Each device gets all examples once, with pixels uint8. For a step, the host
sends a feed: the numbers of the examples of the batch, and their positions in
the training stream. The step reads the examples, crops them and flips them. The
order of the examples is that of `input_pipeline`. The random numbers of an
example depend only on the seed of the run and on its position. So they do not
depend on the devices, the processes and the micro-batches.

Shapes:  B batch · N examples
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np

from vit_jax import console
from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.in_memory import collection
from vit_jax.data.in_memory import crops
from vit_jax.data.in_memory import sampling
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding


def put(
  by_split: Mapping[str, examples.Source],
  settings: DataSettings,
  how: Any,
  mesh: jax.sharding.Mesh,
) -> dict[str, examples.Source]:
  """Returns sources for `PIPELINE`, with all examples on each device.

  Args:
    by_split: {split: source}, each with all examples of its split.
    settings: `DataSettings`.
    how: `decoding.Decoding`: orientation, and background of alpha.
    mesh: device mesh.

  Raises:
    ValueError: the examples cannot be put on the devices.
  """
  placed, room = {}, settings.device_data_bytes
  for split, source in by_split.items():
    arrays = collection.collect(source, split, how, room)
    room -= arrays['image'].nbytes
    _check_resizing(arrays['image'].shape[1:3], settings)
    on_devices = {
      name: sharding.put(x, sharding.replicated(mesh))
      for name, x in arrays.items()
    }
    placed[split] = dataclasses.replace(
      source,
      read=_reader(on_devices),
      stream=None,
      share=None,
      arrays=on_devices,
      labels=arrays.get('label'),
      fingerprint=examples.fingerprint(arrays),
    )
  size = settings.device_data_bytes - room
  console.log_info(
    f'config.data_on=device: {console.file_size(size)} of images on each device'
  )
  return placed


def _reader(arrays):
  """Returns the function `read` of a `Source`, for several indices [B]."""
  return lambda index: {
    name: np.asarray(x.addressable_data(0)[index]) for name, x in arrays.items()
  }


def _check_resizing(size, settings):
  """Raises ValueError unless the device can crop and resize like that."""
  cropping, default = settings.cropping, data_settings.DEFAULT_CROPPING
  for name, value, expected in (
    ('crop', cropping.kind, default.kind),
    ('interpolation', cropping.interpolation, default.interpolation),
    ('resize_on', cropping.resize_on, default.resize_on),
  ):
    if value != expected:
      raise ValueError(
        f'config.pp.train_{name}={value!r} cannot be used with config.data_on='
        f"'device'. Use {expected!r}, or config.data_on='host'"
      )
  resizing = settings.resizing
  if resizing == data_settings.DEFAULT_RESIZING or (
    size == settings.image_size and resizing.crop_fraction == 1
  ):
    return
  raise ValueError(
    "config.data_on='device' can resize images of {} x {} to {} x {} ".format(
      *size, *settings.image_size
    )
    + f'only by the defaults of config.pp, not by {resizing}. Store images of '
    "the model's size, or use config.data_on='host'"
  )


def _train(
  source, settings, share, prepare, first_step
) -> Iterator[dict[str, Any]]:
  """Yields feeds: rows of NumPy, and the arrays on the devices."""
  del prepare
  rows = share.rows(settings.batch)
  order = sampling.order_of(source, settings)
  for step in itertools.count(first_step):
    positions = step * settings.batch + rows
    index = order(positions)
    yield {
      'index': index.astype(np.int32),
      'position': positions.astype(np.uint32),  # modulo 2³²
      'stored': source.arrays,
    }


def _evaluate(source, settings, share, prepare) -> Iterator[dict[str, Any]]:
  """Yields batches on the devices. Padding repeats the last example."""
  del prepare
  rows, last = share.rows(settings.batch_eval), source.num_examples - 1
  mesh = source.arrays['image'].sharding.mesh
  make_batch = _make_eval_fn(settings.image_size, mesh)
  for start in range(0, source.num_examples, settings.batch_eval):
    index = start + rows
    own = {
      'index': np.minimum(index, last).astype(np.int32),
      'mask': (index <= last).astype(np.float32),
    }
    yield make_batch(source.arrays, **sharding.put_batch(own, mesh))


@functools.cache
def _make_eval_fn(size, mesh):
  """Returns the compiled `(stored, index [B], mask [B]) -> batch`."""

  def make_batch(stored, index, mask):
    rows = {name: x[index] for name, x in stored.items()}
    return {**rows, 'image': _resized(rows['image'], size), 'mask': mask}

  return jax.jit(make_batch, out_shardings=sharding.by_rows(mesh))


def _resized(images, size):
  """Returns images of a size, float32 [B, *size, 3] in [−1, 1]."""
  if images.shape[1:3] != size:
    images = crops.resize(images, size)
  return crops.to_unit_range(images)


def make_batch(
  feed: Mapping[str, Any], settings: DataSettings
) -> dict[str, jax.Array]:
  """Returns the training batch of a feed, inside the compiled step.

  Args:
    feed: {'index': int32 [B], 'position': uint32 [B], 'stored': arrays [N, …]}.
    settings: `DataSettings`.

  Returns:
    {'image': float32 [B, H, W, 3] in [−1, 1], 'label': [B, …], …}.
  """
  rows = {name: x[feed['index']] for name, x in feed['stored'].items()}
  images, size = rows['image'], settings.image_size
  keys = jax.vmap(jax.random.split)(
    numerics.row_keys(settings.seed, feed['position'])
  )
  min_area = settings.cropping.min_area
  if min_area < 1:
    boxes = crops.random_boxes(keys[:, 0], images.shape[1:3], min_area)
    images = crops.resize_boxes(images, boxes, size)
  if settings.cropping.flip:
    images = crops.flip(images, keys[:, 1])
  return {**rows, 'image': _resized(images, size)}


def with_own_rows(
  feed: Mapping[str, Any], source: examples.Source
) -> dict[str, Any]:
  """Returns a feed of this process that needs no arrays of other processes."""
  index = np.arange(len(feed['index']))
  return {**feed, 'index': index, 'stored': source.read(feed['index'])}


def _spec(source, settings, share, prepare):
  del share, prepare
  others = {k: (x.shape[1:], x.dtype.type) for k, x in source.arrays.items()}
  return {**others, 'image': ((*settings.image_size, 3), np.float32)}


PIPELINE = examples.Pipeline(_train, _evaluate, _spec, make_batch=make_batch)
