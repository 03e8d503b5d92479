"""What a folder of photographs contains, and what is suspicious about it."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import os
from typing import Any

import numpy as np
from PIL import Image

from vit_jax import console
from vit_jax.data.folders import listing
from vit_jax.data.image_files import image_kinds

_ENDS = 4096  # bytes at both ends of a file that are compared first
_NEAR_BITS = 3  # largest number of different bits of near duplicates


@dataclasses.dataclass(frozen=True)
class Findings:
  """The content of a folder of images.

  Attributes:
    folder: folder of the dataset.
    counts: {split: {class: number of images}}; {} if the labels are no classes.
    num_images: {split: number of images}.
    kinds: {kind of file: number of images}.
    sizes: (height, width) in pixels of all images that can be opened [N, 2].
    skipped: {reason: paths}.
    notes: lines about splits and labels.
    equal: groups of files with the same content.
    near: groups of files with almost the same picture, with one file of each
      group of `equal`; None if not searched.
    split_of: {path: split}.
    class_of: {path: class}; {} if the labels are no classes.
  """

  folder: str
  counts: dict[str, dict[str, int]]
  num_images: dict[str, int]
  kinds: dict[str, int]
  sizes: np.ndarray
  skipped: dict[str, list[str]]
  notes: list[str]
  equal: list[list[str]]
  near: list[list[str]] | None
  split_of: dict[str, str]
  class_of: dict[str, str]

  @property
  def majority(self) -> tuple[str, float] | None:
    """(the most frequent class, its fraction of the test images), or None."""
    counts = self.counts.get('test') or self.counts.get('train')
    if not counts:
      return None
    name = max(counts, key=counts.get)
    return name, counts[name] / sum(counts.values())

  def across(self, groups: Sequence[Sequence[str]], of: dict) -> list:
    """Returns the groups whose files are in several splits or classes.

    Args:
      groups: groups of paths, such as `equal`.
      of: `split_of` or `class_of`.
    """
    return [group for group in groups if len({of.get(x) for x in group}) > 1]


def find(found: listing.Listing, near: bool = False) -> Findings:
  """Returns the findings about the images of a listing.

  Args:
    found: from `folder_source.list_images`.
    near: whether to search near duplicates, which decodes each image.
  """
  split_of, class_of, counts = {}, {}, {}
  for split, part in found.parts.items():
    split_of.update(dict.fromkeys(part.paths, split))
    if not found.class_names or part.labels.ndim > 1:
      continue
    names = [found.class_names[label] for label in part.labels]
    class_of.update(zip(part.paths, names, strict=True))
    times = collections.Counter(names)
    counts[split] = {name: times[name] for name in found.class_names}
  paths = list(split_of)
  equal = equal_files(paths)
  copies = {path for group in equal for path in group[1:]}
  kinds = {}
  for path in paths:
    kind = image_kinds.of_file(path)
    kinds[kind] = kinds.get(kind, 0) + 1
  return Findings(
    found.folder,
    counts,
    {split: len(part.paths) for split, part in found.parts.items()},
    dict(sorted(kinds.items(), key=lambda item: -item[1])),
    _sizes(paths),
    found.skipped,
    found.notes,
    equal,
    near_duplicates([x for x in paths if x not in copies]) if near else None,
    split_of,
    class_of,
  )


def _sizes(paths):
  sizes = []
  for path in console.counting(paths, len(paths), 'reading sizes'):
    try:
      with Image.open(path) as image:
        sizes.append(image.size[::-1])
    except (OSError, ValueError, SyntaxError):
      continue  # a kind that needs another reader; the check decodes it
  return np.array(sizes, np.int64).reshape(-1, 2)


def _groups(paths: Iterable[str], key: Callable) -> list[list[str]]:
  """Returns the groups of at least two paths with an equal key."""
  by_key = {}
  for path in paths:
    by_key.setdefault(key(path), []).append(path)
  return [group for group in by_key.values() if len(group) > 1]


def equal_files(paths: Sequence[str]) -> list[list[str]]:
  """Returns groups of files with the same content.

  Only files of equal size with equal ends are read as a whole.
  """
  groups = _groups(paths, os.path.getsize)
  for key in (_hash_of_ends, _hash):
    groups = [more for group in groups for more in _groups(group, key)]
  return groups


def _hash_of_ends(path):
  with open(path, 'rb') as file:
    start = file.read(_ENDS)
    file.seek(max(os.path.getsize(path) - _ENDS, 0))
    return hashlib.blake2b(start + file.read(_ENDS)).digest()


def _hash(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'blake2b').digest()


def near_duplicates(paths: Sequence[str]) -> list[list[str]]:
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
        for j in np.flatnonzero(different <= _NEAR_BITS):
          leader[find_leader(group[i + 1 + j])] = find_leader(path)
  return _groups(hashes, find_leader)


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


def to_json(found: Findings) -> dict[str, Any]:
  """Returns the findings as values of JSON; paths are relative."""

  def relative(groups):
    return [[listing.key_of(x, found.folder) for x in g] for g in groups]

  sizes = found.sizes
  return {
    'folder': found.folder,
    'images': found.num_images,
    'classes': found.counts,
    'majority': found.majority
    and dict(zip(('class', 'fraction'), found.majority, strict=True)),
    'kinds': found.kinds,
    'sizes': {
      name: function(sizes, axis=0).tolist()
      for name, function in (
        ('smallest', np.min),
        ('median', np.median),
        ('largest', np.max),
      )
      if len(sizes)
    },
    'notes': found.notes,
    'skipped': {
      reason: relative([paths])[0] for reason, paths in found.skipped.items()
    },
    'equal_files': relative(found.equal),
    'equal_files_in_two_splits': relative(
      found.across(found.equal, found.split_of)
    ),
    'equal_files_in_two_classes': relative(
      found.across(found.equal, found.class_of)
    ),
    'near_duplicates': found.near and relative(found.near),
  }
