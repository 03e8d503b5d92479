"""The figures of a trained model by name: which it can have, and their files.

`photo_figures` and `model_figures` make them.
"""

import dataclasses
import os
from typing import Any

from matplotlib import figure as plots
import numpy as np

from vit_jax.checkpoint import trained_model
from vit_jax.figures import attention_weights
from vit_jax.figures import drawing
from vit_jax.figures import filters

# Figures of each photo, of the parameters, and of many images.
OF_PHOTOS = (
  *('rollout', 'attention', 'relevance', 'features', 'similarity'),
  'nearest',
)
OF_PARAMETERS = ('filters', 'positions')
OF_IMAGES = ('attention_distance', 'norms', 'cka')
NAMES = (*OF_PHOTOS, *OF_PARAMETERS, *OF_IMAGES)


@dataclasses.dataclass(frozen=True)
class Figure:
  """A drawn figure, and the numbers that it shows."""

  plot: plots.Figure
  numbers: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """What a figure shows.

  Attributes:
    patch: (row, column) of the patch whose attention and similarity are shown.
      None: the attention of the class token, and the similarity to the patch in
      the middle.
    class_index: index of the logit that `relevance` explains. None: the
      predicted class of each image.
    renormalize: see `attention_maps.mean_distance`.
    invert: see `features.foreground`.
  """

  patch: tuple[int, int] | None = None
  class_index: int | None = None
  renormalize: bool = False
  invert: bool = False


DEFAULT = Options()


def check(
  trained: trained_model.TrainedModel, name: str, options: Options = DEFAULT
) -> None:
  """Raises ValueError if a model has no figure of this name."""
  model = trained.model
  if name not in NAMES:
    raise ValueError(f'figures={name!r} is not one of {", ".join(NAMES)}.')
  try:
    if name in ('rollout', 'attention', 'relevance', 'attention_distance'):
      attention_weights.check(model)
    if name == 'attention':
      _check_row(model, options.patch)
    if name == 'relevance':
      _check_class(trained, options.class_index)
    if name == 'positions':
      filters.check_positions(model)
    if name in ('norms', 'cka'):
      _ = model.block_names  # raises ValueError for a fractal
    if options.patch and name in ('attention', 'similarity'):
      check_patch(trained, *options.patch)
  except ValueError as error:
    raise ValueError(f'figures={name}: {error}') from error


def _check_row(model, patch):
  has_row = model.has_token or model.classifier in ('map', 'probe')
  if patch is None and not has_row:
    raise ValueError(
      f'a model with classifier={model.classifier!r} has no class token. Use '
      'patch=ROW,COLUMN for the attention of a patch, or figures=rollout.'
    )


def _check_class(trained, class_index):
  attention_weights.check_logits(trained.model)
  count = trained.model.num_classes
  if class_index is None and trained.output == 'identity' and count > 1:
    raise ValueError(
      f'the model predicts {count} values, and no class. Use class=NAME to '
      f'select one of them: {", ".join(trained.shown_class_names[:5])} ….'
    )


def check_patch(
  trained: trained_model.TrainedModel, row: int, column: int
) -> None:
  """Raises ValueError if a patch is outside of the images of a model."""
  grid = trained.model.grid_size(*trained.image_size)
  if not (0 <= row < grid[0] and 0 <= column < grid[1]):
    raise ValueError(
      f'patch={row},{column} is outside of the {grid[0]} x {grid[1]} patches. '
      f'Rows are 0 to {grid[0] - 1}, and columns are 0 to {grid[1] - 1}.'
    )


def save(figure: Figure, folder: str, name: str) -> list[str]:
  """Writes NAME.png and the numbers as NAME.npz; returns the paths."""
  paths = [os.path.join(folder, f'{name}.{kind}') for kind in ('png', 'npz')]
  with open(paths[0], 'wb') as file:
    file.write(drawing.png(figure.plot))
  np.savez_compressed(paths[1], **figure.numbers)
  return paths
