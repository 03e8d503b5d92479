"""Checks of given labels, and the names of their classes."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from vit_jax.data import examples


def check_label_array(labels: np.ndarray, name: str) -> None:
  """Raises ValueError if labels have a type or shape that is a mistake.

  Args:
    labels: the labels [N, …].
    name: name of the array, for messages.
  """
  shape = list(labels.shape)
  if labels.ndim == 2 and shape[1] == 1 and labels.dtype.kind in 'iu':
    raise ValueError(
      f'{name} has the shape {shape}. Class numbers need the shape '
      f'[{shape[0]}]: use labels[:, 0]'
    )
  if labels.ndim == 1 and labels.dtype.kind == 'b':
    raise ValueError(
      f'{name} has the dtype bool. Use integers, labels.astype(int), for two '
      'classes, or floats for targets'
    )


def find_names(
  labels: Mapping[str, np.ndarray | None],
  class_names: Sequence[str] | None,
  num_classes: int | None,
) -> tuple[str, ...]:
  """Returns the class names, after checking the labels of all splits.

  Args:
    labels: {split: labels}, all of one kind; None for a split without labels.
    class_names: given names, or None.
    num_classes: given number of classes, or None.

  Returns:
    Class names; () if nothing is given and the labels are not class numbers.

  Raises:
    ValueError: a label is not the index of a class, the arguments contradict
      each other, or the number of classes is not known.
  """
  names = check_names(class_names, num_classes)
  train = labels['train']
  if train is None:
    return names
  if not examples.are_classes(train):
    if names and train.ndim == 2 and train.shape[1] != len(names):
      raise ValueError(
        f'there are {len(names)} classes, but the labels have the shape '
        f'{list(train.shape)}. Give one name for each column'
      )
    if not names and train.ndim == 2 and train.dtype.kind in 'biu':
      return tuple(map(str, range(train.shape[1])))
    return names
  if not names:
    found = np.unique(train)
    if found[0] != 0 or found[-1] != len(found) - 1:
      raise ValueError(
        f'the training labels have {len(found)} different values from '
        f'{found[0]} to {found[-1]}, and not each number from 0 to '
        f'{found[-1]}, so the number of classes is not known. Give class_names '
        'or num_classes. If the labels are targets of a regression, give '
        'floats'
      )
    names = tuple(map(str, range(len(found))))
  for split, x in labels.items():
    if x is not None:
      examples.check_labels(x, len(names), f'{split}: label')
  return names


def check_names(
  class_names: Sequence[str] | None, num_classes: int | None
) -> tuple[str, ...]:
  """Returns the names of the given classes; () if nothing is given.

  Raises:
    ValueError: the arguments contradict each other, or two names are equal.
  """
  if class_names is None:
    return tuple(map(str, range(num_classes or 0)))
  if isinstance(class_names, str):
    raise ValueError(
      f'class_names={class_names!r} is one text. Give a list of names'
    )
  names = tuple(map(str, class_names))
  if num_classes not in (None, len(names)) or len(set(names)) < len(names):
    raise ValueError(
      f'class_names has {len(names)} names, {len(set(names))} of them '
      f'different, and num_classes={num_classes}. Give a different name for '
      'each class, and omit num_classes'
    )
  return names
