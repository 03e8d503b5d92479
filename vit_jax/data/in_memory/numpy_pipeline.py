"""Batches of arrays with NumPy only.

`PIPELINE` is for given images where TensorFlow is not installed. The order and
the values are those of `input_pipeline`, to the bit. The images must have the
model's size, without random changes.

`FULL_BATCH` is for features: each training batch has all examples.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data.image_files import decoding
from vit_jax.data.in_memory import sampling

_WITHOUT = 'TensorFlow, which is not installed'


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Takes the place of `preprocess.make_prepare`, for several examples."""

  image_size: tuple[int, int]
  background: tuple[int, int, int] | None

  def __call__(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns examples [B, …] with `image` float32 [B, H, W, 3] in [−1, 1]."""
    images = rows['image']
    if images.shape[1:3] != self.image_size:
      raise ValueError(
        'the images have {} x {} pixels, and the model {} x {}'.format(
          *images.shape[1:3], *self.image_size
        )
        + f': resizing needs {_WITHOUT}. Set config.pp.crop and '
        'config.pp.crop_width, or resize the images'
      )
    images = decoding.to_rgb(images, self.background).astype(np.float32)
    half = np.float32(127.5)
    return {**rows, 'image': (images - half) / half}


def make_prepare(
  size: tuple[int, int],
  cropping: data_settings.Cropping,
  how: decoding.Decoding = decoding.OWN_FILES,
  resizing: data_settings.Resizing = data_settings.DEFAULT_RESIZING,
) -> Prepare:
  """Returns a `Prepare`, or raises ValueError if the config needs more."""
  if resizing.crop_fraction < 1:
    raise ValueError(
      f'config.pp.crop_fraction={resizing.crop_fraction}: crops need '
      f'{_WITHOUT}. Set config.pp.crop_fraction=1.0'
    )
  if cropping.kind != 'area':
    raise ValueError(
      f'config.pp.train_crop={cropping.kind!r}: random crops need {_WITHOUT}. '
      "Set config.pp.train_crop='area'"
    )
  if cropping.min_area < 1 or cropping.flip:
    raise ValueError(
      f'config.pp.min_area={cropping.min_area} and config.pp.flip='
      f'{cropping.flip}: random crops and flips need {_WITHOUT}. Set '
      'config.pp.min_area=1 and config.pp.flip=False'
    )
  return Prepare(size, how.background)


def keep(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns examples as they are; the `prepare` of features."""
  return dict(rows)


def read_from(
  arrays: Mapping[str, np.ndarray], value_range: tuple[float, float] | None
) -> Callable:
  """Returns the function `read` of a `Source`, for several indices [B]."""

  def read(index):
    rows = {name: x[index] for name, x in arrays.items()}
    if value_range:
      low, high = value_range
      pixels = rows['image'].astype(np.float32) - np.float32(low)
      rows['image'] = pixels * np.float32(255 / (high - low))
    return rows

  return read


def _prepared(source, prepare, index):
  if prepare is not keep and not isinstance(prepare, Prepare):
    raise ValueError(
      f'the task prepares examples itself (`prepare`), which needs {_WITHOUT}'
    )
  return prepare(source.read(index))


def _train(
  source, settings, share, prepare, first_step
) -> Iterator[dict[str, Any]]:
  rows = share.rows(settings.batch)
  order = sampling.order_of(source, settings)
  for step in itertools.count(first_step):
    positions = step * settings.batch + rows
    index = order(positions)
    yield _prepared(source, prepare, index)


def _evaluate(source, settings, share, prepare) -> Iterator[dict[str, Any]]:
  rows = share.rows(settings.batch_eval)
  for number in range(math.ceil(source.num_examples / settings.batch_eval)):
    index = number * settings.batch_eval + rows
    index = index[index < source.num_examples]
    batch = _prepared(source, prepare, index)
    batch['mask'] = np.ones(len(index), np.float32)
    missing = len(rows) - len(index)
    yield {
      name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
      for name, x in batch.items()
    }


def _spec(source, settings, share, prepare):
  del settings, share
  batch = _prepared(source, prepare, np.arange(1))
  return {name: (x.shape[1:], x.dtype.type) for name, x in batch.items()}


PIPELINE = examples.Pipeline(
  _train, _evaluate, _spec, make_prepare=make_prepare
)


# --- all examples in each training batch -------------------------------------


def in_full_batches(
  data: Any, splits: Mapping[str, Mapping[str, np.ndarray]], num_parts: int
) -> Any:
  """Returns `data` with other arrays, and all examples in a training batch.

  Training batches have a `mask`, like those of an evaluation.

  Args:
    data: an `input_pipeline.Datasets` of a single process.
    splits: {split: {name: array}}, with the examples of `data` in their order.
    num_parts: the size of a training batch is a multiple of this number.
  """
  parts = math.ceil(data.num_train / num_parts)
  return dataclasses.replace(
    data,
    sources={
      split: dataclasses.replace(
        source, read=read_from(splits[split], None), stream=None, share=None
      )
      for split, source in data.sources.items()
    },
    settings=dataclasses.replace(data.settings, batch=parts * num_parts),
    prepare=keep,
    pipeline=FULL_BATCH,
  )


def _train_full(source, settings, share, prepare, first_step):
  del first_step  # all batches are equal
  settings = dataclasses.replace(settings, batch_eval=settings.batch)
  (batch,) = _evaluate(source, settings, share, prepare)
  return itertools.repeat(batch)


def _spec_full(*arguments):
  return {**_spec(*arguments), 'mask': ((), np.float32)}


FULL_BATCH = examples.Pipeline(_train_full, _evaluate, _spec_full)
