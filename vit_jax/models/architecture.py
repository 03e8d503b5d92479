"""Recognizes the model of a weights file from the shapes of its arrays."""

from collections.abc import Iterable
from collections.abc import Mapping
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.models import param_paths
from vit_jax.models import variants

Shapes = Mapping[str, tuple[int, ...]]  # keys: '/'-joined paths

_BLOCK = rf'{param_paths.BLOCK}(\d+)(?:_(\d+))?/'
_PRE_LOGITS = f'{param_paths.PRE_LOGITS}/kernel'
_CHANNEL_MIXING = 'MixerBlock_0/channel_mixing/Dense_0/kernel'
# Number of axes of each array that determines settings.
_RANKS = {
  param_paths.VIT_PATCHES: 4,
  param_paths.MIXER_PATCHES: 4,
  param_paths.STEM_ROOT: 4,
  param_paths.REGISTERS: 3,
  _PRE_LOGITS: 2,
  param_paths.HEAD_KERNEL: 2,
  param_paths.TOKEN_MIXING: 2,
  _CHANNEL_MIXING: 2,
}
# Settings that the name of an architecture determines.
SIZES = (
  'patch_size',
  'hidden_size',
  'mlp_dim',
  'num_heads',
  'num_layers',
  'tokens_mlp_dim',
  'stem_units',
  'num_units',
  'width_factor',
)


def settings_of(shapes: Shapes) -> dict[str, Any]:
  """Returns arguments of `models.get_model` that differ from ViT's defaults.

  Shapes do not determine everything. The following is assumed. Without a probe,
  the head reads the class token, if there is one. A file without positions uses
  'sincos2d', as big_vision does, or 'none' if hidden_size is not a multiple of
  4. Positions that are added at the input are not added in the layers. The
  initial value of LayerScale is 1e-4.

  Args:
    shapes: {'/'-joined path: shape} of a weights file, with our names.

  Returns:
    {name: value}; {} if no model of this library has these arrays.
  """
  if any(
    len(shapes[path]) != rank for path, rank in _RANKS.items() if path in shapes
  ):
    return {}
  if f'{param_paths.BIT_NORM}/scale' in shapes:
    return dict(
      num_units=_stem_units(shapes),
      width_factor=shapes[param_paths.STEM_ROOT][-1] // 64,
    )
  if param_paths.TOKEN_MIXING in shapes and param_paths.MIXER_PATCHES in shapes:
    return _mixer(shapes)
  return _vit(shapes)


def _mixer(shapes):
  patch_size, _, _, hidden_size = shapes[param_paths.MIXER_PATCHES]
  return dict(
    patch_size=patch_size,
    hidden_size=hidden_size,
    num_layers=len(
      {path.split('/')[0] for path in shapes if path.startswith('MixerBlock_')}
    ),
    tokens_mlp_dim=shapes[param_paths.TOKEN_MIXING][1],
    mlp_dim=shapes[_CHANNEL_MIXING][1],
  )


def _vit(shapes):
  blocks = [match for match in map(re.compile(_BLOCK).match, shapes) if match]
  if not blocks or param_paths.VIT_PATCHES not in shapes:
    return {}
  block = blocks[0].group()
  heads = shapes.get(f'{block}{param_paths.ATTENTION}/query/kernel', ())
  mlp = shapes.get(f'{block}MlpBlock_0/Dense_0/kernel', ())
  if len(heads) != 3 or len(mlp) != 2:
    return {}
  patch_size, _, _, hidden_size = shapes[param_paths.VIT_PATCHES]
  settings = dict(
    patch_size=patch_size,
    hidden_size=hidden_size,
    mlp_dim=mlp[1],
    num_heads=heads[1],
  )
  if heads[1] * heads[2] != hidden_size:
    settings['head_dim'] = heads[2]
  if blocks[0][2] is None:
    settings['num_layers'] = len({match[1] for match in blocks})
  else:  # encoderblock_{column}_{index}
    # The longest column has `num_layers` blocks.
    settings['num_layers'] = 1 + max(int(match[2]) for match in blocks)
    settings['fractal_columns'] = len({match[1] for match in blocks})
  if param_paths.STEM_ROOT in shapes:
    settings['stem_units'] = _stem_units(shapes)
    if shapes[param_paths.STEM_ROOT][-1] != 64:
      settings['stem_width'] = shapes[param_paths.STEM_ROOT][-1]
  return (
    settings
    | _layers(shapes, block)
    | _tokens(shapes)
    | _positions(shapes, block, hidden_size)
  )


def _layers(shapes, block):
  """Returns settings of the layers in a block, and of norms around blocks."""
  attention = f'{block}{param_paths.ATTENTION}/'
  num_parallel = sum(
    re.fullmatch(rf'{block}\w+Attention_\d+/query/kernel', path) is not None
    for path in shapes
  )
  has_bias = f'{attention}query/bias' in shapes
  has_out = f'{attention}out/kernel' in shapes
  return {
    name: value
    for name, applies, value in (
      ('layer_scale', f'{block}LayerScale_0/scale' in shapes, 1e-4),
      ('block', f'{block}LayerNorm_1/scale' not in shapes, 'parallel'),
      ('num_parallel', num_parallel > 1, num_parallel),
      ('norm', f'{block}LayerNorm_0/bias' not in shapes, 'rms'),
      ('patch_bias', 'embedding/bias' not in shapes, False),
      (
        param_paths.PIXEL_NORM,
        f'{param_paths.PIXEL_NORM}/scale' in shapes,
        True,
      ),
      (
        param_paths.PATCH_NORM,
        f'{param_paths.PATCH_NORM}/scale' in shapes,
        True,
      ),
      ('qkv_bias', not has_bias, False),
      ('key_bias', has_bias and f'{attention}key/bias' not in shapes, False),
      ('attention_out', not has_out, False),
      ('out_bias', has_out and f'{attention}out/bias' not in shapes, False),
      ('qk_norm', f'{attention}query_ln/scale' in shapes, True),
      ('qk_norm_bias', f'{attention}query_ln/bias' in shapes, True),
      ('attention_norm', f'{attention}norm/scale' in shapes, True),
      ('gated_mlp', f'{block}MlpBlock_0/gate/kernel' in shapes, True),
      ('mlp_bias', f'{block}MlpBlock_0/Dense_1/bias' not in shapes, False),
      ('mlp_norm', f'{block}MlpBlock_0/norm/scale' in shapes, True),
      ('pre_norm', f'{param_paths.PRE_NORM}/scale' in shapes, True),
      (
        'encoder_norm',
        f'{param_paths.ENCODER_NORM}/scale' not in shapes,
        False,
      ),
      (param_paths.HEAD_NORM, f'{param_paths.HEAD_NORM}/scale' in shapes, True),
    )
    if applies
  }


def _tokens(shapes):
  """Returns settings of the extra tokens and of the head's input."""
  settings, width = {}, shapes[param_paths.VIT_PATCHES][-1]
  input_size = shapes.get(param_paths.HEAD_KERNEL, (0,))[0]
  num_tokens = shapes.get(param_paths.CLASS_TOKEN, (1, 0))[1]
  if param_paths.PROBE in shapes:
    has_mlp = f'{param_paths.POOLING}/LayerNorm_0/scale' in shapes
    settings['classifier'] = 'map' if has_mlp else 'probe'
    if num_tokens:
      settings['class_token'] = True
  elif not num_tokens:
    settings['classifier'] = 'gap'
  elif num_tokens == 1 and input_size == 2 * width:
    settings['classifier'] = 'token_gap'
  if num_tokens == 2:
    settings['distilled'] = True
  if param_paths.REGISTERS in shapes:
    settings['num_registers'] = shapes[param_paths.REGISTERS][1]
  if _PRE_LOGITS in shapes:
    settings['representation_size'] = shapes[_PRE_LOGITS][1]
  return settings


def optional_layers(shapes: Shapes) -> dict[str, Any]:
  """Returns settings of layers that no name or config of a model contains."""
  found = relative_mlp(shapes)
  if _PRE_LOGITS in shapes:
    found['representation_size'] = shapes[_PRE_LOGITS][1]
  return found


def _positions(shapes, block, hidden_size):
  """Returns settings of the position embeddings."""
  if block + param_paths.RELATIVE_POSITIONS in shapes:
    return dict(positions='relative')
  if block + param_paths.RELATIVE_TABLE in shapes:
    return dict(positions='relative_table')
  if relative_mlp(shapes):
    return relative_mlp(shapes)
  for folder, settings in (
    (param_paths.INPUT_POSITIONS, {}),
    (f'{block}posembed', {'positions_at': 'every_layer'}),
  ):
    if f'{folder}/pos_embedding' in shapes:
      return settings
    if f'{folder}/rows' in shapes:
      return settings | {'positions': 'learned_2d'}
  return dict(positions='none' if hidden_size % 4 else 'sincos2d')


def relative_mlp(shapes: Shapes) -> dict[str, Any]:
  """Returns settings of relative positions that an MLP computes; {}: none."""
  mlp = f'{param_paths.RELATIVE_MLP}/kernel'
  shared = f'{param_paths.ENCODER}/{mlp}'
  own = f'{param_paths.block(0)}{mlp}'
  found = dict(positions='relative_mlp')
  if shared in shapes:
    found['positions_at'] = 'every_layer_shared'
  elif own not in shapes:
    return {}
  return found | dict(relative_mlp_dim=shapes.get(own, shapes.get(shared))[1])


def _stem_units(shapes):
  """Returns the number of bottleneck units in each stage of a stem."""
  units = {
    tuple(path.split('/')[:2])
    for path in shapes
    if re.match(r'block\d+/unit', path)
  }
  stages = sorted({stage for stage, _ in units})
  return tuple(sum(stage == s for s, _ in units) for stage in stages)


def has_positions(paths: Iterable[str]) -> bool:
  """Returns whether any of these arrays contains positions of patches."""
  return any(
    '/posembed' in path
    or path.endswith(
      (param_paths.RELATIVE_POSITIONS, param_paths.RELATIVE_TABLE)
    )
    for path in paths
  )


def grid_of(shapes: Shapes) -> tuple[int, int] | None:
  """Returns the grid (rows, columns) of patches that a model was trained with.

  Returns:
    None if no array determines the grid. If the arrays determine only the
    number of patches, the grid is assumed to be square. The result is None if
    this number is not a square.
  """
  for path, shape in shapes.items():
    folder, _, name = path.rpartition('/')
    if name == 'rows' and 'posembed' in folder:
      return shape[0], shapes[f'{folder}/columns'][0]
    num_patches = 0
    if name == 'pos_embedding' and folder.startswith(param_paths.ENCODER):
      num_patches = shape[1] - shapes.get(param_paths.CLASS_TOKEN, (1, 0))[1]
    elif path.endswith(param_paths.RELATIVE_POSITIONS):
      num_patches = (shape[0] + 1) // 2
    elif path.endswith(param_paths.RELATIVE_TABLE):
      offsets = shape[0] - 3 * (param_paths.CLASS_TOKEN in shapes)
      side = (round(offsets**0.5) + 1) // 2
      return (side, side) if (2 * side - 1) ** 2 == offsets else None
    elif path == param_paths.TOKEN_MIXING:
      num_patches = shape[0]
    if num_patches:
      side = round(num_patches**0.5)
      return (side, side) if side**2 == num_patches else None
  return None


def _comparable(variant):
  """Returns only those settings of a variant that arrays determine."""
  settings = {
    key: value for key, value in variant.items() if not key.endswith('_rate')
  }
  if settings.get('classifier') == 'unpooled':
    settings['classifier'] = 'gap'
  return settings


def _names_of(settings):
  """Returns the names of the architectures that have these settings.

  A representation layer is ignored, because it is optional in training.
  """
  settings = {
    key: value
    for key, value in settings.items()
    if key != 'representation_size'
  }
  return [
    name
    for name, variant in variants.VARIANTS.items()
    if _comparable(variant) == settings
  ]


def fitting(shapes: Shapes, with_head: bool = True) -> list[str]:
  """Returns names of the architectures that have exactly these arrays.

  The numbers of channels and classes, the image size and the representation
  layer may differ: they are taken from the file.

  Args:
    shapes: {'/'-joined path: shape} of a weights file; see `settings_of`.
    with_head: whether the shapes of the head must match, too.
  """

  def compared(shapes):
    return {
      path: tuple(shape)
      for path, shape in shapes.items()
      if with_head or param_paths.module(path) != param_paths.HEAD
    }

  return [
    name
    for name in _names_of(settings_of(shapes))
    if compared(_shapes_like(name, shapes)) == compared(shapes)
  ]


def _shapes_like(name, shapes):
  """Returns {path: shape} of an architecture, for a file's channels and grid.

  The sizes of the head and of the representation layer are those of the file.
  """
  overrides = {
    key: value
    for key, value in settings_of(shapes).items()
    if key == 'representation_size'
  }
  model = models.get_model(
    name, num_classes=shapes.get(param_paths.HEAD_KERNEL, (0,))[-1], **overrides
  )
  size = image_size(model, grid_of(shapes) or (1, 1))
  channels = num_channels(shapes)
  tree = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, *size, channels)), train=False
    )
  )['params']
  return {
    '/'.join(key.key for key in path): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def num_channels(shapes: Shapes) -> int:
  """Returns the number of channels of the images that a file was trained on."""
  kernels = (
    param_paths.STEM_ROOT,
    param_paths.VIT_PATCHES,
    param_paths.MIXER_PATCHES,
  )
  return next((shapes[path][2] for path in kernels if path in shapes), 3)


def image_size(model: nn.Module, grid: tuple[int, int]) -> tuple[int, int]:
  """Returns the smallest (height, width) in pixels with this patch grid."""

  def is_patch(side):
    try:
      return model.grid_size(side, side) == (1, 1)
    except ValueError:
      return False

  stride = next(side for side in range(1, 1025) if is_patch(side))
  return grid[0] * stride, grid[1] * stride


def nearest(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
  """Returns (name, settings) of a model with these arrays, or None.

  If no architecture has all settings of the file, the name is the architecture
  that shares the most settings with the file. The returned settings are those
  of the file that differ from this architecture.
  """
  settings = settings_of(shapes)
  return nearest_to(settings) if settings else None


def nearest_to(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """Returns (name, settings that differ from it) of the nearest architecture.

  Args:
    settings: arguments of `models.get_model` that describe a whole model.
  """
  candidates = {
    name: _comparable(variant)
    for name, variant in variants.VARIANTS.items()
    if 'unpooled' not in name and _comparable(variant).keys() <= settings.keys()
  }
  matches = [name for name in _names_of(settings) if name in candidates]
  name = (
    matches[0]
    if matches
    else max(
      (name for name in candidates if not name.startswith('testing')),
      key=lambda name: len(candidates[name].items() & settings.items()),
    )
  )
  return name, relative_to(name, settings)


def relative_to(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those of a model's settings that an architecture does not have.

  Args:
    name: name of an architecture.
    settings: arguments of `models.get_model` that describe a whole model.
  """
  defaults = models.get_model(name, num_classes=0)
  found = {
    key: value
    for key, value in settings.items()
    if getattr(defaults, key, None) != value
  }
  classifier = settings.get('classifier', getattr(defaults, 'classifier', ''))
  if found.get('class_token') == ('token' in classifier):
    del found['class_token']  # the default for this classifier
  return found
