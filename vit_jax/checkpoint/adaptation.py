"""Weights of one model fitted to another task, image size or patch size.

Works on nested dicts of arrays and knows no model class.

Shapes:  P patch size · C input channels · D width of a token · N patches
"""

from collections.abc import Mapping
import math
from typing import Any

from flax import traverse_util
import numpy as np
import scipy.ndimage

from vit_jax.checkpoint import fit_errors
from vit_jax.models import param_paths

# What a new head may do without, and may find untrained.
_TOWARDS_HEAD = (
  param_paths.CLASS_TOKEN,
  param_paths.REGISTERS,
  param_paths.POOLING,
)
# Kernels that see the image: of patches, and of a stem's first convolution.
_PATCH_KERNELS = (param_paths.VIT_PATCHES, param_paths.MIXER_PATCHES)


def adapt(
  loaded: Mapping[str, Any],
  initial: Mapping[str, Any],
  grid: tuple[int, int],
  keep_head: bool = False,
  *,
  source_grid: tuple[int, int] | None = None,
  resize_patches: bool = False,
) -> dict[str, Any]:
  """Weights of a file fitted to a model.

  Position embeddings of every kind are resampled to `grid`, and kernels that
  see the image are changed to the model's input channels. Unless the head is
  kept, the head is the model's own fresh one, `pre_logits` is dropped where the
  model has none, and so are class token, registers and attention pooling; those
  that the file lacks start afresh.

  Args:
    loaded: parameters of the file, from `weights_file.load`.
    initial: freshly initialised parameters of the model.
    grid: (rows, columns) of patches in the model's images.
    keep_head: take the file's head and all that leads to it, to evaluate or to
      train on; then classes, class token and representation layer must agree.
    source_grid: (rows, columns) of patches in the images that the file was
      trained on; None: as in the model's images where these have as many
      patches, else a square.
    resize_patches: whether patches may have another size in the file.

  Returns:
    A nested dict with the paths, shapes and dtypes of `initial`.

  Raises:
    ValueError: lists every array that is missing, left over or of wrong shape.
  """
  flat = traverse_util.flatten_dict(loaded, sep='/')
  model = traverse_util.flatten_dict(initial, sep='/')
  adapted = dict(flat)
  if not keep_head:
    given, wanted = (set(map(param_paths.module, x)) for x in (flat, model))
    head = param_paths.HEAD
    dropped = {head, param_paths.PRE_LOGITS, *_TOWARDS_HEAD} - wanted
    fresh = set(_TOWARDS_HEAD) - given | {head}
    adapted = {
      path: value
      for path, value in flat.items()
      if param_paths.module(path) not in dropped | fresh
    }
    adapted.update(
      {
        path: value
        for path, value in model.items()
        if param_paths.module(path) in fresh
      }
    )
  for path in (*_PATCH_KERNELS, param_paths.STEM_ROOT):
    if path in flat and path in model and np.ndim(flat[path]) == 4:
      adapted[path] = _adapt_kernel(
        np.asarray(flat[path]),
        np.shape(model[path]),
        resize_patches and path in _PATCH_KERNELS,
      )
  for path in flat.keys() & model.keys():
    if np.ndim(flat[path]) != np.ndim(model[path]):
      continue
    folder, _, name = path.rpartition('/')
    if name == 'pos_embedding' and folder.startswith(param_paths.ENCODER):
      adapted[path] = _adapt_positions(path, flat, model, grid, source_grid)
    elif path.endswith(param_paths.RELATIVE_POSITIONS):
      adapted[path] = resample_relative(
        np.asarray(flat[path]), grid, source_grid
      )
    elif name in ('rows', 'columns') and 'posembed' in folder:
      adapted[path] = _resample(
        np.asarray(flat[path]), (grid[name == 'columns'],)
      )
  fit_errors.check(adapted, model, flat, keep_head)
  return traverse_util.unflatten_dict(
    {
      path: np.asarray(adapted[path], dtype=model[path].dtype) for path in model
    },
    sep='/',
  )


def _adapt_kernel(kernel, shape, resize_patches):
  if kernel.shape[2] != shape[2]:
    kernel = change_channels(kernel, shape[2])
  if resize_patches and kernel.shape[:2] != shape[:2]:
    kernel = resize_patch_kernel(kernel, shape[:2])
  return kernel


def change_channels(kernel: np.ndarray, num_channels: int) -> np.ndarray:
  """A kernel for images of another number of channels.

  From 3 to 1 it is the sum: a grey image gives what it gave as RGB. To more
  channels, channel i takes the place of channel i mod C, and shares its weight
  with the others there: an image whose channels were repeated gives what it
  gave. Both hold for kernels of patches. A convolution that standardises its
  kernel, as that of a stem does, takes the change of scale out again, so that
  each of its outputs is another multiple of what it was.

  Args:
    kernel: [P, P, C, D].
    num_channels: wanted.
  """
  given = kernel.shape[2]
  fold = np.zeros((num_channels, given), kernel.dtype)
  longer = np.arange(max(num_channels, given))
  fold[longer % num_channels, longer % given] = 1
  # Of several new channels for one given, each gets its share.
  fold /= fold.sum(axis=0)
  return np.einsum('nc,hwcd->hwnd', fold, kernel)


def _linear_resize(given, wanted):
  """The matrix [wanted, given] of linear resizing, smoothed when shrinking."""
  scale = wanted / given
  centres = (np.arange(wanted) + 0.5) / scale - 0.5
  distance = np.abs(centres[:, None] - np.arange(given))
  weights = np.maximum(0, 1 - distance * min(scale, 1))
  return weights / weights.sum(axis=1, keepdims=True)


def resize_patch_kernel(
  kernel: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
  """A kernel for patches of another size that gives nearly the same tokens.

  The pseudo-inverse resize of FlexiViT (arXiv 2212.08013, section 3.4): with B
  resizing a patch, the w' that brings ⟨Bx, w'⟩ nearest to ⟨x, w⟩ is pinv(Bᵀ)·w.
  They are equal for every patch x when patches grow.

  Args:
    kernel: [P, P, C, D].
    size: (height, width) of the patches wanted.
  """
  rows, columns = (
    np.linalg.pinv(_linear_resize(given, wanted).T)
    for given, wanted in zip(kernel.shape[:2], size, strict=True)
  )
  return np.einsum(
    'Hh,Ww,hwcd->HWcd', rows, columns, kernel, optimize=True
  ).astype(kernel.dtype)


def _grid_of_file(num_positions, grid, source_grid):
  """(rows, columns) of the positions in a file."""
  if source_grid is not None:
    if math.prod(source_grid) != num_positions:
      raise ValueError(
        f'source_grid {tuple(source_grid)} has {math.prod(source_grid)} '
        f'positions, and the file {num_positions}'
      )
    return tuple(source_grid)
  if math.prod(grid) == num_positions:
    return tuple(grid)
  side = math.isqrt(num_positions)
  if side**2 == num_positions:
    return side, side
  possible = [
    (rows, num_positions // rows)
    for rows in range(1, num_positions + 1)
    if num_positions % rows == 0
  ]
  raise ValueError(
    f'position embeddings: {num_positions} are no square grid; give '
    'source_grid, (rows, columns) of the images that the file was trained '
    'on: one of ' + ', '.join(map(str, possible))
  )


def resample_positions(
  embedding: np.ndarray,
  grid: tuple[int, int],
  source_grid: tuple[int, int] | None = None,
) -> np.ndarray:
  """Position embeddings of one grid of patches, resampled linearly to another.

  Corner positions stay where they are (section 3.2 of the ViT paper: a 2-D
  interpolation by location in the image).

  Args:
    embedding: [1, N, D].
    grid: (rows, columns) wanted.
    source_grid: (rows, columns) given; None as in `adapt`.

  Returns:
    [1, rows·columns, D].
  """
  rows, columns = _grid_of_file(embedding.shape[1], grid, source_grid)
  if tuple(grid) == (rows, columns):
    return embedding
  image = embedding.reshape(rows, columns, -1)
  return _resample(image, grid).reshape(1, grid[0] * grid[1], -1)


def resample_relative(
  table: np.ndarray,
  grid: tuple[int, int],
  source_grid: tuple[int, int] | None = None,
) -> np.ndarray:
  """Vectors for offsets between patches, of another grid of patches.

  An offset in patches, numbered row by row, is that of several displacements
  (down, across) in the image: of the last patch of a row to the first of the
  next, too. The vector of each displacement is interpolated linearly between
  those that the given grid has; that of an offset is their mean over all pairs
  of patches that are so far apart.

  Args:
    table: [2·N - 1, d], the middle one being that of offset 0.
    grid: (rows, columns) wanted.
    source_grid: (rows, columns) given; None as in `adapt`.

  Returns:
    [2·rows·columns - 1, d].
  """
  given = _grid_of_file((len(table) + 1) // 2, grid, source_grid)
  if tuple(grid) == given:
    return table
  wanted = tuple(2 * side - 1 for side in grid)
  vectors = _resample(table[_offsets(given)], wanted).reshape(
    -1, table.shape[1]
  )
  # Pairs of patches by displacement.
  pairs = np.outer(
    *(side - np.abs(np.arange(1 - side, side)) for side in grid)
  ).ravel()
  where = _offsets(grid).ravel()
  sums = np.zeros((2 * math.prod(grid) - 1, table.shape[1]))
  np.add.at(sums, where, vectors * pairs[:, None])
  return (sums / np.bincount(where, pairs)[:, None]).astype(table.dtype)


def _offsets(grid):
  """Where a relative table has a displacement [2·rows - 1, 2·columns - 1]."""
  rows, columns = grid
  down, across = (np.arange(1 - side, side) for side in grid)
  return down[:, None] * columns + across + rows * columns - 1


def _resample(table, sizes):
  """A table whose first axes have other sizes, linear in between."""
  factors = [
    wanted / given for wanted, given in zip(sizes, table.shape, strict=False)
  ]
  return scipy.ndimage.zoom(
    table, factors + [1] * (table.ndim - len(factors)), order=1
  )


def _adapt_positions(path, loaded, model, grid, source_grid):
  """Resampled positions, with a class token where the model has one."""
  embedding = np.asarray(loaded[path])
  token, patches = embedding[:, :0], embedding
  if param_paths.CLASS_TOKEN in loaded:
    token, patches = embedding[:, :1], embedding[:, 1:]
  if param_paths.CLASS_TOKEN not in model:
    token = token[:, :0]
  elif param_paths.CLASS_TOKEN not in loaded:
    token = np.asarray(model[path])[:, :1]
  patches = resample_positions(patches, grid, source_grid)
  if token.shape[-1] != patches.shape[-1]:  # of another width: an error follows
    return patches
  return np.concatenate([token, patches], axis=1)
