"""Features of consecutive examples in files, so that a computation can resume.

A folder has `features.json`, which says what the features depend on, and files
`SPLIT-FIRST.npz` with the arrays of consecutive examples, such as `feature`
[n, D]. FIRST is the number of the first one.

Shapes:  D width of the features · n examples in a file
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import os
import re
import time
from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.files import json_files
from vit_jax.files import npz_files

_SECONDS = 30  # between files, so an interruption loses less than that
NAMES = ('feature', 'label')
Arrays = dict[str, np.ndarray]


def check_finite(features: np.ndarray, where: str) -> None:
  """Raises ValueError if features [n, …] of images are not finite."""
  bad = sum(not np.isfinite(x).all() for x in features)
  if bad:
    raise ValueError(
      f'{bad} of {len(features)} images of {where} have features that are not '
      'finite (inf or nan). The weights are damaged, or do not match the '
      'model. Use other weights'
    )


def _files(folder, split):
  """Returns [(number of the first example, path)] in ascending order."""
  names = os.listdir(folder) if os.path.isdir(folder) else []
  matches = [re.fullmatch(r'(.+)-(\d+)\.npz', name) for name in names]
  return sorted(
    (int(x[2]), os.path.join(folder, x[0]))
    for x in matches
    if x and x[1] == split
  )


def parts(
  folder: str, split: str, names: Sequence[str] = NAMES
) -> Iterator[Arrays]:
  """Yields the arrays of one file after the other, from the first example on.

  It ends where a file is missing or damaged.

  Args:
    folder: folder of the features.
    split: name of the split.
    names: names of the arrays to read.
  """
  count = 0
  for first, path in _files(folder, split):
    if first != count:
      return  # a file is missing
    try:
      arrays = npz_files.read(path, names)
    except (OSError, ValueError):
      console.log_info(f'{path} is damaged: its features are computed again')
      return
    yield arrays
    count += len(arrays[names[0]])


def read(folder: str, split: str) -> Arrays:
  """Returns the arrays `NAMES` of the first examples of a split.

  There may be fewer examples than in the split, if the computation was
  interrupted or a file is damaged. Without any file, the result is {}.

  Args:
    folder: folder of the features.
    split: name of the split.
  """
  return joined(list(parts(folder, split)))


def joined(found: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
  """Returns the arrays of all parts as one; {} without parts."""
  if not found:
    return {}
  return {name: np.concatenate([x[name] for x in found]) for name in found[0]}


class Writer:
  """Writes arrays of consecutive examples to files, every 30 s.

  It is a context manager. When it ends, also after Ctrl-C, it writes the rest.
  """

  def __init__(self, folder: str, split: str, first: int):
    """Starts to write the examples of a split, from number `first` on."""
    self._folder, self._split, self._first = folder, split, first
    self._pending, self._since = [], time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._flush()

  def add(self, arrays: Arrays) -> None:
    """Adds the arrays [n, …] of the next examples."""
    self._pending.append(arrays)
    if time.monotonic() - self._since > _SECONDS:
      self._flush()

  def _flush(self):
    """Writes a file, which gets its name when it is complete."""
    if self._pending:
      arrays = joined(self._pending)
      path = os.path.join(self._folder, f'{self._split}-{self._first:09}.npz')
      with open(f'{path}.partial', 'wb') as file:
        np.savez(file, **arrays)
      os.replace(f'{path}.partial', path)
      self._first += len(next(iter(arrays.values())))
    self._pending, self._since = [], time.monotonic()


def use_folder(
  folder: str, key: Mapping[str, Any], splits: Sequence[str]
) -> None:
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
    return json_files.read_json(path, dict) or {}
  except ValueError:  # damaged
    return {'features.json': 'damaged'}


def matches(folder: str, key: Mapping[str, Any]) -> bool:
  """Returns whether the features in a folder depend on the values of `key`."""
  stored = _stored_key(os.path.join(folder, 'features.json'))
  return all(stored.get(name) == value for name, value in key.items())
