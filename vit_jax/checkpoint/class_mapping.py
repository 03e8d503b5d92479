"""Classes of weights and those of data, matched by name."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.data import class_names as published


def shown(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
  """A name for each logit: ImageNet's, or numbers, where `names` is None."""
  if names in (None, published.imagenet_ids(num_classes)):
    return published.imagenet(num_classes) or tuple(
      f'class {i}' for i in range(num_classes)
    )
  return names


def index_of(names: Sequence[str] | None, num_classes: int) -> dict[str, int]:
  """{name: index of the logit}, of ImageNet's classes by WordNet id too."""
  ids = published.imagenet_ids(num_classes)
  known = [shown(names, num_classes)]
  if ids and names in (None, ids):
    known.append(ids)
  return {name: i for names in known for i, name in enumerate(names)}


def match(
  params: Mapping[str, Any],
  names: Sequence[str] | None,
  wanted: Sequence[str],
  source: str,
  dataset: str,
) -> Mapping[str, Any]:
  """Parameters with the head's classes in the order of the data's.

  Args:
    params: nested dict with a `head`.
    names: of its classes; None where nothing tells them.
    wanted: names of the data's classes.
    source: of the weights, for messages.
    dataset: likewise.

  Raises:
    ValueError: the classes are others.
  """
  (num_classes,) = np.shape(params['head']['bias'])
  if num_classes != len(wanted):
    raise ValueError(
      f'{source} tells {num_classes} classes apart, {dataset} has {len(wanted)}'
    )
  known = index_of(names, num_classes)
  unknown = [name for name in wanted if name not in known]
  if unknown and names is None:
    console.log_info(
      f'warning: nothing tells the names of the classes of {source}; '
      'those of the data are taken to be in the same order'
    )
    return params
  order = np.array([known.get(name, -1) for name in wanted])
  if unknown or len(set(order)) < len(order):
    unmatched = [
      name for i, name in enumerate(shown(names, num_classes)) if i not in order
    ]
    raise ValueError(
      f'{source} has other classes than {dataset}: '
      f'{_some(unmatched)} in the weights, {_some(unknown)} in the data. '
      'Where they mean the same, give the data the names of the weights'
    )
  if np.all(order == np.arange(len(order))):
    return params
  console.log_info(
    'the classes of the data are in another order than those of the '
    'weights; they are matched by name'
  )
  head = {
    name: np.asarray(array)[..., order]
    for name, array in params['head'].items()
  }
  return {**params, 'head': head}


def _some(names):
  return ', '.join(map(repr, names[:5])) + (', …' if len(names) > 5 else '')
