"""The `config.json` with which timm builds a model.

`timm.create_model('local-dir:FOLDER', pretrained=True)` builds the model from
this file, for the weights in `model.safetensors` next to it. The logits of timm
1.0.31 were compared with ours, for random weights and logits of magnitude 1.
They differ by 6e-7 for ViTs, and by 1e-4 for a BiT. They differ by 1e-4 for a
Mixer, because timm always uses the exact GELU in Mixers. They differ by 1e-3
for an R26, because timm's norms have other epsilons.
"""

import dataclasses
from typing import Any

from vit_jax import models
from vit_jax.checkpoint import trained_model

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
_BIT_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
# Fields that are translated below, or do not matter after training.
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
  """Returns the content of timm's `config.json` for a `TrainedModel`.

  With it, timm resizes the full image bilinearly and scales it to [−1, 1]. timm
  uses anti-aliasing; `preprocess.resize` does not.

  Raises:
    ValueError: timm has no equivalent model.
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
  """Raises ValueError for a setting that timm does not have."""
  for field in dataclasses.fields(trained.model):
    value = getattr(trained.model, field.name)
    if (
      field.name not in _KNOWN
      and trained_model.affects_outputs(field.name)
      and value != field.default
    ):
      raise ValueError(
        f'{trained.source}: timm has no equivalent of {field.name}={value}. '
        'Export the model to an .npz file instead.'
      )


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
    'global_pool': {'token': 'token', 'gap': 'avg', 'map': 'map'}[
      model.classifier
    ],
    'fc_norm': False,  # the norm is applied before the mean
    'act_layer': {'tanh': 'gelu_tanh', 'exact': 'gelu'}[model.gelu],
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
