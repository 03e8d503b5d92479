"""Filters of the patch embedding, and similarity of positions.

Shapes:  P side of a patch · C channels · D filters, width of a token
         N patches · h, w rows and columns of patches
"""

from typing import Any

from flax import traverse_util
import flax.linen as nn
import numpy as np

from vit_jax.models import param_paths
from vit_jax.models import vit
from vit_jax.models.layers import positions

NUM_FILTERS = 28  # as in the ViT paper, figure 7 (left)
_FIRST = (
  param_paths.STEM_ROOT,
  param_paths.VIT_PATCHES,
  param_paths.MIXER_PATCHES,
)


def first_kernel(params: Any) -> tuple[str, np.ndarray]:
  """Returns (path, kernel [P, P, C, D]) of the layer that reads the pixels.

  With a convolutional stem, this is the root of the stem: the patches are then
  embedded from the output of the stem.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  path = next(path for path in _FIRST if path in flat)
  return path, np.asarray(flat[path], np.float32)


def components(
  kernel: np.ndarray, count: int = NUM_FILTERS
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the principal components of filters, and fractions of variance.

  The D filters are vectors whose mean is subtracted. The components are
  orthonormal. The largest entry of each is positive.

  Args:
    kernel: [P, P, C, D].
    count: number of components, at most P²·C and D.

  Returns:
    Components [count, P, P, C], from the largest variance, and fractions
    [count].
  """
  vectors = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]).T
  vectors = vectors - vectors.mean(0)
  _, sizes, found = np.linalg.svd(vectors, full_matrices=False)
  largest = np.take_along_axis(
    found, np.abs(found).argmax(1, keepdims=True), axis=1
  )
  found = found * np.where(largest < 0, -1, 1)
  variances = sizes**2 / max((sizes**2).sum(), np.finfo(np.float64).tiny)
  return found[:count].reshape(-1, *kernel.shape[:-1]), variances[:count]


def check_positions(model: nn.Module) -> None:
  """Raises ValueError if a model has no vectors of positions."""
  if not isinstance(model, vit.VisionTransformer):
    raise ValueError(f'{type(model).__name__} has no position embeddings.')
  if model.positions not in (*positions.ADDED, 'relative'):
    raise ValueError(
      f'positions={model.positions!r} has no vectors of positions to compare. '
      f'Models with positions={", ".join(positions.ADDED)} or relative have '
      'them.'
    )


def position_table(
  model: nn.Module, params: Any, image_size: tuple[int, int]
) -> np.ndarray:
  """Returns the vectors that are added to the patches [N, D].

  Class token and registers are not included. If each block adds its own
  vectors, these are the vectors of the first block.

  Args:
    model: a VisionTransformer with `positions` in `positions.ADDED`.
    params: parameters of the model.
    image_size: (height, width) of the images.
  """
  layout = model.layout(*image_size)
  prefix = f'{param_paths.INPUT_POSITIONS}/'
  if model.positions_at == 'every_layer':
    prefix = f'{param_paths.block(0)}posembed/'
  flat = traverse_util.flatten_dict(params, sep='/')
  own = {
    path.removeprefix(prefix): value
    for path, value in flat.items()
    if path.startswith(prefix)
  }
  table = positions.PositionEmbedding(kind=model.positions, layout=layout)
  vectors = table.apply({'params': own}, model.hidden_size)
  return np.asarray(layout.patches(vectors)[0])


def similarities(vectors: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Returns the cosines of all pairs of vectors [h, w, h, w].

  Args:
    vectors: [N, D], row by row.
    grid: (h, w).
  """
  vectors = np.asarray(vectors, np.float64)
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  units = vectors / np.maximum(norms, np.finfo(np.float64).tiny)
  return np.clip(units @ units.T, -1, 1).reshape(*grid, *grid)


def offset_norms(params: Any) -> np.ndarray:
  """Returns the norms of relative positions by block and offset [L, 2N − 1].

  Offset i − N + 1 is that from the patch of the query to the patch of the key,
  in the order row by row.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  found, number = [], 0
  while (
    path := f'{param_paths.block(number)}{param_paths.RELATIVE_POSITIONS}'
  ) in flat:
    found.append(np.linalg.norm(np.asarray(flat[path]), axis=-1))
    number += 1
  return np.stack(found)
