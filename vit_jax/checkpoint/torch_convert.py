"""Converts arrays between PyTorch's names and ours.

The tables in `torch_names` are used in both directions. `to_linen` converts the
arrays of a `.safetensors`, and `to_timm` makes the arrays that timm loads. Both
map {path: array} to {path: array} in NumPy. Neither changes a value, except
that `to_linen` adds position embeddings to registers.

PyTorch's files expect these settings, which no array contains:
- GELU is exact (ours: the tanh approximation).
- LayerNorm's epsilon is 1e-6 in timm (ours: 1e-6) and 1e-12 in Hugging Face's
  ViT.
- In the stem of a hybrid, GroupNorm's epsilon is 1e-5 (ours: 1e-6). Kernels are
  divided by sqrt(variance + 1e-8) (ours: deviation + 1e-5).
Files that timm converted from published JAX files were trained with our
settings.
"""

from collections.abc import Mapping
import math
import re

import numpy as np

from vit_jax.checkpoint import torch_names
from vit_jax.models import param_paths

_POSITIONS = param_paths.POSITIONS
_REGISTERS = param_paths.REGISTERS


def _to_linen_array(array, change, num_heads):
  if change == 'turned':
    return array.T
  if change == 'conv':  # [F, C, h, w] -> [h, w, C, F]
    return array.transpose(2, 3, 1, 0)
  if change == 'pointwise':  # [F, C, 1, 1] -> [C, F]
    return array[:, :, 0, 0].T
  if change == 'heads':  # [H·d, D] -> [D, H, d]; [H·d] -> [H, d]
    return array.T.reshape(*array.T.shape[:-1], num_heads, -1)
  if change == 'out':  # [D, H·d] -> [H, d, D]
    return array.T.reshape(num_heads, -1, array.shape[0])
  return array


def _to_torch_array(array, change):
  if change == 'turned':
    return array.T
  if change == 'conv':
    return array.transpose(3, 2, 0, 1)
  if change == 'pointwise':
    return array.T[:, :, None, None]
  if change == 'heads':
    return array.reshape(*array.shape[:-2], -1).T
  if change == 'out':
    return array.reshape(-1, array.shape[-1]).T
  return array


def _pattern(template):
  """Returns a regular expression for a path; {s+1} becomes the group s_1."""
  pattern = re.escape(template)
  pattern = re.sub(r'\\\{(\w)\\\}', r'(?P<\1>\\d+)', pattern)
  return re.compile(re.sub(r'\\\{(\w)\\\+1\\\}', r'(?P<\1_1>\\d+)', pattern))


def _fill(template, numbers):
  """Fills a path template; `numbers` has i, s, u or s_1, u_1 as strings."""
  values = {
    name[0]: int(number) - name.endswith('_1')
    for name, number in numbers.items()
  }
  template = re.sub(
    r'\{(\w)\+1\}', lambda match: str(values[match[1]] + 1), template
  )
  return template.format(**values)


def _rows(table):
  """Yields templates (our paths, their path, change) for each array."""
  for kind, here, there in table:
    folder, _, names = here.rpartition('/')
    folder = f'{folder}/' if folder else ''
    for suffix, torch_suffix, change in torch_names.ARRAYS[kind]:
      yield (
        [f'{folder}{name}{suffix}' for name in names.split('|')],
        there + torch_suffix,
        change,
      )


def _index(table, side):
  """Returns [(path pattern, row)]; side 0 has our paths, side 1 theirs."""
  return [
    (_pattern(row[0][0] if side == 0 else row[1]), row) for row in _rows(table)
  ]


def _lookup(index, path):
  for pattern, row in index:
    match = pattern.fullmatch(path)
    if match:
      return row, match.groupdict()
  return None, None


_WRAPPERS = r'(module|model|visual\.trunk|vit|_orig_mod)\.'
_NO_WEIGHTS = (
  r'(.*\.)?embeddings\.(mask_token|position_ids)'
  r'|(.*\.)?relative_position_index|(.*\.)?rope\.(?!freqs$).*'
)
# Parts of models that vit_jax cannot represent.
_REASONS = (
  (r'fc_norm\.', 'a norm after pooling (fc_norm); ours is before pooling'),
  (r'norm_pre\.', 'a norm before the first block, as in CLIP'),
  (
    r'(.*\.)?rel_pos|(.*\.)?relative_position',
    'a table of relative positions in the style of Swin, or for all blocks',
  ),
  (r'dist_token|head_dist\.', 'a distillation token'),
  (r'(.*\.)?(w12|fc1_g|fc1_x)\.', 'gated MLPs'),
)


def is_torch(flat: Mapping[str, np.ndarray]) -> bool:
  """Returns whether the names are PyTorch's."""
  return any(re.search(r'\.(weight|bias|gamma)$', path) for path in flat)


def _table(flat):
  if 'stem.proj.weight' in flat:
    return torch_names.TIMM_MIXER
  if 'stem.conv.weight' in flat:
    return torch_names.TIMM_BIT
  if any(re.match(r'embeddings\.', path) for path in flat):
    return torch_names.HF_VIT
  return torch_names.TIMM_VIT + torch_names.TIMM_ROOT


def without_buffers(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes arrays that no model computes with."""
  return {
    path: array
    for path, array in flat.items()
    if not re.fullmatch(_NO_WEIGHTS, path)
  }


def _unwrapped(flat):
  """Removes the names of wrapper modules, and arrays that are not weights."""
  while flat and any(re.match(_WRAPPERS, path) for path in flat):
    flat = {
      re.sub(f'^{_WRAPPERS}', '', path): array for path, array in flat.items()
    }
  return without_buffers(flat)


def infer_num_heads(flat: Mapping[str, np.ndarray]) -> int | None:
  """Infers the number of attention heads from the width of the tokens.

  Returns:
    The number of heads; None if the model has no attention.

  Raises:
    ValueError: no known model has this width.
  """
  flat = _unwrapped(flat)
  table = _table(flat)
  if table in (torch_names.TIMM_MIXER, torch_names.TIMM_BIT):
    return None
  for path, array in flat.items():
    if path.endswith('attn.q_norm.weight'):
      width = flat[path.replace('q_norm', 'proj')].shape[1]
      return width // len(array)
  norm = flat.get('norm.weight', flat.get('layernorm.weight'))
  width = 0 if norm is None else len(norm)
  if width in (1152, 1280, 1408, 1664):  # So400m, H, g, G
    return 16
  if width and width % 64 == 0:
    return width // 64
  raise ValueError(
    f'the file does not contain the number of attention heads, and its width '
    f'{width} does not determine the number. Use num_heads=…'
  )


def to_linen(
  flat: Mapping[str, np.ndarray],
  num_heads: int | None,
  all_positions: bool | None = None,
) -> dict[str, np.ndarray]:
  """Returns arrays of timm or Hugging Face with our names.

  Missing biases of attention become zeros. Our registers have no position
  embeddings, so the file's position embeddings are added to its registers.

  Args:
    flat: {path: array}.
    num_heads: attention heads in each block; None without attention.
    all_positions: whether class token and registers have position embeddings.
      None: inferred from whether the patches form a square grid.

  Raises:
    ValueError: lists the names that have no counterpart in vit_jax.
  """
  flat = _with_frequencies_of_blocks(_unwrapped(flat))
  index, found, unknown = _index(_table(flat), 1), {}, []
  for path, array in flat.items():
    row, numbers = _lookup(index, path)
    if row is None:
      unknown.append(path)
      continue
    here, _, change = row
    if change == 'zeros':
      if np.any(array):
        raise ValueError(
          f'{path} is not zero, but norms of queries and keys have no bias in '
          'vit_jax. Use other weights.'
        )
      continue
    if change in ('heads', 'out'):
      width = (
        array.shape[0] // len(here) if change == 'heads' else (array.shape[-1])
      )
      if width % num_heads:
        raise ValueError(
          f'num_heads={num_heads} does not divide {width}, the width of {path} '
          f'{array.shape}. Use a divisor of {width}.'
        )
    for name, part in zip(here, np.split(array, len(here)), strict=True):
      found[_fill(name, numbers)] = _to_linen_array(part, change, num_heads)
  if unknown:
    raise ValueError(_complaint(unknown, flat))
  return _our_positions(_with_biases(found), all_positions)


def _complaint(unknown, flat):
  reasons = [
    reason
    for pattern, reason in _REASONS
    if any(re.match(pattern, path) for path in unknown)
  ]
  return (
    'vit_jax has no counterpart of these arrays'
    + (f' ({"; ".join(reasons)})' if reasons else '')
    + ':\n'
    + '\n'.join(f'  {path} {flat[path].shape}' for path in sorted(unknown))
    + '\nUse other weights.'
  )


def _with_biases(found):
  """Adds zeros for missing attention biases (timm's qkv_bias=False)."""
  missing = {}
  for path, array in found.items():
    bias = path.removesuffix('kernel') + 'bias'
    if re.search(rf'{param_paths.ATTENTION}/(query|key|value)/kernel$', path):
      if bias not in found:
        missing[bias] = np.zeros(array.shape[1:], array.dtype)
  return found | missing


def _our_positions(found, all_positions):
  """Converts timm's positions to ours, in which registers have no positions."""
  positions = found.get(_POSITIONS)
  if positions is None:
    return found
  num_tokens = int(param_paths.CLASS_TOKEN in found)
  registers = found.get(_REGISTERS, positions[:, :0])
  around = num_tokens + registers.shape[1]
  if all_positions is None:
    num_patches = positions.shape[1] - around
    all_positions = (
      math.isqrt(max(num_patches, 0)) ** 2 == num_patches
      or math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]
    )
  if not all_positions:  # This is timm's `no_embed_class`.
    token = np.zeros_like(positions[:, :num_tokens])
    return found | {_POSITIONS: np.concatenate([token, positions], axis=1)}
  if registers.shape[1]:
    found[_REGISTERS] = registers + positions[:, num_tokens:around]
    found[_POSITIONS] = np.delete(positions, np.s_[num_tokens:around], axis=1)
  return found


def _with_frequencies_of_blocks(flat):
  """Splits timm's [2, blocks, H, d / 2] of mixed rotary positions."""
  stacked = flat.get('rope.freqs')
  if stacked is None:
    return flat
  rest = {path: array for path, array in flat.items() if path != 'rope.freqs'}
  return rest | {
    f'blocks.{i}.rope.freqs': x for i, x in enumerate(stacked.swapaxes(0, 1))
  }


def _with_stacked_frequencies(flat):
  """Undoes `_with_frequencies_of_blocks`."""
  own = {
    path for path in flat if re.fullmatch(r'blocks\.\d+\.rope\.freqs', path)
  }
  if not own:
    return flat
  rest = {path: array for path, array in flat.items() if path not in own}
  arrays = [flat[f'blocks.{i}.rope.freqs'] for i in range(len(own))]
  return rest | {'rope.freqs': np.stack(arrays, axis=1)}


def _timm_positions(flat):
  """Inserts zeros after the class token, as the positions of registers."""
  if _REGISTERS not in flat or _POSITIONS not in flat:
    return flat
  num_tokens = int(param_paths.CLASS_TOKEN in flat)
  where = [num_tokens] * flat[_REGISTERS].shape[1]
  return flat | {_POSITIONS: np.insert(flat[_POSITIONS], where, 0, axis=1)}


def to_timm(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns our arrays with the names that timm's models load.

  Raises:
    ValueError: lists the arrays that have no name in timm.
  """
  table = (
    torch_names.TIMM_MIXER
    if param_paths.MIXER_PATCHES in flat
    else torch_names.TIMM_BIT
    if f'{param_paths.BIT_NORM}/scale' in flat
    else torch_names.TIMM_VIT
  )
  if 'block1/unit1/conv1/kernel' not in flat:
    table = torch_names.TIMM_ROOT + table
  flat = _timm_positions(flat)
  index, found, done = _index(table, 0), {}, set()
  for path in flat:
    row, numbers = _lookup(index, path)
    if row is None:
      continue
    here, there, change = row
    parts = [_fill(name, numbers) for name in here]
    if all(part in flat for part in parts):
      found[_fill(there, numbers)] = np.concatenate(
        [_to_torch_array(flat[part], change) for part in parts]
      )
      done.update(parts)
    if path.endswith(('query_ln/scale', 'key_ln/scale')):
      found[_fill(there, numbers).replace('weight', 'bias')] = np.zeros_like(
        flat[path]
      )
  if flat.keys() - done:
    raise ValueError(
      'timm has no names for:\n'
      + '\n'.join(
        f'  {path} {np.shape(flat[path])}'
        for path in sorted(flat.keys() - done)
      )
      + '\nSave an .npz instead.'
    )
  return _with_stacked_frequencies(found)
