"""The model `ViT` of the package vit-pytorch, which many tutorials build.

Its state dict does not contain the number of heads, the pooling and the form.
They are in the key `vit_pytorch` of `config.json`, next to `model.safetensors`:
the arguments of the constructor, and the version of the package. There are two
forms of the model. Up to version 1.15, `pool='mean'` averages the class token,
too. From 1.16 on, there is then no class token. From 1.16.1 on, `cls_token` and
`pos_embedding` have no axis of length 1.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

import numpy as np

from vit_jax.checkpoint.other_libraries import name_tables
from vit_jax.files import json_files
from vit_jax.models import param_paths

KEY = 'vit_pytorch'  # in config.json
_OLD_POOLING = 1, 16  # the version that no longer has the old pooling
_WITHOUT_AXIS = 1, 16, 1  # the version that no longer has an axis of length 1
_TOKENS = 'cls_token', 'pos_embedding'
_PATCHES = 'to_patch_embedding.2.weight'
_SIZE = int, [int]
_KINDS = {
  'image_size': _SIZE,
  'patch_size': _SIZE,
  **dict.fromkeys(('num_classes', 'dim', 'depth', 'heads', 'mlp_dim'), int),
  **dict.fromkeys(('channels?', 'dim_head?'), int),
  **dict.fromkeys(('dropout?', 'emb_dropout?'), float),
  **dict.fromkeys(('pool?', 'version?'), str),
}
_KNOWN = [name.removesuffix('?') for name in _KINDS]
# {pooling: our classifier}
_POOLS = dict(cls='token', mean='gap')
_CLS, _MEAN = _POOLS
_DEFAULTS = dict(
  pool=_CLS, channels=3, dim_head=64, dropout=0.0, emb_dropout=0.0
)
_EXAMPLE = (
  '{"vit_pytorch": {"version": "1.6.5", "image_size": 224, "patch_size": 16, '
  '"num_classes": 10, "dim": 192, "depth": 12, "heads": 3, "mlp_dim": 768}}'
)
_BLOCK = param_paths.block('{i}')
_ATTENTION = f'{_BLOCK}{param_paths.ATTENTION}/'
_LAYER = 'transformer.layers.{i}'
_TABLE = (
  ('array', param_paths.CLASS_TOKEN, _TOKENS[0]),
  ('array', param_paths.POSITIONS, _TOKENS[1]),
  ('norm', param_paths.PIXEL_NORM, 'to_patch_embedding.1'),
  ('conv', 'embedding', 'to_patch_embedding.2'),
  ('norm', param_paths.PATCH_NORM, 'to_patch_embedding.3'),
  ('norm', f'{_BLOCK}LayerNorm_0', f'{_LAYER}.0.norm'),
  ('heads', f'{_ATTENTION}query|key|value', f'{_LAYER}.0.to_qkv'),
  ('out', f'{_ATTENTION}out', f'{_LAYER}.0.to_out.0'),
  ('norm', f'{_BLOCK}LayerNorm_1', f'{_LAYER}.1.net.0'),
  ('dense', f'{_BLOCK}MlpBlock_0/Dense_0', f'{_LAYER}.1.net.1'),
  ('dense', f'{_BLOCK}MlpBlock_0/Dense_1', f'{_LAYER}.1.net.4'),
  ('norm', param_paths.ENCODER_NORM, 'transformer.norm'),
  ('dense', param_paths.HEAD, 'mlp_head'),
)


def is_known(paths: Mapping[str, Any]) -> bool:
  """Returns whether arrays have the names of this model."""
  return _PATCHES in paths


def missing_config(path: str) -> ValueError:
  """Returns the error for arrays without the arguments of the constructor."""
  return ValueError(
    f'{path} has the arrays of vit-pytorch. They do not contain all arguments '
    'of ViT(…), such as heads and pool. Save the file as model.safetensors, '
    'and write the arguments and the version of vit-pytorch to config.json '
    f'next to it, for example:\n  {_EXAMPLE}'
  )


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all arguments of the constructor, and 'version'.

  Raises:
    ValueError: an argument is missing, unknown, or of a wrong type.
  """
  given = config[KEY]
  wrong = [f'{x} is missing' for x in _KINDS if x in _KNOWN and x not in given]
  wrong += [f'{x} is unknown' for x in given if x not in _KNOWN]
  found = {'version': None, **_DEFAULTS, **given}
  if found['pool'] not in _POOLS:
    wrong.append(f'pool={found["pool"]!r} is neither cls nor mean')
  if found['pool'] == _MEAN and not found['version']:
    wrong.append("version is missing, which pool='mean' depends on")
  if wrong:
    raise ValueError(
      f'in the key {KEY}, {"; ".join(wrong)}. For example:\n  {_EXAMPLE}'
    )
  json_files.check(given, _KINDS, 'config.json', KEY)
  if found['channels'] < 1:
    raise ValueError(f'channels={found["channels"]} must be at least 1.')
  patch = found['patch_size']
  if isinstance(patch, list):
    if len({*patch}) != 1:
      raise ValueError(f'patches of {patch} are not square, as vit_jax needs.')
    found['patch_size'] = patch[0]
  return found


def image_size_of(arguments: Mapping[str, Any]) -> tuple[int, int]:
  """Returns (height, width) of the images."""
  size = arguments['image_size']
  return tuple(size) if isinstance(size, list) else (size, size)


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings of `VisionTransformer` for `arguments_of` a config."""
  width, heads = arguments['dim'], arguments['heads']
  head_dim, dropout = arguments['dim_head'], arguments['dropout']
  is_old = arguments['pool'] == _MEAN and _has(
    _OLD_POOLING, arguments['version']
  )
  settings = dict(
    patch_size=arguments['patch_size'],
    hidden_size=width,
    mlp_dim=arguments['mlp_dim'],
    num_heads=heads,
    num_layers=arguments['depth'],
    dropout_rate=dropout,
    attention_dropout_rate=dropout,
    embedding_dropout_rate=arguments['emb_dropout'],
    classifier=_POOLS[arguments['pool']],
    class_token=arguments['pool'] == _CLS or is_old,
    pool_all_tokens=is_old,
    pixel_norm=True,
    patch_norm=True,
    embedding_std=1.0,
    qkv_bias=False,
    gelu='exact',
    norm_epsilon=1e-5,
  )
  if heads * head_dim != width:
    settings['head_dim'] = head_dim
  if heads == 1 and head_dim == width:
    settings['attention_out'] = False
  return settings


def _has(end, version):
  """Returns whether a version is before `end`."""
  return tuple(int(x) for x in version.split('.')[:3]) < end


def arguments_of_model(
  model: Any, image_size: tuple[int, int], channels: int, version: str
) -> dict[str, Any]:
  """Returns the arguments with which the constructor makes a model."""
  height, width = image_size
  return dict(
    version=version,
    image_size=height if height == width else [height, width],
    patch_size=model.patch_size,
    num_classes=model.num_classes,
    dim=model.hidden_size,
    depth=model.num_layers,
    heads=model.num_heads,
    mlp_dim=model.mlp_dim,
    pool=_MEAN if model.classifier == _POOLS[_MEAN] else _CLS,
    channels=channels,
    dim_head=model.head_dim or model.hidden_size // model.num_heads,
    dropout=model.dropout_rate,
    emb_dropout=model.embedding_dropout_rate or 0.0,
  )


def to_linen(
  flat: Mapping[str, np.ndarray], num_heads: int, channels: int
) -> dict[str, np.ndarray]:
  """Returns the arrays of a state dict with our names.

  Args:
    flat: {path: array}.
    num_heads: attention heads in each block.
    channels: channels of the images.

  Raises:
    ValueError: lists the names that have no counterpart in vit_jax, or the
      patches do not have these channels.
  """
  flat = {path: array for path, array in flat.items() if array.size}
  for path in _TOKENS:
    if path in flat and flat[path].ndim == 2:
      flat[path] = flat[path][None]
  pixels = flat[_PATCHES]
  # A patch has the pixels (row, column, channel).
  size = pixels.shape[1]
  side = math.isqrt(size // channels)
  if side**2 * channels != size:
    raise ValueError(
      f'{_PATCHES} reads {size} values: these are no square patches with '
      f'channels={channels}, as in config.json. Correct channels there.'
    )
  flat[_PATCHES] = pixels.reshape(-1, side, side, channels).transpose(
    0, 3, 1, 2
  )
  return name_tables.read(flat, _TABLE, num_heads)


def from_linen(
  flat: Mapping[str, np.ndarray], version: str
) -> dict[str, np.ndarray]:
  """Returns our arrays as the state dict that a version loads."""
  found = name_tables.write(flat, _TABLE, 'vit-pytorch')
  pixels = found[_PATCHES].transpose(0, 2, 3, 1)
  found[_PATCHES] = pixels.reshape(len(pixels), -1)
  width = len(pixels)
  found.setdefault(_TOKENS[0], np.zeros((1, 0, width), np.float32))
  if not _has(_WITHOUT_AXIS, version):
    found |= {path: found[path][0] for path in _TOKENS}
  return found


def writer(version: str) -> functools.partial:
  """Returns `from_linen` for a version."""
  return functools.partial(from_linen, version=version)
