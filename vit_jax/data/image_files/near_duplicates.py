"""Finds image files that show almost the same picture."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools

import numpy as np
from PIL import Image

from vit_jax import console

_BITS = 3  # largest number of different bits of near duplicates


def find(paths: Sequence[str]) -> list[list[str]]:
  """Returns groups of files with almost the same picture.

  The picture is reduced to 9 x 8 gray pixels. A bit says whether a pixel is
  brighter than its left neighbor (the "difference hash"). Pictures with at
  most 3 different bits of 64 are near duplicates. Pictures of one color have
  no such bits and are not compared.
  """
  hashes = {}
  for path in console.counting(paths, len(paths), 'comparing pictures'):
    value = _difference_hash(path)
    if value:
      hashes[path] = value
  leader = {path: path for path in hashes}

  def find_leader(path):
    while leader[path] != path:
      path = leader[path]
    return path

  # Of four parts with 16 bits, one is equal if at most three bits differ.
  for shift in range(0, 64, 16):
    part = functools.partial(_part, hashes, shift)
    for group in _groups(hashes, part):
      values = np.array([hashes[path] for path in group], np.uint64)
      for i, path in enumerate(group):
        different = np.bitwise_count(values[i + 1 :] ^ values[i])
        for j in np.flatnonzero(different <= _BITS):
          leader[find_leader(group[i + 1 + j])] = find_leader(path)
  return _groups(hashes, find_leader)


def _groups(paths: Iterable[str], key: Callable) -> list[list[str]]:
  """Returns the groups of at least two paths with an equal key."""
  by_key = {}
  for path in paths:
    by_key.setdefault(key(path), []).append(path)
  return [group for group in by_key.values() if len(group) > 1]


def _part(hashes, shift, path):
  return hashes[path] >> shift & 0xFFFF


def _difference_hash(path: str) -> int:
  """Returns a hash of 64 bits; 0 for one color, or if Pillow cannot read it."""
  try:
    with Image.open(path) as image:
      image.draft('L', (64, 64))  # a JPEG is decoded at a fraction of its size
      small = image.convert('L').resize((9, 8), Image.Resampling.BOX)
  except (OSError, ValueError, SyntaxError):
    return 0
  pixels = np.asarray(small, np.int16)
  bits = np.packbits(pixels[:, 1:] > pixels[:, :-1])
  return int.from_bytes(bits.tobytes(), 'big')
