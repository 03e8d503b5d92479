"""Arrays of timm that belong to several of our arrays, or to part of one.

`to_usual` splits and merges them into the arrays of timm's usual block, which
have counterparts in `torch_names`. `from_usual` is the opposite. Both map
{path: array} to {path: array}, and keep the outputs of the model.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re

import numpy as np

_Flat = dict[str, np.ndarray]
# Names in timm of both tokens and both heads of DeiT.
_TWO_HEADS = 'cls_token', 'dist_token', 'head', 'head_dist'

# Names in timm's ParallelScalingBlock, and those of the usual block.
_SCALING = {
  'in_norm': 'norm1',
  'q_norm': 'attn.q_norm',
  'k_norm': 'attn.k_norm',
  'attn_out_proj': 'attn.proj',
  'mlp_out_proj': 'mlp.fc2',
  'mlp_bias': 'mlp.fc1.bias',
  'ls': 'ls1',
}


def to_usual(flat: Mapping[str, np.ndarray]) -> _Flat:
  """Returns arrays of timm with the names of its usual models."""
  return _split_scaling(merge_heads(_split_frequencies(dict(flat))))


def from_usual(flat: Mapping[str, np.ndarray]) -> _Flat:
  """Returns arrays of timm with the names that the model's class has."""
  return _merge_frequencies(split_heads(_merge_scaling(dict(flat))))


def _renamed(flat, names):
  """Replaces names of modules in blocks."""
  pattern = '|'.join(re.escape(name) for name in names)
  return {
    re.sub(
      rf'^(blocks\.\d+\.)({pattern})(?=\.|$)',
      lambda match: match[1] + names[match[2]],
      path,
    ): array
    for path, array in flat.items()
  }


def _split_scaling(flat):
  """Splits `in_proj`: the first layer of the MLP, then query, key and value."""
  if not any(path.endswith('.in_proj.weight') for path in flat):
    return flat
  flat = _renamed(flat, _SCALING)
  for path in [path for path in flat if '.in_proj.' in path]:
    array = flat.pop(path)
    block, name = path.split('in_proj.')
    width = flat[f'{block}attn.proj.weight'].shape[1]
    flat[f'{block}mlp.fc1.{name}'] = array[: -3 * width]
    flat[f'{block}attn.qkv.{name}'] = array[-3 * width :]
  return flat


def _merge_scaling(flat):
  """The opposite of `_split_scaling`, for blocks with only one norm."""
  names = [
    path
    for path in flat
    if re.fullmatch(r'blocks\.\d+\.attn\.qkv\.weight', path)
  ]
  if not names or 'blocks.0.norm2.weight' in flat:
    return flat
  for path in names:
    block = path.removesuffix('attn.qkv.weight')
    for name in ('weight', 'bias'):
      if f'{block}attn.qkv.{name}' in flat:
        flat[f'{block}in_proj.{name}'] = np.concatenate(
          [
            flat.pop(f'{block}{module}.{name}')
            for module in ('mlp.fc1', 'attn.qkv')
          ]
        )
  return _renamed(flat, {theirs: ours for ours, theirs in _SCALING.items()})


def merge_heads(
  flat: Mapping[str, np.ndarray], names: Sequence[str] = _TWO_HEADS
) -> _Flat:
  """Merges the two tokens and heads of DeiT; the output is their mean.

  Args:
    flat: {path: array}.
    names: names of both tokens and of both heads.
  """
  token, second_token, head, second_head = names
  flat = dict(flat)
  if second_token not in flat:
    return flat
  flat[token] = np.concatenate([flat[token], flat.pop(second_token)], axis=1)
  if f'{head}.weight' in flat:
    for name, merge in (('weight', np.hstack), ('bias', sum)):
      heads = [flat[f'{head}.{name}'], flat.pop(f'{second_head}.{name}')]
      flat[f'{head}.{name}'] = merge(heads) / 2
  return flat


def split_heads(
  flat: Mapping[str, np.ndarray], names: Sequence[str] = _TWO_HEADS
) -> _Flat:
  """The opposite of `merge_heads`; both heads get the mean bias."""
  token, second_token, head, second_head = names
  flat = dict(flat)
  if token not in flat or flat[token].shape[1] == 1:
    return flat
  flat[token], flat[second_token] = np.split(flat[token], 2, axis=1)
  if f'{head}.weight' in flat:
    flat[f'{head}.weight'], flat[f'{second_head}.weight'] = np.split(
      2 * flat[f'{head}.weight'], 2, axis=1
    )
    flat[f'{second_head}.bias'] = flat[f'{head}.bias']
  return flat


def _split_frequencies(flat):
  """Splits the frequencies of mixed rotary positions [2, blocks, H, d / 2]."""
  if 'rope.freqs' in flat:
    for i, array in enumerate(flat.pop('rope.freqs').swapaxes(0, 1)):
      flat[f'blocks.{i}.rope.freqs'] = array
  return flat


def _merge_frequencies(flat):
  """The opposite of `_split_frequencies`."""
  num_blocks = sum(path.endswith('.rope.freqs') for path in flat)
  if num_blocks:
    flat['rope.freqs'] = np.stack(
      [flat.pop(f'blocks.{i}.rope.freqs') for i in range(num_blocks)], axis=1
    )
  return flat
