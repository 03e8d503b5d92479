"""Features of all images of a dataset, computed once and kept in files.

Shapes:  B batch · D width of the features
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
from typing import Any

import jax
import numpy as np

from vit_jax import console
from vit_jax.evaluators import predictions
from vit_jax.inference import feature_files
from vit_jax.parallel import sharding


def describe_files(folder: str, workdir: str) -> list[int]:
  """Returns [number, bytes, newest change in ns] of the files of a dataset.

  So a file that was replaced changes the description. Without a folder, the
  result is [].

  Args:
    folder: folder of images, or another dataset.
    workdir: the run folder, whose files do not count.
  """
  folder, workdir = (
    os.path.realpath(os.path.expanduser(x)) for x in (folder, workdir)
  )
  found = []
  for parent, folders, names in os.walk(folder):
    folders[:] = [x for x in folders if os.path.join(parent, x) != workdir]
    for name in names:
      with contextlib.suppress(OSError):  # a link to nothing
        found.append(os.stat(os.path.join(parent, name)))
  if not found:
    return []
  return [
    len(found),
    sum(x.st_size for x in found),
    max(x.st_mtime_ns for x in found),
  ]


def compute(
  folder: str,
  split: str,
  data: Any,
  encode: Callable,
  params: Any,
  mesh: jax.sharding.Mesh,
) -> feature_files.Arrays:
  """Returns the features of all images of a split, and their labels.

  Images are prepared as in evaluation. Only the features that are not yet in
  the folder are computed.

  Args:
    folder: folder from `feature_files.use_folder`.
    split: name of the split.
    data: an `input_pipeline.Datasets` of a single process.
    encode: compiled (params, batch of arrays) -> features [B, D]; see
      `make_encode_fn`.
    params: parameters on the mesh.
    mesh: device mesh over which batches are sharded.

  Returns:
    {'feature': [N, D] float32, 'label': [N, …]} in the stored order.

  Raises:
    ValueError: features are not finite, or the number of images is wrong.
  """
  done = feature_files.read(folder, split)
  count = len(done['feature']) if done else 0
  total, parts = data.num_examples[split], [done] if done else []
  if count < total:
    batches = console.counting(
      data.evaluate(split), data.num_batches(split), f'{split} features'
    )
    with feature_files.Writer(folder, split, count) as writer:
      for arrays in _encoded(batches, count, encode, params, mesh):
        feature_files.check_finite(arrays['feature'], f'the {split} split')
        parts.append(arrays)
        writer.add(arrays)
        count += len(arrays['feature'])
  if count != total:
    raise ValueError(
      f'the {split} split has {count} images, but the metadata of its dataset '
      f'lists {total}. Prepare the dataset again'
    )
  return feature_files.joined(parts)


def _encoded(
  batches, skipped, encode, params, mesh
) -> Iterator[feature_files.Arrays]:
  """Yields arrays of the real rows of each batch, after `skipped` rows.

  While the devices compute a batch, the next one is read.
  """

  def finish(features, batch, rows):
    features = jax.device_get(features)[rows]
    return {'feature': features, 'label': batch['label'][rows]}

  pending = None
  for batch in batches:
    rows = np.flatnonzero(batch['mask'] > 0)
    rows, skipped = rows[skipped:], max(0, skipped - len(rows))
    if not len(rows):
      continue
    images = sharding.put_batch(
      {name: batch[name] for name in ('image', 'mask')}, mesh
    )
    started = encode(params, images), batch, rows
    if pending:
      yield finish(*pending)
    pending = started
  if pending:
    yield finish(*pending)


def make_encode_fn(encode: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """Returns the compiled `(params, batch) -> features` [B, D].

  Args:
    encode: (params, images [B, H, W, C]) -> features [B, D].
    mesh: device mesh over which the batch is sharded.
  """
  gather_fn = predictions.make_gather_fn(
    lambda params, batch, _: encode(params, batch['image']), mesh
  )
  return lambda params, batch: gather_fn(params, batch, None)[0]
