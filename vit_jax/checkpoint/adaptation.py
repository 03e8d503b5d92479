"""Adapts weights of one model to another task, image size or patch size.

This module works on nested dicts of arrays and uses no model class.

Shapes:  P patch size · C input channels · D width of a token · N patches
"""

from collections.abc import Mapping
import math
import re
from typing import Any

from flax import traverse_util
import numpy as np
import scipy.ndimage

from vit_jax.checkpoint import fit_errors
from vit_jax.models import param_paths

# With a new head, these arrays may be missing or randomly initialized.
_TOWARDS_HEAD = (
  param_paths.CLASS_TOKEN,
  param_paths.REGISTERS,
  param_paths.POOLING,
  param_paths.HEAD_NORM,
)
# Kernels of the patch embeddings. In hybrids, they are applied to features of
# the stem, and only the stem's root convolution is applied to the image.
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
  """Returns the weights of a file, adapted to a model.

  All kinds of position embeddings are resampled to `grid`. Kernels that are
  applied to the image are converted to the model's number of input channels. If
  the head is not kept:
  - the head is randomly initialized;
  - `pre_logits`, class token, registers, attention pooling and the norm before
    the head are each dropped if the model does not have them;
  - all of these but `pre_logits` are each newly initialized if the file does
    not have them;
  - the norm after the blocks is dropped if the model has a norm before the head
    in its place, as when MAE's authors fine-tune (facebookresearch/mae).

  Args:
    loaded: parameters of the file, from `weights_file.load`.
    initial: randomly initialized parameters of the model.
    grid: (rows, columns) of patches in the model's images.
    keep_head: whether the model keeps the file's head. Then the model must have
      the file's number of classes, class token and representation layer.
    source_grid: (rows, columns) of patches in the file's training images. None:
      `grid` if the number of patches is equal, else a square.
    resize_patches: whether the file may have another patch size.

  Returns:
    A nested dict with the paths, shapes and dtypes of `initial`.

  Raises:
    ValueError: lists every array that is missing, unused or of wrong shape.
  """
  flat = {
    path: _at_least_32_bits(array)
    for path, array in traverse_util.flatten_dict(loaded, sep='/').items()
  }
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
      and (path in model or not _is_replaced(path, wanted))
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
    elif path.endswith(param_paths.RELATIVE_TABLE):
      adapted[path] = _adapt_table(path, flat, model, grid, source_grid)
    elif name in ('rows', 'columns') and 'posembed' in folder:
      adapted[path] = _resample(
        np.asarray(flat[path]), (grid[name == 'columns'],)
      )
  _fit_biases(adapted, model)
  fit_errors.check(adapted, model, flat, keep_head)
  return traverse_util.unflatten_dict(
    {
      path: np.asarray(adapted[path], dtype=model[path].dtype) for path in model
    },
    sep='/',
  )


def _is_replaced(path, modules):
  """Returns whether a norm before the head is in the place of an array."""
  is_norm = path.startswith(param_paths.ENCODER_NORM)
  return is_norm and param_paths.HEAD_NORM in modules


def _at_least_32_bits(array):
  """Returns an array that SciPy can resample; it cannot resample 16 bits."""
  array = np.asarray(array)
  return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _fit_biases(adapted, model):
  """Adds or removes biases of attention that are zero: they change nothing."""
  for path in adapted.keys() ^ model.keys():
    if re.search(r'/(query|key|value|query_ln|key_ln)/bias$', path):
      if path in model:
        adapted[path] = np.zeros(model[path].shape, model[path].dtype)
      elif not np.any(adapted[path]):
        del adapted[path]


def _adapt_kernel(kernel, shape, resize_patches):
  if kernel.shape[2] != shape[2]:
    kernel = change_channels(kernel, shape[2])
  if resize_patches and kernel.shape[:2] != shape[:2]:
    kernel = resize_patch_kernel(kernel, shape[:2])
  return kernel


def change_channels(kernel: np.ndarray, num_channels: int) -> np.ndarray:
  """Returns a kernel for images with another number of channels.

  For 1 channel, the kernel is the sum over channels, so a gray image has the
  output of its RGB version. For more channels, channel i is a copy of channel i
  mod C, divided by the number of copies of that channel. If an image's channels
  are repeated in this way, the output does not change.

  Both statements hold for patch embeddings. The stem's convolution standardizes
  its kernel and so undoes the change of scale. In the stem, each output channel
  is therefore multiplied by a different factor.

  Args:
    kernel: [P, P, C, D].
    num_channels: number of channels of the new kernel.
  """
  given = kernel.shape[2]
  fold = np.zeros((num_channels, given), kernel.dtype)
  longer = np.arange(max(num_channels, given))
  fold[longer % num_channels, longer % given] = 1
  # Each copy of a channel is divided by the number of its copies.
  fold /= fold.sum(axis=0)
  return np.einsum('nc,hwcd->hwnd', fold, kernel)


def _linear_resize(given, wanted):
  """Returns the matrix [wanted, given] of antialiased linear resizing."""
  scale = wanted / given
  centers = (np.arange(wanted) + 0.5) / scale - 0.5
  distance = np.abs(centers[:, None] - np.arange(given))
  weights = np.maximum(0, 1 - distance * min(scale, 1))
  return weights / weights.sum(axis=1, keepdims=True)


def resize_patch_kernel(
  kernel: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
  """Returns a kernel for another patch size that computes similar tokens.

  This is the pseudo-inverse resize of FlexiViT (arXiv 2212.08013, section 3.4).
  If B resizes a patch, w' = pinv(Bᵀ)·w makes ⟨Bx, w'⟩ as close as possible to
  ⟨x, w⟩. For larger patches, both products are equal for every patch x.

  Args:
    kernel: [P, P, C, D].
    size: (height, width) of the new patches.
  """
  rows, columns = (
    np.linalg.pinv(_linear_resize(given, wanted).T)
    for given, wanted in zip(kernel.shape[:2], size, strict=True)
  )
  return np.einsum(
    'Hh,Ww,hwcd->HWcd', rows, columns, kernel, optimize=True
  ).astype(kernel.dtype)


def _grid_of_file(num_positions, grid, source_grid):
  """Returns (rows, columns) of the positions in a file."""
  if source_grid is not None:
    if math.prod(source_grid) != num_positions:
      raise ValueError(
        f'source_grid={tuple(source_grid)} has {math.prod(source_grid)} '
        f'positions, but the file has {num_positions} position embeddings. Use '
        'the grid (rows, columns) of the patches in its training images.'
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
    f'the file has {num_positions} position embeddings, which are not a square '
    'grid. Use source_grid=(rows, columns) of the patches in its training '
    'images, one of ' + ', '.join(map(str, possible))
  )


def resample_positions(
  embedding: np.ndarray,
  grid: tuple[int, int],
  source_grid: tuple[int, int] | None = None,
) -> np.ndarray:
  """Resamples position embeddings linearly to another grid of patches.

  Section 3.2 of the ViT paper (2-D interpolation by location in the image).
  Embeddings of corner patches do not change.

  Args:
    embedding: [1, N, D].
    grid: (rows, columns) of the result.
    source_grid: (rows, columns) of `embedding`; None: as in `adapt`.

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
  """Resamples relative position embeddings to another grid of patches.

  Patches are numbered row by row, and an offset is a difference of two numbers.
  One offset belongs to several displacements (down, across). For example,
  offset 1 is also the step from the end of a row to the start of the next row.

  Each displacement first gets the vector of its offset. These vectors are
  interpolated linearly to the displacements in the new grid. The new vector of
  an offset is their mean over all pairs of patches with this offset.

  Args:
    table: [2·N - 1, d]; the middle row belongs to offset 0.
    grid: (rows, columns) of the result.
    source_grid: (rows, columns) of `table`; None: as in `adapt`.

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
  # The number of pairs of patches for each displacement.
  pairs = np.outer(
    *(side - np.abs(np.arange(1 - side, side)) for side in grid)
  ).ravel()
  where = _offsets(grid).ravel()
  sums = np.zeros((2 * math.prod(grid) - 1, table.shape[1]))
  np.add.at(sums, where, vectors * pairs[:, None])
  return (sums / np.bincount(where, pairs)[:, None]).astype(table.dtype)


def _offsets(grid):
  """Returns the table indices of displacements [2·rows - 1, 2·columns - 1]."""
  rows, columns = grid
  down, across = (np.arange(1 - side, side) for side in grid)
  return down[:, None] * columns + across + rows * columns - 1


def resample_table(
  table: np.ndarray,
  grid: tuple[int, int],
  source_grid: tuple[int, int] | None = None,
) -> np.ndarray:
  """Resamples logits of 2-D offsets between patches to another grid.

  This is BEiT's method (arXiv 2106.08254, code of its fine-tuning), as timm
  computes it. The offsets 1, 2, … of the table are stretched to 1, 1 + q,
  1 + q + q², …, so that the largest offsets of both grids agree. Logits of
  small offsets hardly change. Between them, the interpolation is linear.

  Args:
    table: [(2·rows - 1)·(2·columns - 1), H], offsets row by row.
    grid: (rows, columns) of the result.
    source_grid: (rows, columns) of `table`; None: `grid` if the number of
      offsets is equal, else a square.
  """
  given = tuple(grid)
  if source_grid is not None:
    given = tuple(source_grid)
  elif len(table) != _num_offsets(grid):
    given = ((math.isqrt(len(table)) + 1) // 2,) * 2
  if len(table) != _num_offsets(given):
    raise ValueError(
      f'the file has relative positions of {len(table)} offsets, which are not '
      f'those of {given[0]} x {given[1]} patches. Use source_grid=(rows, '
      'columns) of the patches in its training images.'
    )
  if tuple(grid) == given:
    return table
  down, across = map(_stretch, given, grid)
  image = table.reshape(2 * given[0] - 1, 2 * given[1] - 1, -1)
  image = np.einsum('rR,cC,RCh->rch', down, across, image, optimize=True)
  return image.reshape(-1, table.shape[1]).astype(table.dtype)


def _num_offsets(grid):
  return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def _stretch(given, wanted):
  """Returns the matrix [2·wanted - 1, 2·given - 1] of one axis."""
  low, high = 1.01, 1.5
  # Another tolerance would change the result by about 1e-4.
  while high - low > 1e-6:
    ratio = (low + high) / 2
    if (ratio ** (given - 1) - 1) / (ratio - 1) > wanted - 1:
      high = ratio
    else:
      low = ratio
  right = np.cumsum(ratio ** np.arange(given - 1))
  places = np.concatenate([-right[::-1], [0], right])
  offsets = np.arange(1 - wanted, wanted)
  columns = [np.interp(offsets, places, unit) for unit in np.eye(len(places))]
  return np.stack(columns, axis=1)


def _adapt_table(path, loaded, model, grid, source_grid):
  """Resamples a table, and adds or removes the logits of the class token."""
  table, entries = np.asarray(loaded[path]), None
  if param_paths.CLASS_TOKEN in loaded:
    table, entries = table[:-3], table[-3:]
  table = resample_table(table, grid, source_grid)
  if param_paths.CLASS_TOKEN not in model:
    return table
  if entries is None:
    entries = np.asarray(model[path])[-3:]
  # If the numbers of heads differ, `fit_errors.check` reports it later.
  same = entries.shape[1] == table.shape[1]
  return np.concatenate([table, entries]) if same else table


def _resample(table, sizes):
  """Resizes the first axes of a table with linear interpolation.

  Row i of the result is read at i * ((given - 1) / (wanted - 1)). For about 240
  pairs of lengths up to 96, such as 28 to 48, rounding puts the last row after
  the end of the table. There, the default mode of SciPy returns zeros, as in
  the original code. `nearest` moves it to the end. No other value changes.
  """
  factors = [
    wanted / given for wanted, given in zip(sizes, table.shape, strict=False)
  ]
  return scipy.ndimage.zoom(
    table, factors + [1] * (table.ndim - len(factors)), order=1, mode='nearest'
  )


def _adapt_positions(path, loaded, model, grid, source_grid):
  """Resamples positions; adds or removes the position of the class token."""
  embedding = np.asarray(loaded[path])
  given, wanted = (
    np.shape(flat.get(param_paths.CLASS_TOKEN, np.zeros((1, 0))))[1]
    for flat in (loaded, model)
  )
  token, patches = embedding[:, :given], embedding[:, given:]
  if wanted and not given:
    token = np.asarray(model[path])[:, :wanted]
  token = token[:, :wanted]
  patches = resample_positions(patches, grid, source_grid)
  # If the widths differ, `fit_errors.check` reports it later.
  if token.shape[-1] != patches.shape[-1]:
    return patches
  return np.concatenate([token, patches], axis=1)
