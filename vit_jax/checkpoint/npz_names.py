"""Names of arrays in published `.npz` files, and names of weights files.

The functions map {'/'-joined path: array} to {other path: array}. Arrays with
unknown names keep their names.
"""

from collections.abc import Mapping
import os
import re

import ml_dtypes
import numpy as np

from vit_jax.files import json_files
from vit_jax.models import param_paths

# Suffixes of files that can run any code when they are read.
PICKLES = ('.bin', '.ckpt', '.pickle', '.pkl', '.pt', '.pth')
# The two lines of Python that convert a pickle.
_CONVERSION = """
  weights = torch.load({path!r}, weights_only=True, map_location='cpu')
  safetensors.torch.save_file(weights, 'model.safetensors')"""
# The index next to the shards of a `.safetensors`: {array name: shard}.
SHARDS = 'model.safetensors.index.json'

# Before linen, Flax numbered all modules of a block with a single counter.
_PRE_LINEN = {
  'LayerNorm_2': 'LayerNorm_1',
  'MlpBlock_3': 'MlpBlock_0',
  'MultiHeadDotProductAttention_1': param_paths.ATTENTION,
}
# Prefixes of the parameters in train states. A state may have both `opt/` and
# `params/`, so the order matters.
_PREFIXES = ('opt/target/', 'params/', 'target/', 'opt/')
_MAX_DEPTH = 50  # modules in modules
_GROUP_NORMS = ('gn1', 'gn2', 'gn3', 'gn_proj', 'gn_root')

# (our path, BiT's path) of arrays outside the units (arXiv 1912.11370).
_BIT = (
  (param_paths.STEM_ROOT, 'root_block/standardized_conv2d/kernel'),
  (f'{param_paths.BIT_NORM}/scale', 'group_norm/gamma'),
  (f'{param_paths.BIT_NORM}/bias', 'group_norm/beta'),
  (param_paths.HEAD_KERNEL, 'head/conv2d/kernel'),
  (param_paths.HEAD_BIAS, 'head/conv2d/bias'),
)
# (our path, BiT's path) of arrays in `block{b}/unit{u}/`.
_BIT_UNIT = (
  ('conv_proj/kernel', 'a/proj/standardized_conv2d/kernel'),
  *(
    row
    for number, letter in zip('123', 'abc', strict=True)
    for row in (
      (f'gn{number}/scale', f'{letter}/group_norm/gamma'),
      (f'gn{number}/bias', f'{letter}/group_norm/beta'),
      (f'conv{number}/kernel', f'{letter}/standardized_conv2d/kernel'),
    )
  ),
)


def pickle_error(path: str) -> ValueError:
  """Returns the error for a pickle, with the lines that convert it."""
  return ValueError(
    f'{path} is a pickle, which can run any code when it is read. Use weights '
    'in .safetensors or .npz, or convert the pickle with PyTorch:'
    + _CONVERSION.format(path=path)
  )


def read_shards(path: str) -> list[str]:
  """Returns the sorted names of the files in an index of shards.

  Raises:
    ValueError: the index is damaged, or lists files outside its folder.
  """
  index = json_files.read_json(path, {'weight_map': {str: str}})
  names = sorted(set(index['weight_map'].values()))
  if not names or any(
    os.path.basename(name) != name or name in ('', '.', '..') for name in names
  ):
    raise ValueError(f'{path} lists no files, or files outside its folder.')
  return names


def to_linen(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns published arrays with our names, shapes and dtypes."""
  for path in flat:
    if path.count('/') > _MAX_DEPTH:
      raise ValueError(f'the name {path[:60]!r}… has too many parts')
  flat = {path: _readable(array) for path, array in flat.items()}
  flat = _from_bit(_without_prefix(flat))
  flat = _from_big_vision(
    {_path_from_pre_linen(path): array for path, array in flat.items()}
  )
  return {path: _squeezed(path, array) for path, array in flat.items()}


def to_published(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns our arrays with the names of published files.

  Modules in blocks get the names that Flax gave them before linen, because timm
  reads only these names.
  """
  if f'{param_paths.BIT_NORM}/scale' in flat:
    return _to_bit(flat)
  before = {today: name for name, today in _PRE_LINEN.items()}
  return {
    '/'.join(before.get(part, part) for part in path.split('/'))
    if path.startswith(param_paths.BLOCK)
    else path: array
    for path, array in flat.items()
  }


def _path_from_pre_linen(path):
  return '/'.join(_PRE_LINEN.get(part, part) for part in path.split('/'))


def _without_prefix(flat):
  """Returns the parameters of a train state, without their prefix."""
  for prefix in _PREFIXES:
    inside = {
      path.removeprefix(prefix): array
      for path, array in flat.items()
      if path.startswith(prefix)
    }
    if inside:
      return _without_prefix(inside)
  return flat


def _readable(array):
  """Converts bfloat16, which NumPy files store as V2, to float32."""
  if array.dtype in (np.dtype('V2'), ml_dtypes.bfloat16):
    return array.view(ml_dtypes.bfloat16).astype(np.float32)
  return array


def _squeezed(path, array):
  """Reshapes group norms, which are (1, 1, 1, C) in some files, to (C,)."""
  if path.split('/')[-2:-1] and path.split('/')[-2] in _GROUP_NORMS:
    return array.reshape(-1)
  return array


def _from_big_vision(flat):
  """Converts big_vision's stacked `encoderblock` and `pos_embedding`.

  big_vision adds the positions before it prepends the class token. The position
  embedding of the class token is therefore zero.
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
    if positions is None or tower + param_paths.VIT_PATCHES not in found:
      continue
    del found[f'{tower}pos_embedding']
    num_tokens = found.get(
      tower + param_paths.CLASS_TOKEN, positions[:, :0]
    ).shape[1]
    if round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]:
      positions = np.concatenate(
        [np.zeros_like(positions[:, :num_tokens]), positions], axis=1
      )
    found[tower + param_paths.POSITIONS] = positions
  return found


def _from_bit(flat):
  """Converts the names of BiT, a ResNet-v2 with pre-activation units."""
  if 'resnet/root_block/standardized_conv2d/kernel' not in flat:
    return flat
  names = {there: here for here, there in _BIT}
  in_unit = {there: here for here, there in _BIT_UNIT}
  found = {}
  for path, array in flat.items():
    path = path.removeprefix('resnet/')
    match = re.fullmatch(r'(block\d+/unit)(\d+)/(.*)', path)
    if match and match[3] in in_unit:
      path = f'{match[1]}{int(match[2])}/{in_unit[match[3]]}'
    else:
      path = names.get(path, path)
    if path == param_paths.HEAD_KERNEL:
      array = array.reshape(array.shape[-2:])  # From a 1 × 1 convolution.
    found[path] = array
  return found


def _to_bit(flat):
  names, in_unit = dict(_BIT), dict(_BIT_UNIT)
  found = {}
  for path, array in flat.items():
    match = re.fullmatch(r'(block\d+/unit)(\d+)/(.*)', path)
    if match:
      path = f'{match[1]}{int(match[2]):02d}/{in_unit[match[3]]}'
    else:
      if path == param_paths.HEAD_KERNEL:
        array = array[None, None]
      path = names[path]
    found[f'resnet/{path}'] = array
  return found
