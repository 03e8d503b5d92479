"""The `config.json` with which timm builds a model.

`timm.create_model('local-dir:FOLDER', pretrained=True)` builds the model from
this file, for the weights in `model.safetensors` next to it. The logits of timm
1.0.31 were compared with ours, for random weights and logits of magnitude 1.
They differ by 6e-7 for ViTs, and by 1e-4 for a BiT. They differ by 1e-4 for a
Mixer, because timm always uses the exact GELU in Mixers. They differ by 1e-3
for an R26, because timm's norms have other epsilons.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
from typing import Any

from vit_jax import models
from vit_jax.checkpoint import torch_convert
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint.other_libraries import timm_config as facts_reader
from vit_jax.checkpoint.other_libraries import timm_settings
from vit_jax.checkpoint.other_libraries import timm_table

# timm needs an entry point, but `model_args` replaces all of its settings here.
_ENTRY = 'vit_base_patch16_224'
# For a Mixer, only the entry point sets (patch_size, num_layers, hidden_size).
_MIXER_ENTRIES = {
  (16, 8, 512): 'mixer_s16_224',
  (32, 8, 512): 'mixer_s32_224',
  (16, 12, 768): 'mixer_b16_224',
  (32, 12, 768): 'mixer_b32_224',
  (16, 24, 1024): 'mixer_l16_224',
  (32, 24, 1024): 'mixer_l32_224',
}
_HYBRID_ENTRIES = {
  (): 'vit_tiny_r_s16_p8_224',
  (2, 2, 2, 2): 'vit_small_r26_s32_224',
  (3, 4, 9): 'vit_base_r50_s16_224',
  (3, 4, 6, 3): 'vit_large_r50_s32_224',
}
# {our value: timm's}
_POOLS = {'token': 'token', 'gap': 'avg', 'map': 'map'}
_GELU = {'tanh': 'gelu_tanh', 'exact': 'gelu'}
_VALUES = {'classifier': _POOLS, 'gelu': _GELU}
_BIT_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_OF_HEAD_AND_IMAGES = (
  *('num_classes', 'head_init', 'image_mean', 'image_std', 'name', 'parent'),
)
# Fields that are translated below, or do not matter after training.
_KNOWN = (
  'patch_size',
  'hidden_size',
  'mlp_dim',
  'num_heads',
  'num_layers',
  'tokens_mlp_dim',
  'class_token',
  'num_registers',
  'layer_scale',
  'qk_norm',
  'stem_units',
  'num_units',
  'width_factor',
  *_OF_HEAD_AND_IMAGES,
)


def make(
  trained: trained_model.TrainedModel,
) -> tuple[dict[str, Any], dict[str, Any], Callable, bool]:
  """Returns timm's `config.json` for a model, and how its arrays are named.

  A model that came from timm gets its own architecture back. Others get the
  nearest one, or else one with equal settings, with all sizes as arguments.

  Returns:
    (content of the file, {} because there are no other files, `to_torch` and
    `all_positions` of `weights_file.save`).

  Raises:
    ValueError: timm has no equivalent model.
  """
  model, size = trained.model, list(trained.image_size)
  entry, args, facts = _own_architecture(trained)
  unknown = _unknown(model)
  if not facts and unknown:
    entry, args, facts = _equal_architecture(trained)
    if not facts:
      raise ValueError(
        f'{trained.source}: timm has no equivalent of {unknown}. Export the '
        'model to an .npz file instead.'
      )
  elif not facts:
    translate = {models.MlpMixer: _mixer, models.BitResNet: _bit}.get(
      type(model), _vit
    )
    entry, args = translate(model, size)
  config = {
    'architecture': entry,
    'num_classes': model.num_classes,
    'model_args': args,
    'pretrained_cfg': {
      **_preprocessing(trained),
      'fixed_input_size': 'img_size' in args,
      'num_classes': model.num_classes,
      'custom_load': False,
    },
  }
  names = timm_settings.array_names(facts) if facts else ()
  all_positions = not facts.get('no_embed_class')
  to_timm = functools.partial(
    torch_convert.to_timm, names=names, all_positions=all_positions
  )
  return config, {}, to_timm, all_positions


def _preprocessing(trained):
  """Returns how timm prepares images for a model.

  timm always resizes with anti-aliasing.
  """
  resizing = trained.resizing
  found = {
    'input_size': [len(statistics(trained.model)[0]), *trained.image_size],
    'interpolation': resizing.interpolation.removesuffix('_antialias'),
    'crop_pct': resizing.crop_fraction,
    'crop_mode': {'squash': 'squash', 'crop': 'center'}[resizing.resize],
  }
  for name, value in zip(
    ('mean', 'std'), statistics(trained.model), strict=True
  ):
    found[name] = list(value)
  if trained.class_names:
    found['label_names'] = list(trained.class_names)
  if trained.license:
    found['license'] = trained.license
  return found


def statistics(model: Any) -> tuple[tuple[float, ...], ...]:
  """Returns (mean, deviation) of the images of a model."""
  mean, std = (getattr(model, f'image_{x}', None) for x in ('mean', 'std'))
  return mean or (0.5,) * 3, std or (0.5,) * 3


def _own_architecture(trained):
  """Returns (architecture, arguments, facts) of a model that came from timm.

  The facts are {} for other models, and if settings were changed so that timm's
  architecture computes something else.
  """
  origin = trained.origin or {}
  if 'architecture' not in origin or facts_reader.is_bit(origin):
    return '', {}, {}
  facts = facts_reader.facts_of(origin)
  args = dict(origin.get('model_args') or {})
  args.pop('num_classes', None)
  if facts.get('pos_embed') or facts.get('rel_pos') or 'img_size' in args:
    args['img_size'] = list(trained.image_size)
  facts = facts_reader.facts_of(origin | {'model_args': args})
  if not agrees(trained.model, timm_settings.settings_of(facts)):
    return '', {}, {}
  return origin['architecture'].partition('.')[0], args, facts


def agrees(model: Any, settings: Mapping[str, Any]) -> bool:
  """Returns whether a model has exactly these settings.

  Args:
    model: linen module.
    settings: its settings that differ from the defaults, without those of the
      head and of the images.
  """
  for field in dataclasses.fields(model):
    found = getattr(model, field.name)
    expected = settings.get(field.name, field.default)
    if field.name == 'class_token' and found is None:
      found = model.has_token
    elif field.name == 'layer_scale':  # The initial value does not matter.
      found, expected = found is None, expected is None
    if (
      field.name not in _OF_HEAD_AND_IMAGES
      and trained_model.affects_outputs(field.name)
      and found != expected
    ):
      return False
  return True


def _unknown(model):
  """Returns 'name=value' of a setting that the nearest architecture lacks."""
  for field in dataclasses.fields(model):
    value = getattr(model, field.name)
    if (
      field.name not in _KNOWN
      and value not in _VALUES.get(field.name, ())
      and trained_model.affects_outputs(field.name)
      and value != field.default
    ):
      return f'{field.name}={value}'
  return ''


def _equal_architecture(trained):
  """Returns (architecture, arguments, facts) with the settings of a model.

  The facts are {} if timm has no such architecture.
  """
  model = trained.model
  if not isinstance(model, models.VisionTransformer):
    return '', {}, {}
  args = {
    'img_size': list(trained.image_size),
    'patch_size': model.patch_size,
    'embed_dim': model.hidden_size,
    'depth': model.num_layers,
    'num_heads': model.num_heads,
    'global_pool': _POOLS.get(model.classifier),
  }
  for name in timm_table.names():
    packed = 1 + (timm_table.facts_of(name).get('mlp') == 'GluMlp')
    args['mlp_ratio'] = _ratio(packed * model.mlp_dim, model.hidden_size)
    with contextlib.suppress(ValueError):  # of architectures we do not have
      facts = facts_reader.facts_of({'architecture': name, 'model_args': args})
      if agrees(model, timm_settings.settings_of(facts)):
        return name, args, facts
  return '', {}, {}


def _vit(model, size):
  entry = _ENTRY
  if model.stem_units is not None:
    if model.stem_units not in _HYBRID_ENTRIES:
      raise ValueError(
        f'timm has no model with stem_units={model.stem_units}. Export the '
        'model to an .npz file instead.'
      )
    entry = _HYBRID_ENTRIES[model.stem_units]
  return entry, {
    'img_size': size,
    'patch_size': model.patch_size,
    'embed_dim': model.hidden_size,
    'depth': model.num_layers,
    'num_heads': model.num_heads,
    'mlp_ratio': _ratio(model.mlp_dim, model.hidden_size),
    'class_token': model.has_token,
    'reg_tokens': model.num_registers,
    'init_values': model.layer_scale,
    'qk_norm': model.qk_norm,
    'global_pool': _POOLS[model.classifier],
    'fc_norm': False,  # the norm is applied before the mean
    'act_layer': _GELU[model.gelu],
  }


def _mixer(model, size):
  sizes = model.patch_size, model.num_layers, model.hidden_size
  if sizes not in _MIXER_ENTRIES:
    raise ValueError(
      'timm has no Mixer with patch_size={}, num_layers={}, hidden_size={}. '
      'Export the model to an .npz file instead.'.format(*sizes)
    )
  return _MIXER_ENTRIES[sizes], {
    'img_size': size,
    'mlp_ratio': [
      _ratio(model.tokens_mlp_dim, model.hidden_size),
      _ratio(model.mlp_dim, model.hidden_size),
    ],
  }


def _bit(model, _):
  """Translates a ResNet, which accepts images of any size."""
  depth = _BIT_DEPTHS[model.num_units]
  return f'resnetv2_{depth}x{model.width_factor}_bit', {}


def _ratio(mlp_dim, hidden_size):
  """Returns `ratio` with int(hidden_size * ratio) = mlp_dim, as in timm."""
  ratio = mlp_dim / hidden_size
  exact = int(hidden_size * ratio) == mlp_dim
  return ratio if exact else (mlp_dim + 0.5) / hidden_size
