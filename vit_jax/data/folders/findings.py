"""What a folder of photographs contains, and what is suspicious about it."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from vit_jax.data.folders import listing
from vit_jax.data.image_files import near_duplicates


@dataclasses.dataclass(frozen=True)
class Findings:
  """The content of a folder of images.

  Attributes:
    folder: folder of the dataset.
    num_images: {split: number of images}.
    counts: {split: {class: number of images}}; {} if the labels are numbers.
    majority: (the most frequent class, its fraction of the test images); None
      unless each image has one class.
    kinds: {kind of file: number of images}, the most frequent first.
    sizes: (height, width) in pixels of all images, upright [N, 2].
    skipped: {reason: paths}.
    notes: lines about splits and labels.
    equal: groups of files with the same content.
    near: groups of files with almost the same picture, with one file of each
      group of `equal`; None if not searched.
    split_of: {path: split} of the files in `equal` and `near`.
    label_of: {path: label} of these files, as text.
  """

  folder: str
  num_images: dict[str, int]
  counts: dict[str, dict[str, int]]
  majority: tuple[str, float] | None
  kinds: dict[str, int]
  sizes: np.ndarray
  skipped: dict[str, list[str]]
  notes: list[str]
  equal: list[list[str]]
  near: list[list[str]] | None
  split_of: dict[str, str]
  label_of: dict[str, str]

  def across(self, groups: Sequence[Sequence[str]], of: dict) -> list:
    """Returns the groups whose files are in several splits or have two labels.

    Args:
      groups: groups of paths, such as `equal`.
      of: `split_of` or `label_of`.
    """
    return [group for group in groups if len({of[x] for x in group}) > 1]

  @property
  def contradictions(self) -> list[list[str]]:
    """Groups of equal files in several splits or with different labels."""
    by_split = self.across(self.equal, self.split_of)
    by_label = self.across(self.equal, self.label_of)
    return by_split + [group for group in by_label if group not in by_split]


def find(found: listing.Listing, near: bool = False) -> Findings:
  """Returns the findings about the images of a listing.

  Args:
    found: from `folder_source.list_images`, with `checked`.
    near: whether to search near duplicates, which decodes each image.
  """
  paths, records = found.checked.paths, found.checked.records
  equal = _equal(paths, records['content'])
  similar = None
  if near:
    copies = {path for group in equal for path in group[1:]}
    similar = near_duplicates.find([x for x in paths if x not in copies])
  grouped = {path for group in equal + (similar or []) for path in group}
  split_of, label_of, counts = {}, {}, {}
  for split, part in found.parts.items():
    if found.class_names:
      counts[split] = _count(part.labels, found.class_names)
    for path, label in zip(part.paths, part.labels, strict=True):
      if path in grouped:
        split_of[path] = split
        label_of[path] = _text(label, found.class_names)
  kinds, times = np.unique(records['kind'], return_counts=True)
  return Findings(
    found.folder,
    {split: len(part.paths) for split, part in found.parts.items()},
    counts,
    _majority(found, counts),
    {kinds[i].decode() or 'other': int(times[i]) for i in (-times).argsort()},
    np.stack([records['height'], records['width']], 1).astype(np.int64),
    found.skipped,
    found.notes,
    equal,
    similar,
    split_of,
    label_of,
  )


def _equal(paths, contents):
  """Returns groups of paths whose hashes `contents` [N] are equal."""
  order = np.argsort(contents, kind='stable')
  starts = np.flatnonzero(np.diff(contents[order])) + 1
  groups = np.split(order, starts)
  return [[paths[i] for i in group] for group in groups if len(group) > 1]


def _count(labels, class_names):
  """Returns {class: number of images} for class numbers or rows of 0 and 1."""
  if labels.ndim > 1:
    times = labels.sum(0)
  else:
    times = np.bincount(labels, minlength=len(class_names))
  return dict(zip(class_names, map(int, times), strict=True))


def _text(label, class_names):
  """Returns a label of an image as text."""
  if not class_names:
    return ', '.join(f'{x:g}' for x in np.atleast_1d(label))
  if np.ndim(label):
    return ', '.join(class_names[i] for i in np.flatnonzero(label))
  return class_names[label]


def _majority(found, counts):
  """Returns (the most frequent class, its fraction of the test images)."""
  if not counts or found.parts['train'].labels.ndim > 1:
    return None
  times = counts['test']
  name = max(times, key=times.get)
  return name, times[name] / sum(times.values())


def to_json(found: Findings) -> dict[str, Any]:
  """Returns the findings as values of JSON; paths are relative."""

  def relative(groups):
    return [[listing.key_of(x, found.folder) for x in g] for g in groups]

  return {
    'folder': found.folder,
    'images': found.num_images,
    'classes': found.counts,
    'majority': found.majority
    and dict(zip(('class', 'fraction'), found.majority, strict=True)),
    'kinds': found.kinds,
    'sizes': {
      name: function(found.sizes, axis=0).tolist()
      for name, function in (
        ('smallest', np.min),
        ('median', np.median),
        ('largest', np.max),
      )
    },
    'notes': found.notes,
    'skipped': {
      reason: relative([paths])[0] for reason, paths in found.skipped.items()
    },
    'equal_files': relative(found.equal),
    'equal_files_in_two_splits': relative(
      found.across(found.equal, found.split_of)
    ),
    'equal_files_with_different_labels': relative(
      found.across(found.equal, found.label_of)
    ),
    'near_duplicates': found.near and relative(found.near),
  }
