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
  'aimv2_vision_model': dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=8,
    intermediate_size=2816,
    patch_size=14,
    hidden_act='silu',
    rms_norm_eps=1e-5,
    qkv_bias=False,
    mlp_bias=False,
  ),
  'beit': {},
  'data2vec-vision': {},
  'vit-hybrid': dict(patch_size=1),
}
# Model types with several towers, and the type of their image tower.
_TOWERS = {kind: f'{kind}_vision_model' for kind in ('clip', 'siglip', 'aimv2')}
_NAFLEX = 'NaFlex models take patches of images of any shape'
_REFUSED = {'siglip2': _NAFLEX, 'siglip2_vision_model': _NAFLEX}
# The stem of hybrids: values of its `backbone_config` that vit_jax has. Those
# that are absent are the first ones here; `depths` may have other values.
_STEM = {
  'model_type': ('bit',),
  'layer_type': ('bottleneck',),
  'global_padding': ('same', 'SAME'),
  'embedding_dynamic_padding': (True,),
  'hidden_act': ('relu',),
  'num_groups': (32,),
  'output_stride': (32,),
  'width_factor': (1,),
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
_CLASSIFIER = 'ForImageClassification'
# Number of a resampling filter in Pillow, and our name.
RESAMPLE = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}


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
  if values.get('pooler_act', 'tanh') != 'tanh':
    raise ValueError(
      f'vit_jax does not have pooler_act={values["pooler_act"]}, only tanh.'
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
  change = {
    'vit-hybrid': _hybrid,
    'deit': _deit,
    'dinov2': _dinov2,
    'dinov2_with_registers': _dinov2,
    'dinov3_vit': _dinov3,
    'clip_vision_model': _clip,
    'siglip_vision_model': _siglip,
    'aimv2_vision_model': _aimv2,
    'beit': _beit,
    'data2vec-vision': _beit,
  }.get(kind)
  return facts | change(values, _class_name(config)) if change else facts


def is_projection(config: Mapping[str, Any]) -> bool:
  """Returns whether the head of a model makes embeddings, not classes."""
  kinds = _TOWERS['clip'], _TOWERS['aimv2']
  return tower_of(config)[0] in kinds and not is_classifier(config)


def is_classifier(config: Mapping[str, Any]) -> bool:
  """Returns whether the class of a model is one of classifiers."""
  return _CLASSIFIER in _class_name(config)


def _class_name(config):
  return (config.get('architectures') or ('',))[0]


def _hybrid(values, _):
  stem = values.get('backbone_config') or {}
  depths = tuple(stem.get('depths', (3, 4, 9)))
  width = stem.get('embedding_size', 64)
  sizes = [4 * width * 2**i for i in range(len(depths))]
  known = _STEM | {
    'out_features': ([f'stage{len(depths)}'],),
    'hidden_sizes': (sizes, [*sizes, 2048]),
  }
  for name, possible in known.items():
    found = stem.get(name, possible[0])
    if found not in possible:
      raise ValueError(
        f'vit_jax does not have a stem with {name}={found!r}, only '
        f'{possible[0]!r}.'
      )
  return {
    'patch_embed': 'HybridEmbed',
    'stem_units': depths,
    'stem_width': width,
  }


def _deit(_, name):
  if name.endswith('WithTeacher'):
    return {'class': 'VisionTransformerDistilled', 'distilled': True}
  # Its head reads the class token only. The distillation token is a register.
  return {'reg_tokens': 1}


def _dinov2(values, name):
  width = values['hidden_size']
  hidden = int(width * values['mlp_ratio'])
  facts = {
    'mlp_hidden': hidden,
    'layer_scale': True,
    'reg_tokens': values.get('num_register_tokens', 0),
  }
  if name.endswith(_CLASSIFIER):
    facts['global_pool'] = 'token_gap'
  if values.get('use_swiglu_ffn'):
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    facts |= {'mlp': 'GluMlp', 'act': 'silu', 'mlp_hidden': 2 * hidden}
  return facts


def _dinov3(values, _):
  biases = [
    values.get(f'{x}_bias', x != 'key') for x in ('query', 'key', 'value')
  ]
  if biases[0] != biases[2] or biases[1:] == [True, False]:
    raise ValueError(
      'vit_jax does not have biases of only some of queries and values.'
    )
  facts = {
    'class': 'Eva',
    'block': 'EvaBlock',
    'attn': 'Attention' if biases[1] else 'EvaAttention',
    'qkv_bias': biases[0] and biases,
    'mlp_bias': values.get('mlp_bias', True),
    'out_bias': values.get('proj_bias', True),
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
  if values.get('use_gated_mlp'):
    facts['mlp'] = 'SwiGLU'
  return facts


def _clip(_, name):
  facts = {'model_norm_pre': 'LayerNorm', 'patch_bias': False}
  if name.endswith(_CLASSIFIER):
    facts |= {'global_pool': 'avg', 'model_norm': None}
  return facts


def _siglip(values, name):
  facts = {'class_token': False, 'global_pool': 'avg'}
  if values.get('vision_use_head', True) and not name.endswith(_CLASSIFIER):
    pool = {'type': 'AttentionPoolLatent', 'latent_len': 1, 'pool': 'token'}
    pool['num_heads'] = values['num_attention_heads']
    facts |= {'global_pool': 'map', 'attn_pool': pool}
  return facts


def _aimv2(values, _):
  if values.get('is_native'):
    raise ValueError(
      'vit_jax does not have the sinusoidal positions of AIMv2 for images of '
      'any size (is_native=True). Their frequencies differ from sincos2d.'
    )
  return {
    'norm': 'RmsNorm',
    'norm_eps': values['rms_norm_eps'],
    'model_norm': 'RmsNorm',
    'patch_norm': True,
    'mlp': 'SwiGLU',
    'mlp_bias': values['mlp_bias'],
    'out_bias': values['qkv_bias'],
    'class_token': False,
    'global_pool': 'probe' if values.get('use_head', True) else 'avg',
  }


def _beit(values, _):
  mean = values.get('use_mean_pooling', True)
  own = values.get('use_relative_position_bias', False)
  shared = values.get('use_shared_relative_position_bias', False)
  if own and shared:
    raise ValueError(
      'vit_jax does not have relative positions of each block and also of all '
      'blocks (use_shared_relative_position_bias).'
    )
  return {
    'class': 'Beit',
    'qkv_bias': [True, False, True],
    'layer_scale': values.get('layer_scale_init_value', 0.1) > 0,
    'pos_embed': values.get('use_absolute_position_embeddings', False),
    'rel_pos': 'table' if own or shared else None,
    'rel_pos_shared': shared,
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
  if filter_number not in RESAMPLE:
    raise ValueError(
      f'its preprocessor_config.json has resample={filter_number}; vit_jax has '
      f'only {", ".join(f"{k} ({x})" for k, x in RESAMPLE.items())}.'
    )
  found = {'interpolation': f'{RESAMPLE[filter_number]}_antialias'}
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
