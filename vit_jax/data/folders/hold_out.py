"""Holds out a part of the images, class by class and group by group."""

from collections.abc import Sequence
import re

import numpy as np

from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import listing

TEST_FRACTION = 0.1  # of data without a test split


def by_class(keys: Sequence[str], labels: np.ndarray) -> np.ndarray:
  """Returns which images [N] are held out for testing.

  An image is held out if the hash of its key is small, with one exception. Each
  class with two or more images has at least one image on each side.

  Args:
    keys: path of each image, relative to the folder.
    labels: see `listing.Part`. Labels that are not class numbers form one
      class.
  """
  held = np.zeros(len(keys), bool)
  fractions = [examples.hash_fraction(key) for key in keys]
  for indices in _classes(labels):
    ranked = sorted(indices, key=lambda i: (fractions[i], keys[i]))
    count = sum(fractions[i] < TEST_FRACTION for i in ranked)
    count = min(max(count, 1), max(len(ranked) - 1, 0))
    held[ranked[:count]] = True
  return held


def by_group(
  groups: Sequence[str], labels: np.ndarray, fraction: float
) -> np.ndarray:
  """Returns which images [N] are held out, with whole groups only.

  Groups are taken in the order of their hashes, until each class has about
  `fraction` of its images held out. Each class keeps at least one image.

  Args:
    groups: name of the group of each image.
    labels: see `listing.Part`.
    fraction: fraction of the images of each class to hold out.
  """
  classes = _classes(labels)
  label_of = np.zeros(len(groups), int)
  for label, indices in enumerate(classes):
    label_of[indices] = label
  members = {}
  for i, group in enumerate(groups):
    members.setdefault(group, []).append(i)
  counts = {  # {group: images of each class [K]}
    group: np.bincount(label_of[indices], minlength=len(classes))
    for group, indices in members.items()
  }
  total = np.bincount(label_of, minlength=len(classes))
  target = np.maximum(1, np.round(fraction * total))
  held, taken = np.zeros(len(classes)), set()

  def take(order, fits):
    for group in order:
      after = held + counts[group]
      own = counts[group] > 0
      if group not in taken and fits(after, own) and (after < total)[own].all():
        held[:] = after
        taken.add(group)

  order = sorted(
    members, key=lambda group: examples.hash_fraction(f'group {group}')
  )
  take(
    order,
    lambda after, own: (
      (held < target)[own].any() and (after <= 2 * target)[own].all()
    ),
  )
  # A class whose groups are all large still needs one of them.
  take(
    sorted(order, key=lambda group: counts[group].sum()),
    lambda _, own: (held == 0)[own].any(),
  )
  return np.array([group in taken for group in groups])


def find_groups(found: listing.Listing, pattern: str) -> dict[str, str]:
  """Returns {path: group} for a pattern on the relative paths.

  Args:
    found: the images.
    pattern: regular expression with one group in brackets.

  Raises:
    ValueError: the pattern cannot be used, or an image does not match it.
  """
  start = f'config.group_by={pattern!r}'
  try:
    expression = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{start} is neither a column of a table of labels nor a regular '
      f'expression: {error}. For example, (patient\\d+)_ gives the images of '
      'one patient to one group'
    ) from error
  if expression.groups != 1:
    raise ValueError(
      f'{start} has {expression.groups} groups in brackets. It must be a '
      'column of a table of labels, or a regular expression with one group, '
      'such as (patient\\d+)_'
    )
  groups, others = {}, []
  for path in found.paths:
    match = expression.search(found.key(path))
    if match and match[1] is not None:
      groups[path] = match[1]
    else:
      others.append(path)
  if others:
    raise ValueError(
      f'{start} does not match the paths of all images. It does not match '
      f'{listing.some(others, found.folder)}. Correct the expression. It is '
      'searched in the path relative to the folder'
    )
  return groups


def check_groups(found: listing.Listing) -> None:
  """Raises ValueError if two parts of a listing have images of one group."""
  part_of, shared = {}, {}
  for name, part in found.parts.items():
    for path in part.paths:
      group = found.groups[path]
      if part_of.setdefault(group, name) != name:
        shared[group] = part_of[group], name
  if shared:
    group, (first, second) = next(iter(shared.items()))
    raise ValueError(
      f'{found.folder}: {len(shared)} group(s) of config.group_by have images '
      f'in several parts, for example {group!r} in {first} and in {second}. '
      'Move the images of each group into one part, or remove config.group_by'
    )


def split(
  found: listing.Listing, name: str, validation: float | int | None = None
) -> None:
  """Moves a part of the training images to a new part, in place.

  Args:
    found: the images. With groups, whole groups move.
    name: name of the new part.
    validation: a fraction or a number of images; see
      `examples.count_held_out`. None: about one tenth of each class.

  Raises:
    ValueError: a side would be empty.
  """
  train = found.parts['train']
  keys = [found.key(path) for path in train.paths]
  if found.groups:
    fraction = TEST_FRACTION
    if validation:
      count = examples.count_held_out(validation, len(keys))
      fraction = count / len(keys)
    groups = [found.groups[path] for path in train.paths]
    held = by_group(groups, train.labels, fraction)
    if not held.any():
      raise ValueError(
        f'{found.folder}: config.group_by gives {len(set(groups))} group(s), '
        f'which cannot be divided into training and {name}. Each class would '
        'lose all of its training images. Use smaller groups, or give a part '
        f'{name}'
      )
    moved = len({g for g, h in zip(groups, held, strict=True) if h})
    found.notes.append(
      f'{held.sum()} images of {moved} of {len(set(groups))} groups are held '
      f'out for {name}'
    )
    _note_missing_classes(found, name, train.labels, held)
  elif validation:
    held = np.zeros(len(keys), bool)
    held[examples.split_indices(validation, keys)[1]] = True
  else:
    held = by_class(keys, train.labels)
    found.notes.append(
      f'there is no test split, so {held.sum()} of {len(held)} images are held '
      'out for testing'
    )
  if name == 'validation':  # runs with another fraction have the same images
    found.fingerprints = {'train': found.fingerprint('train'), name: ''}
  found.parts['train'] = train.take(np.flatnonzero(~held))
  found.parts[name] = train.take(np.flatnonzero(held))


def complete(found: listing.Listing, settings: DataSettings) -> None:
  """Holds out the test split and the validation split that are missing."""
  if settings.group_by and not found.groups:
    found.groups = find_groups(found, settings.group_by)
  if 'test' not in found.parts:
    split(found, 'test')
  if settings.validation and 'validation' not in found.parts:
    split(found, 'validation', settings.validation)
  if found.groups:
    check_groups(found)


def _note_missing_classes(found, name, labels, held):
  """Adds a note about classes whose groups cannot be divided."""
  if labels.ndim == 1 and labels.dtype.kind == 'i':
    missing = set(labels.tolist()) - set(labels[held].tolist())
    if missing:
      names = [found.class_names[label] for label in sorted(missing)]
      found.notes.append(
        f'warning: classes without images in {name}, because their groups '
        f'cannot be divided: {listing.some(names)}'
      )


def _classes(labels):
  """Returns the indices of the images of each class."""
  if labels.ndim == 1 and labels.dtype.kind == 'i':
    order = np.argsort(labels, kind='stable')
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return np.split(order, starts[1:]) if len(labels) else []
  if labels.ndim == 2 and labels.size and np.isin(labels, (0, 1)).all():
    # Of several classes of an image, the rarest one counts.
    counts = np.where(labels == 1, labels.sum(0), np.inf)
    rarest = np.where(labels.any(1), counts.argmin(1), labels.shape[1])
    return _classes(rarest.astype(np.int64))
  return [np.arange(len(labels))]
