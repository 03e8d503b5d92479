"""Matches the classes of weights with those of a dataset by name."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.data import class_names as published


def shown(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
  """Returns a name for each logit.

  If `names` is None or lists WordNet ids, the result is ImageNet's class names.
  If no ImageNet head has this number of classes, the names are 'class 0', ….
  """
  if names in (None, published.imagenet_ids(num_classes)):
    return published.imagenet(num_classes) or tuple(
      f'class {i}' for i in range(num_classes)
    )
  return names


def index_of(names: Sequence[str] | None, num_classes: int) -> dict[str, int]:
  """Returns {name: index of the logit}; for ImageNet also by WordNet id."""
  ids = published.imagenet_ids(num_classes)
  known = [shown(names, num_classes)]
  if ids and (names in (None, ids) or _are_imagenet(names, num_classes)):
    known.append(ids)
  return {name: i for names in known for i, name in enumerate(names)}


def _are_imagenet(names, num_classes):
  """Returns whether names are those of ImageNet's classes, in its order.

  Labels of Hugging Face are WordNet's words: 'tench, Tinca tinca'. Our names
  are the first words, with an addition if two are equal. Some lists have other
  spellings, so 90 % of the names must agree.
  """
  ours = [
    name.partition(' (')[0].casefold()
    for name in published.imagenet(num_classes)
  ]
  equal = sum(
    name in [word.strip() for word in label.casefold().split(',')]
    for name, label in zip(ours, names, strict=True)
  )
  return equal >= 0.9 * len(ours)


def match(
  params: Mapping[str, Any],
  names: Sequence[str] | None,
  wanted: Sequence[str],
  source: str,
  dataset: str,
) -> Mapping[str, Any]:
  """Returns parameters with the head's classes in the order of the dataset.

  Args:
    params: nested dict with a `head`.
    names: class names of the head; None if they are unknown.
    wanted: class names of the dataset.
    source: path of the weights, for messages.
    dataset: name of the dataset, for messages.

  Raises:
    ValueError: the head and the dataset have different classes.
  """
  (num_classes,) = np.shape(params['head']['bias'])
  if num_classes != len(wanted):
    raise ValueError(
      f'{source} has {num_classes} classes, but the dataset {dataset} has '
      f'{len(wanted)}. Use weights with the classes of the dataset.'
    )
  known = index_of(names, num_classes)
  unknown = [name for name in wanted if name not in known]
  if unknown and names is None:
    console.log_info(
      f'warning: {source} stores no class names. Its classes are assumed to be '
      'in the order of the dataset.'
    )
    return params
  order = np.array([known.get(name, -1) for name in wanted])
  if unknown or len(set(order)) < len(order):
    unmatched = [
      name for i, name in enumerate(shown(names, num_classes)) if i not in order
    ]
    raise ValueError(
      f'{source} and the dataset {dataset} have different class names: '
      f'{_some(unmatched)} in the weights, {_some(unknown)} in the dataset. '
      'If these are names of the same classes, rename those of the dataset.'
    )
  if np.all(order == np.arange(len(order))):
    return params
  console.log_info(
    'the classes of the dataset and of the weights are in different orders, so '
    'they are matched by name'
  )
  head = {
    name: np.asarray(array)[..., order]
    for name, array in params['head'].items()
  }
  return {**params, 'head': head}


def logits_of(
  names: Sequence[str] | None,
  num_classes: int,
  wanted: Sequence[str],
  source: str,
  dataset: str,
) -> np.ndarray:
  """Returns the logit of each class of a dataset, matched by name.

  The dataset may have fewer classes than the model.

  Args:
    names: class names of the model; None if they are unknown.
    num_classes: number of logits.
    wanted: class names of the dataset.
    source: description of the model, for messages.
    dataset: name of the dataset, for messages.

  Raises:
    ValueError: a class of the dataset is not a class of the model.
  """
  known = index_of(names, num_classes)
  unknown = [name for name in wanted if name not in known]
  if unknown:
    raise ValueError(
      f'the dataset {dataset} has {len(wanted)} classes, and {len(unknown)} of '
      f'them are no classes of {source}: {_some(unknown)}'
    )
  found = np.array([known[name] for name in wanted])
  if len(set(found)) < len(found):
    raise ValueError(
      f'the dataset {dataset} has several names of one class of {source}'
    )
  if len(found) < num_classes:
    console.log_info(
      f'{dataset}: only its {len(found)} classes compete, of the {num_classes} '
      f'of {source}'
    )
  return found


def _some(names):
  return ', '.join(map(repr, names[:5])) + (', …' if len(names) > 5 else '')
