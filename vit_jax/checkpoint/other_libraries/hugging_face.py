"""Reads Hugging Face's `config.json`: the facts of a model by `model_type`.

transformers stores only values that differ from the defaults of a model type in
parts of a config, so the defaults are repeated here. Facts have the keys of
`timm_settings`, so one function makes settings of both libraries.
"""

from collections.abc import Mapping
import difflib
from typing import Any

# Defaults that all model types share, if the type does not change them.
_SHARED = {
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'image_size': 224,
  'patch_size': 16,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
  'qkv_bias': True,
}
_CLIP = dict(hidden_act='quick_gelu', layer_norm_eps=1e-5, patch_size=32)
_SIGLIP = dict(hidden_act='gelu_pytorch_tanh', layer_norm_eps=1e-6)
_DINO = dict(layer_norm_eps=1e-6, mlp_ratio=4)
# {model_type: defaults that differ}
_DEFAULTS = {
  'vit': {},
  'deit': {},
  'vit_mae': {},
  'dinov2': dict(_DINO, patch_size=14),
  'dinov2_with_registers': dict(_DINO, num_register_tokens=4),
  'dinov3_vit': dict(
    hidden_size=384,
    intermediate_size=1536,
    num_attention_heads=6,
    layer_norm_eps=1e-5,
    num_register_tokens=0,
    rope_theta=100.0,
  ),
  'clip_vision_model': _CLIP,
  'siglip_vision_model': _SIGLIP,
  'beit': {},
  'data2vec-vision': {},
}
# Model types with several towers, and the type of their image tower.
_TOWERS = {'clip': 'clip_vision_model', 'siglip': 'siglip_vision_model'}
_NAFLEX = 'NaFlex models take patches of images of any shape'
_AIMV2 = 'its patches are normalized before the positions are added'
_REFUSED = {
  'siglip2': _NAFLEX,
  'siglip2_vision_model': _NAFLEX,
  'aimv2': _AIMV2,
  'aimv2_vision_model': _AIMV2,
}
_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_accurate': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
  'silu': 'silu',
  'swish': 'silu',
}
# Number of a resampling filter in Pillow, and our name.
_RESAMPLE = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}


def model_types() -> list[str]:
  """Returns the model types that vit_jax has."""
  return [*_DEFAULTS, *_TOWERS]


def tower_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """Returns (model type, values with all defaults) of the image encoder.

  Raises:
    ValueError: vit_jax does not have this model type.
  """
  kind = config['model_type']
  if kind in _REFUSED:
    raise ValueError(f'vit_jax does not have {kind}: {_REFUSED[kind]}.')
  values = config
  if kind in _TOWERS and 'vision_config' in config:
    kind, values = _TOWERS[kind], config['vision_config']
  kind = _TOWERS.get(kind, kind)
  if kind not in _DEFAULTS:
    near = difflib.get_close_matches(kind, _DEFAULTS, n=3, cutoff=0.4)
    raise ValueError(
      f'vit_jax does not have the model_type {kind!r} of Hugging Face. It has '
      f'{", ".join(near or _DEFAULTS)}.'
    )
  return kind, {**_SHARED, **_DEFAULTS[kind], **values}


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the facts of the image encoder of a Hugging Face `config.json`.

  Raises:
    ValueError: vit_jax does not have this model.
  """
  kind, values = tower_of(config)
  act = values['hidden_act']
  if act not in _ACTIVATIONS:
    raise ValueError(
      f'its activation is {act!r}; vit_jax has only {", ".join(_ACTIVATIONS)}.'
    )
  width, heads = values['hidden_size'], values['num_attention_heads']
  size, patch = (
    [x] * 2 if isinstance(x, int) else list(x)
    for x in (values['image_size'], values['patch_size'])
  )
  facts = {
    'class': 'VisionTransformer',
    'embed_dim': width,
    'depth': values['num_hidden_layers'],
    'block': 'Block',
    'attn': 'Attention',
    'num_heads': heads,
    'head_dim': width // heads,
    'qkv_bias': values['qkv_bias'],
    'mlp': 'Mlp',
    'mlp_hidden': values['intermediate_size'],
    'act': _ACTIVATIONS[act],
    'norm': 'LayerNorm',
    'norm_eps': values['layer_norm_eps'],
    'model_norm': 'LayerNorm',
    'patch_embed': 'PatchEmbed',
    'patch_size': patch,
    'img_size': size,
    'patch_bias': True,
    'pos_embed': True,
    'class_token': True,
    'global_pool': 'token',
  }
  names = config.get('architectures') or ('',)
  change = {
    'deit': _deit,
    'dinov2': _dinov2,
    'dinov2_with_registers': _dinov2,
    'dinov3_vit': _dinov3,
    'clip_vision_model': _clip,
    'siglip_vision_model': _siglip,
    'beit': _beit,
    'data2vec-vision': _beit,
  }.get(kind)
  return facts | change(values, names[0]) if change else facts


def _deit(_, name):
  if name.endswith('WithTeacher'):
    return {'class': 'VisionTransformerDistilled', 'distilled': True}
  # Its head reads the class token only. The distillation token is a register.
  return {'reg_tokens': 1}


def _dinov2(values, name):
  if name.endswith('ForImageClassification'):
    raise ValueError(
      'vit_jax does not have its head, which reads the class token and the '
      'mean of the patches. Use the model without a head.'
    )
  width = values['hidden_size']
  hidden = int(width * values['mlp_ratio'])
  facts = {
    'mlp_hidden': hidden,
    'layer_scale': True,
    'reg_tokens': values.get('num_register_tokens', 0),
  }
  if values.get('use_swiglu_ffn'):
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    facts |= {'mlp': 'GluMlp', 'act': 'silu', 'mlp_hidden': 2 * hidden}
  return facts


def _dinov3(values, _):
  biases = [
    values.get(f'{x}_bias', x != 'key') for x in ('query', 'key', 'value')
  ]
  facts = {
    'class': 'Eva',
    'block': 'EvaBlock',
    'attn': 'EvaAttention',
    'qkv_bias': biases[0] if len(set(biases)) == 1 else biases,
    'layer_scale': True,
    'reg_tokens': values['num_register_tokens'],
    'pos_embed': None,
    'rope': {
      'type': 'RotaryEmbeddingDinoV3',
      'temperature': values['rope_theta'],
      'grid_indexing': 'ij',
      'grid_offset': 0.0,
      'rotate_half': True,
      'dim': values['hidden_size'] // values['num_attention_heads'],
      'normalize_coords': 'separate',
    },
  }
  for name in ('mlp_bias', 'proj_bias'):
    if not values.get(name, True):
      raise ValueError(f'vit_jax does not have {name}={values[name]}.')
  if values.get('use_gated_mlp'):
    facts['mlp'] = 'SwiGLU'
  return facts


def _clip(_, name):
  if name.endswith('ForImageClassification'):
    raise ValueError(
      'vit_jax does not have its head, which reads the mean of patches without '
      'a norm. Use the model without a head.'
    )
  return {'model_norm_pre': 'LayerNorm', 'patch_bias': False}


def _siglip(values, name):
  facts = {'class_token': False, 'global_pool': 'avg'}
  if values.get('vision_use_head', True) and not name.endswith(
    'ForImageClassification'
  ):
    pool = {'type': 'AttentionPoolLatent', 'latent_len': 1, 'pool': 'token'}
    pool['num_heads'] = values['num_attention_heads']
    facts |= {'global_pool': 'map', 'attn_pool': pool}
  return facts


def _beit(values, _):
  mean = values.get('use_mean_pooling', True)
  relative = values.get('use_relative_position_bias') or values.get(
    'use_shared_relative_position_bias'
  )
  return {
    'class': 'Beit',
    'qkv_bias': [True, False, True],
    'layer_scale': values.get('layer_scale_init_value', 0.1) > 0,
    'pos_embed': values.get('use_absolute_position_embeddings', False),
    'rel_pos': 'table' if relative else None,
    'global_pool': 'avg' if mean else 'token',
    'model_norm': None if mean else 'LayerNorm',
    'model_fc_norm': 'LayerNorm' if mean else None,
  }


def preparation_of(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
  """Returns arguments of `Resizing` and `size`, from preprocessor_config.json.

  Returns:
    {} if there is no such file; `size` is absent if the image is not resized.
  """
  if not preprocessor:
    return {}
  filter_number = preprocessor.get('resample', 2)
  if filter_number not in _RESAMPLE:
    raise ValueError(
      f'its preprocessor_config.json has resample={filter_number}; vit_jax has '
      f'only {", ".join(f"{k} ({x})" for k, x in _RESAMPLE.items())}.'
    )
  found = {'interpolation': f'{_RESAMPLE[filter_number]}_antialias'}
  if not preprocessor.get('do_resize', True):
    return {}
  size = preprocessor.get('size', {})
  size = {'height': size, 'width': size} if isinstance(size, int) else size
  shortest = size.get('shortest_edge')
  if not shortest and not {'height', 'width'} <= size.keys():
    raise ValueError(
      f'its preprocessor_config.json has size={size or None}; vit_jax needs '
      'shortest_edge, or height and width.'
    )
  height, width = (
    (shortest, shortest) if shortest else (size['height'], size['width'])
  )
  found['resize'] = 'crop' if shortest else 'squash'
  crop = preprocessor.get('crop_size')
  if preprocessor.get('do_center_crop') and crop:
    crop = {'height': crop, 'width': crop} if isinstance(crop, int) else crop
    found['crop_fraction'] = crop['height'] / height
    height, width = crop['height'], crop['width']
  found['size'] = height, width
  return found


def class_names_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Returns the class names of a config; None for placeholders or no names."""
  named = config.get('id2label')
  if not named:
    return None
  names = tuple(str(named[str(i)]) for i in range(len(named)))
  placeholders = tuple(f'LABEL_{i}' for i in range(len(named)))
  return None if names == placeholders else names


def mean_and_std(
  preprocessor: Mapping[str, Any],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
  """Returns mean and deviation for pixels in [0, 1]; None if not stated."""
  if not preprocessor:
    return None, None
  scale = 255 * preprocessor.get('rescale_factor', 1 / 255)
  if not preprocessor.get('do_rescale', True):
    scale = 255.0
  if not preprocessor.get('do_normalize', True):
    return (0.0,) * 3, (1 / scale,) * 3
  found = [preprocessor.get(f'image_{x}') for x in ('mean', 'std')]
  if None in found:
    return None, None
  mean, std = ([x] * 3 if isinstance(x, float) else x for x in found)
  return tuple(x / scale for x in mean), tuple(x / scale for x in std)
