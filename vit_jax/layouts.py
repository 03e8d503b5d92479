"""How NumPy files spell the same arrays: to today's spelling, and back.

{'/'-joined path: array} -> the same under other names. What is not known is
left alone.
"""

import re

import ml_dtypes
import numpy as np

# Before linen, modules in a block were numbered through, whatever their class.
_PRE_LINEN = {
    'LayerNorm_2': 'LayerNorm_1',
    'MlpBlock_3': 'MlpBlock_0',
    'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
}
# Where training states keep their parameters. A state's `opt/` may stand
# beside `params/`, so the order counts.
_PREFIXES = ('opt/target/', 'params/', 'target/', 'opt/')
_GROUP_NORMS = ('gn1', 'gn2', 'gn3', 'gn_proj', 'gn_root')
_POSITIONS = 'Transformer/posembed_input/pos_embedding'

# BiT's names of a unit's parts (arXiv 1912.11370), and of the rest.
_BIT = (
    (r'block(\d+)/unit0*(\d+)/(a|b|c)/standardized_conv2d/kernel',
     r'block\1/unit\2/conv\3/kernel'),
    (r'block(\d+)/unit0*(\d+)/a/proj/standardized_conv2d/kernel',
     r'block\1/unit\2/conv_proj/kernel'),
    (r'block(\d+)/unit0*(\d+)/(a|b|c)/group_norm/(gamma|beta)',
     r'block\1/unit\2/gn\3/\4'),
    (r'root_block/standardized_conv2d/kernel', r'conv_root/kernel'),
    (r'group_norm/(gamma|beta)', r'gn_head/\1'),
    (r'head/conv2d/(kernel|bias)', r'head/\1'),
)
_BIT_PARTS = {'gna': 'gn1', 'gnb': 'gn2', 'gnc': 'gn3', 'conva': 'conv1',
              'convb': 'conv2', 'convc': 'conv3', 'gamma': 'scale',
              'beta': 'bias'}


def to_linen(flat):
  """Published arrays under today's names, shapes and dtypes."""
  flat = {path: _readable(array) for path, array in flat.items()}
  flat = _from_bit(_without_prefix(flat))
  flat = _from_big_vision({_path_from_pre_linen(path): array
                           for path, array in flat.items()})
  return {path: _squeezed(path, array) for path, array in flat.items()}


def to_published(flat):
  """Our arrays as published files name them, and other readers expect.

  Blocks have their names from before linen, which timm's reader insists on.
  """
  before = {today: name for name, today in _PRE_LINEN.items()}
  return {
      '/'.join(before.get(part, part) for part in path.split('/'))
      if path.startswith('Transformer/encoderblock_') else path: array
      for path, array in flat.items()}


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


def _readable(array):
  """bfloat16, for which NumPy's files have no name, as float32."""
  if array.dtype in (np.dtype('V2'), ml_dtypes.bfloat16):
    return array.view(ml_dtypes.bfloat16).astype(np.float32)
  return array


def _squeezed(path, array):
  """Group norms are (1, 1, 1, C) in some files, and BiT's head is 1 × 1."""
  if path.split('/')[-2:-1] and path.split('/')[-2] in _GROUP_NORMS:
    return array.reshape(-1)
  return array


def _from_big_vision(flat):
  """Layers stacked in one `encoderblock`, and positions at the top.

  Positions are added before the class token is put in front there, which is
  to say that the token's own is zero.
  """
  found = {}
  for path, array in flat.items():
    if '/encoderblock/' in path:
      for layer, part in enumerate(array):
        found[path.replace('/encoderblock/', f'/encoderblock_{layer}/')] = part
    else:
      found[path] = array
  for tower in ('', 'img/'):
    positions = found.get(f'{tower}pos_embedding')
    if positions is None or f'{tower}embedding/kernel' not in found:
      continue
    del found[f'{tower}pos_embedding']
    num_tokens = found.get(f'{tower}cls', positions[:, :0]).shape[1]
    if round(positions.shape[1]**0.5)**2 == positions.shape[1]:
      positions = np.concatenate(
          [np.zeros_like(positions[:, :num_tokens]), positions], axis=1)
    found[tower + _POSITIONS] = positions
  return found


def _from_bit(flat):
  """BiT's names: a ResNet-v2, whose units begin with a norm."""
  if 'resnet/root_block/standardized_conv2d/kernel' not in flat:
    return flat
  found = {}
  for path, array in flat.items():
    path = path.removeprefix('resnet/')
    for pattern, ours in _BIT:
      path = re.sub(f'^{pattern}$', ours, path)
    path = '/'.join(_BIT_PARTS.get(part, part) for part in path.split('/'))
    if path == 'head/kernel':
      array = array.reshape(array.shape[-2:])  # a 1 × 1 convolution
    found[path] = array
  return found
