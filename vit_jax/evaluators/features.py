"""Features of all images of a dataset, computed once and kept in files.

A folder has `features.json`, which says what the features depend on, and files
`SPLIT-FIRST.npz` with the arrays `feature` [n, D] and `label` of consecutive
examples. FIRST is the number of the first one.

Shapes:  B batch · D width of the features · n examples in a file
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import re
import time
from typing import Any
import zipfile

import jax
import numpy as np

from vit_jax import console
from vit_jax import json_files
from vit_jax.evaluators import predictions
from vit_jax.parallel import sharding

_SECONDS = 30  # between files, so an interruption loses less than that
Arrays = dict[str, np.ndarray]


def _files(folder, split):
  """Returns [(number of the first example, path)] in ascending order."""
  names = os.listdir(folder) if os.path.isdir(folder) else []
  matches = [re.fullmatch(r'(.+)-(\d+)\.npz', name) for name in names]
  return sorted(
    (int(x[2]), os.path.join(folder, x[0]))
    for x in matches
    if x and x[1] == split
  )


def read(folder: str, split: str) -> Arrays:
  """Returns the arrays of the first examples of a split.

  There may be fewer examples than in the split, if the computation was
  interrupted or a file is damaged. Without any file, the result is {}.

  Args:
    folder: folder of the features.
    split: name of the split.
  """
  parts, count = [], 0
  for first, path in _files(folder, split):
    if first != count:
      break  # a file is missing
    try:
      with np.load(path) as file:
        arrays = {name: file[name] for name in ('feature', 'label')}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      console.log_info(f'{path} is damaged: its features are computed again')
      break
    parts.append(arrays)
    count += len(arrays['feature'])
  return _joined(parts)


def _joined(parts):
  if not parts:
    return {}
  return {name: np.concatenate([x[name] for x in parts]) for name in parts[0]}


def _write(folder, split, first, arrays):
  """Writes a file, which gets its name when it is complete."""
  path = os.path.join(folder, f'{split}-{first:09}.npz')
  with open(f'{path}.partial', 'wb') as file:
    np.savez(file, **arrays)
  os.replace(f'{path}.partial', path)


def use_folder(folder: str, key: Mapping[str, Any], splits: list[str]) -> None:
  """Prepares a folder: removes features that depend on other things.

  Args:
    folder: folder of the features; it is created.
    key: what the features depend on, values for JSON.
    splits: names of all splits.
  """
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, 'features.json')
  stored = _stored_key(path)
  if stored == key:
    return
  changed = [k for k in key if stored.get(k) != key[k]]
  if stored:
    console.log_info(
      f'the features in {folder} are computed again, because these have '
      f'changed: {", ".join(changed)}'
    )
  for split in splits:
    for _, old in _files(folder, split):
      os.remove(old)
  json_files.write_json(path, key)


def _stored_key(path):
  try:
    return json_files.read_json(path) or {}
  except ValueError:  # damaged
    return {'features.json': 'damaged'}


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


def matches(folder: str, key: Mapping[str, Any]) -> bool:
  """Returns whether the features in a folder depend on the values of `key`."""
  stored = _stored_key(os.path.join(folder, 'features.json'))
  return all(stored.get(name) == value for name, value in key.items())


def compute(
  folder: str,
  split: str,
  data: Any,
  encode: Callable,
  params: Any,
  mesh: jax.sharding.Mesh,
) -> Arrays:
  """Returns the features of all images of a split, and their labels.

  Images are prepared as in evaluation. Only the features that are not yet in
  the folder are computed.

  Args:
    folder: folder from `use_folder`.
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
  done = read(folder, split)
  count = first = len(done['feature']) if done else 0
  total = data.num_examples[split]
  parts, written = [], time.monotonic()

  def flush():
    nonlocal first
    if count > first:
      _write(folder, split, first, _tail(parts, count - first))
      first = count

  if count < total:
    batches = console.counting(
      data.evaluate(split), data.num_batches(split), f'{split} features'
    )
    try:
      for arrays in _encoded(batches, count, encode, params, mesh):
        _check_finite(arrays['feature'], split)
        parts.append(arrays)
        count += len(arrays['feature'])
        if time.monotonic() - written > _SECONDS:
          flush()
          written = time.monotonic()
    finally:  # also after Ctrl-C
      flush()
  if count != total:
    raise ValueError(
      f'the {split} split has {count} images, but the metadata of its dataset '
      f'lists {total}. Prepare the dataset again'
    )
  return _joined([done, *parts] if done else parts)


def _tail(parts, count):
  """Returns the last `count` rows of the parts."""
  return {name: x[-count:] for name, x in _joined(parts).items()}


def _encoded(batches, skipped, encode, params, mesh) -> Iterator[Arrays]:
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


def _check_finite(features, split):
  bad = int((~np.isfinite(features)).any(axis=1).sum())
  if bad:
    raise ValueError(
      f'{bad} of {len(features)} images of the {split} split have features '
      'that are not finite (inf or nan). The weights are damaged, or do not '
      'match the model. Use other weights in config.pretrained'
    )
