"""How the same arrays are spelled elsewhere, brought to today's spelling.

Each function takes and returns {'/'-joined path: array}, and leaves alone what
it does not know.
"""

import ml_dtypes
import numpy as np

# Before linen, modules in a block were numbered through, whatever their class.
_PRE_LINEN = {
    'LayerNorm_2': 'LayerNorm_1',
    'MlpBlock_3': 'MlpBlock_0',
    'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
}
_PREFIXES = ('opt/target/', 'target/', 'params/')
_GROUP_NORMS = ('gn1', 'gn2', 'gn3', 'gn_proj', 'gn_root')


def _path_from_pre_linen(path):
  return '/'.join(_PRE_LINEN.get(part, part) for part in path.split('/'))


def _without_prefix(flat):
  """Drops a prefix under which training states keep their parameters."""
  for prefix in _PREFIXES:
    inside = {path.removeprefix(prefix): array for path, array in flat.items()
              if path.startswith(prefix)}
    if inside:
      return _without_prefix(inside)
  return flat


def _array(path, array):
  if array.dtype == np.dtype('V2'):  # NumPy has no name for bfloat16
    array = array.view(ml_dtypes.bfloat16).astype(np.float32)
  if len(path.split('/')) > 1 and path.split('/')[-2] in _GROUP_NORMS:
    array = array.reshape(-1)  # stored as (1, 1, 1, C) by some
  return array


def to_linen(flat):
  """Published arrays under today's names, shapes and dtypes."""
  return {_path_from_pre_linen(path): _array(path, array)
          for path, array in _without_prefix(flat).items()}
