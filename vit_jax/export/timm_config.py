"""A model as the `config.json` of a hub describes it to timm.

`timm.create_model('local-dir:FOLDER', pretrained=True)` builds from it the
model that `model.safetensors` beside it belongs to. With timm 1.0.31 and random
weights, logits of the size of 1 differ from ours by 6e-7 for ViTs, by 1e-4 for
a Mixer (whose GELU is always exact there) and a BiT, and by 1e-3 for an R26
(whose norms have other epsilons there).
"""

import dataclasses
from typing import Any

from vit_jax import models
from vit_jax.checkpoint import trained_model

# An entry point of timm sets what `model_args` does not, which sets all here.
_ENTRY = 'vit_base_patch16_224'
# Of a Mixer, though, the entry point alone sets these: (patch_size, num_layers,
# hidden_size).
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
_BIT_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
# Fields that are translated below, or say nothing of a trained model.
_KNOWN = (
  'num_classes',
  'patch_size',
  'hidden_size',
  'mlp_dim',
  'num_heads',
  'num_layers',
  'tokens_mlp_dim',
  'classifier',
  'class_token',
  'num_registers',
  'layer_scale',
  'qk_norm',
  'gelu',
  'stem_units',
  'num_units',
  'width_factor',
  'head_init',
  'name',
  'parent',
)


def make(trained: trained_model.TrainedModel) -> dict[str, Any]:
  """The description of a `TrainedModel`, to be written as JSON.

  timm's images are resized whole, bilinearly (with anti-aliasing, which ours
  are not), and scaled to [−1, 1].

  Raises:
    ValueError: timm has no such model.
  """
  model, size = trained.model, list(trained.image_size)
  _check_known(trained)
  translate = {models.MlpMixer: _mixer, models.BitResNet: _bit}.get(
    type(model), _vit
  )
  entry, args = translate(model, size)
  preprocessing = {
    'input_size': [3, *size],
    'fixed_input_size': 'img_size' in args,
    'interpolation': 'bilinear',
    'crop_pct': 1.0,
    'crop_mode': 'squash',
    'mean': [0.5] * 3,
    'std': [0.5] * 3,
  }
  names = (
    {'label_names': list(trained.class_names)} if (trained.class_names) else {}
  )
  return {
    'architecture': entry,
    'num_classes': model.num_classes,
    'model_args': args,
    'pretrained_cfg': {
      **preprocessing,
      'num_classes': model.num_classes,
      'custom_load': False,
      **names,
    },
  }


def _check_known(trained):
  """Raises a ValueError for settings that timm has no counterpart of."""
  for field in dataclasses.fields(trained.model):
    value = getattr(trained.model, field.name)
    if (
      field.name not in _KNOWN
      and trained_model.affects_outputs(field.name)
      and value != field.default
    ):
      raise ValueError(
        f'{trained.source}: timm has no counterpart of '
        f'{field.name} {value}. An .npz holds the model whole'
      )


def _vit(model, size):
  entry = _ENTRY
  if model.stem_units is not None:
    if model.stem_units not in _HYBRID_ENTRIES:
      raise ValueError(
        f'timm has no stem of {model.stem_units} units. An .npz '
        'holds the model whole'
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
    'global_pool': {'token': 'token', 'gap': 'avg', 'map': 'map'}[
      model.classifier
    ],
    'fc_norm': False,  # the norm comes before the mean
    'act_layer': {'tanh': 'gelu_tanh', 'exact': 'gelu'}[model.gelu],
  }


def _mixer(model, size):
  sizes = model.patch_size, model.num_layers, model.hidden_size
  if sizes not in _MIXER_ENTRIES:
    raise ValueError(
      'timm has no Mixer of patch_size {}, num_layers {}, hidden_size {}. An '
      '.npz holds the model whole'.format(*sizes)
    )
  return _MIXER_ENTRIES[sizes], {
    'img_size': size,
    'mlp_ratio': [
      _ratio(model.tokens_mlp_dim, model.hidden_size),
      _ratio(model.mlp_dim, model.hidden_size),
    ],
  }


def _bit(model, _):
  """A ResNet, which takes images of any size."""
  depth = _BIT_DEPTHS[model.num_units]
  return f'resnetv2_{depth}x{model.width_factor}_bit', {}


def _ratio(mlp_dim, hidden_size):
  """`mlp_dim` as a multiple; timm rounds the product down."""
  ratio = mlp_dim / hidden_size
  exact = int(hidden_size * ratio) == mlp_dim
  return ratio if exact else (mlp_dim + 0.5) / hidden_size
