"""Weights that training begins with, held against what lies beside them."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np

from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.models import architecture

# Settings that change the answers, and may change no array.
_UNSEEN = ('gelu', 'norm_epsilon', 'positions', 'positions_at')


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Parameters as they are stored, and what lies beside them."""

  source: str  # path of the weights, for messages
  params: Any  # nested dict of NumPy arrays
  told: metadata.Description
  keep_head: bool


def read(path: str, settings: Mapping[str, Any], keep_head: bool) -> Pretrained:
  """The `Pretrained` at a path.

  A head that is kept wants the model that it was trained with; a fresh one does
  not, but it is said where they differ.

  Args:
    path: of weights, or of the folder of a run.
    settings: arguments of `models.get_model` but for `num_classes`.
    keep_head: whether the head is to be kept.

  Raises:
    ValueError: the weights cannot be read, or were trained otherwise.
  """
  try:
    path, told = trained_model.locate(path)
  except ValueError as error:
    if keep_head:
      raise
    console.log_info(f'warning: {error}')
    told = metadata.Description(path)
  different = _different(told, settings, keep_head)
  if different:
    said = (
      f'{told.path}: the weights were trained with '
      + ', '.join(f'{name} {theirs}' for name, theirs, _ in different)
      + ', and the model has '
      + ', '.join(f'{name} {ours}' for name, _, ours in different)
      + '. Set '
      + ' '.join(
        f'config.model.{name}={theirs}' for name, theirs, _ in different
      )
    )
    if keep_head:
      raise ValueError(f'{said}; a fresh head may do without')
    console.log_info(f'warning: {said}, unless that is meant')
  return Pretrained(path, weights_file.load(path), told, keep_head)


def _different(told, settings, keep_head):
  """[(setting, value of the weights, value of the model)]."""
  model = models.get_model(**settings, num_classes=0)
  names, theirs = _UNSEEN, told.settings
  if told.name:
    trained = models.get_model(told.name, num_classes=0, **told.settings)
    if type(trained) is not type(model):
      return []  # their arrays differ, which is a clearer message
    names += ('classifier',) if keep_head else ()
    theirs = {name: getattr(trained, name, None) for name in names}
  elif keep_head:
    # Others' files say it of converted weights too, which wish for ours.
    theirs = {
      name: value for name, value in theirs.items() if name not in settings
    }
  found = [
    (name, theirs[name], getattr(model, name, None))
    for name in names
    if name in theirs
  ]
  return [row for row in found if row[1] != row[2]]


def fit(
  pretrained: Pretrained,
  model: nn.Module,
  initial: Mapping[str, Any],
  image_size: tuple[int, int],
  class_names: Sequence[str],
  dataset: str,
  resize_patches: bool,
) -> dict[str, Any]:
  """Parameters of a model, adapted from those of a `Pretrained`.

  Args:
    pretrained: from `read`.
    model: linen module.
    initial: freshly initialised parameters of it.
    image_size: (height, width) of its images.
    class_names: of its classes; a head that is kept is put in their order.
    dataset: its name, for messages.
    resize_patches: as of `adaptation.adapt`.

  Raises:
    ValueError: they do not fit, or a head that is kept has other classes.
  """
  params, keep_head = pretrained.params, pretrained.keep_head
  if keep_head and 'head' in params:
    try:
      params = class_mapping.match(
        params,
        pretrained.told.class_names,
        class_names,
        pretrained.source,
        dataset,
      )
    except ValueError as error:
      raise ValueError(
        f'{error}. For other classes: config.pretrained_head=fresh'
      ) from error
  return adaptation.adapt(
    params,
    initial,
    model.grid_size(*image_size),
    keep_head,
    source_grid=_grid(pretrained),
    resize_patches=resize_patches,
  )


def _grid(pretrained):
  """(rows, columns) of patches that the weights were trained on, or None.

  Where nothing tells they are taken to be a square, as published files are.
  """
  told = pretrained.told
  if told.name and told.image_size:
    trained = models.get_model(told.name, num_classes=0, **told.settings)
    return trained.grid_size(*told.image_size)
  return architecture.grid_of(
    {
      path: np.shape(array)
      for path, array in weights_file.flatten(pretrained.params).items()
    }
  )
