"""Published weights: read a file, adapt it to a task, check it, write it.

Works on nested dicts of arrays and knows no model class.
"""

import os

from flax import traverse_util
import numpy as np
import scipy.ndimage

from vit_jax import layouts
from vit_jax.models import variants

_POSITIONS = 'Transformer/posembed_input/pos_embedding'
_TOKEN = 'cls'


def flatten(params):
  """{'/'-joined path: array} of a nested dict."""
  return traverse_util.flatten_dict(params, sep='/')


def load(path):
  """The parameters in an `.npz`, as a nested dict of NumPy arrays.

  Any published spelling of the names is accepted. Pickled content is refused.

  Raises:
    ValueError: the file is damaged or no NumPy archive.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      flat = {key: file[key] for key in file.files}
    if not all(isinstance(array, np.ndarray) for array in flat.values()):
      raise ValueError('it holds something other than NumPy arrays')
    return traverse_util.unflatten_dict(layouts.to_linen(flat), sep='/')
  except OSError:
    raise
  except Exception as error:  # zipfile, zlib and NumPy each raise their own
    raise ValueError(
        f'{path} ({os.path.getsize(path)} bytes) cannot be read as a NumPy '
        f'.npz archive of parameters: {error}. Is it truncated? Fetch it '
        'again.') from error


def save(path, params):
  """Writes `params` in the published layout; the file appears when whole."""
  flat = {key: np.asarray(value) for key, value in flatten(params).items()}
  partial = f'{path}.partial'
  try:
    with open(partial, 'wb') as file:
      np.savez(file, **flat)
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def _square_side(num_positions, path):
  side = round(num_positions**0.5)
  if side**2 != num_positions:
    raise ValueError(
        f'{path}: {num_positions} positions are no square grid, with or '
        'without a class token')
  return side


def resample_positions(embedding, grid):
  """Position embeddings of a square grid, resampled linearly to `grid`.

  Corner positions stay where they are (section 3.2 of the ViT paper: a 2-D
  interpolation by location in the image).

  Args:
    embedding: [1, G·G, D].
    grid: (rows, columns) wanted.

  Returns:
    [1, rows·columns, D].
  """
  side = _square_side(embedding.shape[1], _POSITIONS)
  if grid == (side, side):
    return embedding
  image = embedding.reshape(side, side, -1)
  zoom = (grid[0] / side, grid[1] / side, 1)
  return scipy.ndimage.zoom(image, zoom, order=1).reshape(
      1, grid[0] * grid[1], -1)


def _adapt_positions(loaded, model, grid):
  """Resampled positions, with a class token where the model has one."""
  embedding = np.asarray(loaded[_POSITIONS])
  token, patches = embedding[:, :0], embedding
  if _TOKEN in loaded:
    token, patches = embedding[:, :1], embedding[:, 1:]
  if _TOKEN not in model:
    token = token[:, :0]
  elif _TOKEN not in loaded:
    token = np.asarray(model[_POSITIONS])[:, :1]
  return np.concatenate([token, resample_positions(patches, grid)], axis=1)


def adapt(loaded, initial, grid, keep_head=False):
  """Weights of a file fitted to a model for another task.

  The head is the model's own fresh one. `pre_logits` is dropped where the model
  has none. Position embeddings are resampled to `grid`. A class token that the
  model lacks is dropped, one that the file lacks starts afresh.

  Args:
    loaded: parameters of the file, from `load`.
    initial: freshly initialised parameters of the model.
    grid: (rows, columns) of patches in the model's images.
    keep_head: take the file's head instead, to evaluate or train on.

  Returns:
    A nested dict with the paths, shapes and dtypes of `initial`.

  Raises:
    ValueError: lists every array that is missing, left over or of wrong shape.
  """
  flat, model = flatten(loaded), flatten(initial)
  adapted = {path: value for path, value in flat.items()
             if path.split('/')[0] not in ('head', 'pre_logits', _TOKEN)
             or path in model}
  adapted.update({path: value for path, value in model.items()
                  if path.split('/')[0] == 'head' and not keep_head
                  or path == _TOKEN and _TOKEN not in flat})
  if _POSITIONS in flat and _POSITIONS in model:
    adapted[_POSITIONS] = _adapt_positions(flat, model, grid)
  _check(adapted, model, flat)
  return traverse_util.unflatten_dict(
      {path: np.asarray(adapted[path], dtype=model[path].dtype)
       for path in model}, sep='/')


def _check(adapted, model, flat):
  """Raises a ValueError that lists every path where the two differ."""
  problems = [f'  missing from the file: {path} {np.shape(model[path])}'
              for path in sorted(model.keys() - adapted.keys())]
  problems += [f'  not in the model: {path} {np.shape(adapted[path])}'
               for path in sorted(adapted.keys() - model.keys())]
  problems += [
      f'  {path}: {np.shape(adapted[path])} in the file, '
      f'{np.shape(model[path])} in the model'
      for path in sorted(model.keys() & adapted.keys())
      if np.shape(adapted[path]) != np.shape(model[path])]
  if problems:
    fitting = variants.fitting({p: np.shape(v) for p, v in flat.items()})
    raise ValueError(
        'the weights do not fit the model:\n' + '\n'.join(problems)
        + ('\nThe file fits config.model.name=' + ' or '.join(fitting)
           if fitting else ''))
