"""Converts arrays between PyTorch's names and ours.

The tables of names are used in both directions: those of timm are in
`torch_names`, those of Hugging Face in `hugging_face_names`. `to_linen`
converts the arrays of timm, and `to_timm` makes the arrays that timm loads.
Both map {path: array} to {path: array} in NumPy. Neither changes a value,
except that `to_linen` adds position embeddings to registers.

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
from collections.abc import Sequence
import math
import re

import numpy as np

from vit_jax.checkpoint.other_libraries import name_tables
from vit_jax.checkpoint.other_libraries import torch_layouts
from vit_jax.checkpoint.other_libraries import torch_names
from vit_jax.models import param_paths

_POSITIONS = param_paths.POSITIONS
_REGISTERS = param_paths.REGISTERS


_WRAPPERS = r'(module|model|visual\.trunk|vit|_orig_mod)\.'
_NO_WEIGHTS = (
  r'(.*\.)?embeddings\.(mask_token|position_ids)'
  r'|(.*\.)?relative_position_index|(.*\.)?rope\.(?!freqs$).*'
)
_DECODER = r'mask_token|decoder_.*'  # of a masked autoencoder: `mae_decoder`
# Last layers of attention in timm and Hugging Face, whose inputs are all heads.
_OUTPUTS = (
  'attn.proj.weight',
  *(f'.{x}.weight' for x in ('attention.output.dense', 'out_proj', 'o_proj')),
)


def is_torch(flat: Mapping[str, np.ndarray]) -> bool:
  """Returns whether the names are PyTorch's."""
  return any(re.search(r'\.(weight|bias|gamma)$', path) for path in flat)


def _table(flat):
  if 'stem.proj.weight' in flat:
    return torch_names.TIMM_MIXER
  if 'stem.conv.weight' in flat:
    return torch_names.TIMM_BIT
  tables = torch_names.TIMM_VIT, torch_names.TIMM_ROOT, torch_names.PARALLEL
  if _is_packed(flat):
    tables = torch_names.PACKED_GATE, *tables
  return sum((*tables, *torch_names.ALTERNATIVES.values()), ())


def _is_packed(flat):
  """Returns whether `fc1` has gates and values: twice the inputs of `fc2`."""
  return any(
    len(array) == 2 * flat[path.replace('fc1', 'fc2')].shape[1]
    for path, array in flat.items()
    if path.endswith('mlp.fc1.weight') and path.replace('fc1', 'fc2') in flat
  )


def without_buffers(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes arrays that no model computes with."""
  return {
    path: array
    for path, array in flat.items()
    if not re.fullmatch(_NO_WEIGHTS, path)
  }


def _unwrapped(flat):
  """Removes the names of wrapper modules, and what no encoder computes with."""
  while flat and any(re.match(_WRAPPERS, path) for path in flat):
    flat = {
      re.sub(f'^{_WRAPPERS}', '', path): array for path, array in flat.items()
    }
  return {
    path: array
    for path, array in without_buffers(flat).items()
    if not re.fullmatch(_DECODER, path)
  }


def likely_heads(width: int) -> list[int]:
  """Returns numbers of heads with 32 to 128 features, or else all possible."""
  possible = [n for n in range(1, width + 1) if width % n == 0]
  return [n for n in possible if 32 <= width // n <= 128] or possible


def find_num_heads(flat: Mapping[str, np.ndarray]) -> int | None:
  """Returns the number of attention heads, if the arrays determine it.

  Returns:
    The number of heads; None if the model has no attention.

  Raises:
    ValueError: any divisor of the width is possible.
  """
  flat = _unwrapped(flat)
  if _table(flat) in (torch_names.TIMM_MIXER, torch_names.TIMM_BIT):
    return None
  for path, array in flat.items():
    if path.endswith('attn.q_norm.weight'):
      return flat[path.replace('q_norm', 'proj')].shape[1] // len(array)
    if path.endswith('relative_position_bias_table'):
      return array.shape[1]
  width = next(
    (x.shape[1] for path, x in flat.items() if path.endswith(_OUTPUTS)), 0
  )
  likely = ', '.join(map(str, likely_heads(width)))
  raise ValueError(
    'the file does not contain the number of attention heads, and neither '
    f'does a config.json next to it. Its width {width} is possible with '
    f'{likely} heads. Use config.model.num_heads=…'
  )


def to_linen(
  flat: Mapping[str, np.ndarray],
  num_heads: int | None,
  all_positions: bool | None = None,
  pool_heads: int | None = None,
) -> dict[str, np.ndarray]:
  """Returns arrays of timm with our names.

  Our registers have no position embeddings, so the file's position embeddings
  are added to its registers.

  Args:
    flat: {path: array}.
    num_heads: attention heads in each block; None without attention.
    all_positions: whether class token and registers have position embeddings.
      None: inferred from whether the patches form a square grid.
    pool_heads: attention heads of the pooling; None: `num_heads`.

  Raises:
    ValueError: lists the names that have no counterpart in vit_jax.
  """
  flat = torch_layouts.to_usual(_unwrapped(flat))
  found = name_tables.read(flat, _table(flat), num_heads, pool_heads)
  return _our_positions(found, all_positions)


def _our_positions(found, all_positions):
  """Converts timm's positions to ours, in which registers have no positions."""
  positions = found.get(_POSITIONS)
  if positions is None:
    return found
  num_tokens = _num_tokens(found)
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


def _num_tokens(flat):
  """Returns the number of class tokens, with the distillation token."""
  tokens = flat.get(param_paths.CLASS_TOKEN)
  return 0 if tokens is None else tokens.shape[1]


def _timm_positions(flat, all_positions):
  """Inserts zeros for the registers, or adds positions to the class token."""
  if _POSITIONS not in flat:
    return flat
  num_tokens, positions = _num_tokens(flat), flat[_POSITIONS]
  if all_positions:
    where = [num_tokens] * flat.get(_REGISTERS, positions[:, :0]).shape[1]
    return flat | {_POSITIONS: np.insert(positions, where, 0, axis=1)}
  if num_tokens:
    flat = flat | {
      param_paths.CLASS_TOKEN: flat[param_paths.CLASS_TOKEN]
      + positions[:, :num_tokens]
    }
  return flat | {_POSITIONS: positions[:, num_tokens:]}


def _with_biases(flat):
  """Adds zeros for biases that timm's norms of queries and keys have."""
  if param_paths.block(0) + 'LayerNorm_0/bias' not in flat:
    return flat  # RMS norms
  return {
    path.replace('_ln/scale', '_ln/bias'): np.zeros_like(array)
    for path, array in flat.items()
    if path.endswith(('query_ln/scale', 'key_ln/scale'))
  } | flat


def to_timm(
  flat: Mapping[str, np.ndarray],
  names: Sequence[str] = (),
  all_positions: bool = True,
) -> dict[str, np.ndarray]:
  """Returns our arrays with the names that timm's models load.

  Args:
    flat: {path: array}.
    names: keys of `torch_names.ALTERNATIVES`, for modules that do not have
      their usual names; see `timm_settings.array_names`.
    all_positions: whether class token and registers have position embeddings in
      timm. If not, those of the class token are added to the token.

  Raises:
    ValueError: lists the arrays that have no name in timm.
  """
  table = (
    torch_names.TIMM_MIXER
    if param_paths.MIXER_PATCHES in flat
    else torch_names.TIMM_BIT
    if f'{param_paths.BIT_NORM}/scale' in flat
    else torch_names.PACKED_GATE + torch_names.TIMM_VIT
  )
  if 'block1/unit1/conv1/kernel' not in flat:
    table = torch_names.TIMM_ROOT + table
  if any('MultiHeadDotProductAttention_10/' in path for path in flat):
    table = torch_names.PARALLEL + table
  for name in names:
    table = torch_names.ALTERNATIVES[name] + table
  # Without a bias of the key, only these names remain.
  table += torch_names.ALTERNATIVES['separate_bias']
  flat = _with_biases(_timm_positions(dict(flat), all_positions))
  return torch_layouts.from_usual(name_tables.write(flat, table, 'timm'))
