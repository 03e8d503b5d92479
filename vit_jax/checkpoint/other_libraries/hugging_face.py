"""Reads Hugging Face's `config.json`: the facts of a model by `model_type`.

transformers stores only values that differ from the defaults of a model type in
parts of a config, so the defaults are repeated here. Facts have the keys of
`timm_settings`, so one function makes settings of both libraries.
"""

from collections.abc import Mapping
import difflib
from typing import Any

from vit_jax.checkpoint.other_libraries import hugging_face_kinds

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
# {problem_type: (output, task)} of `metadata.Description`
PROBLEMS = {
  None: ('softmax', 'classification'),
  'single_label_classification': ('softmax', 'classification'),
  'multi_label_classification': ('sigmoid', 'multi_label'),
  'regression': ('identity', 'regression'),
}
# Model types with several towers, and the type of their image tower.
_TOWERS = {kind: f'{kind}_vision_model' for kind in ('clip', 'siglip', 'aimv2')}
_NAFLEX = 'NaFlex models take patches of images of any shape'
_REFUSED = {'siglip2': _NAFLEX, 'siglip2_vision_model': _NAFLEX}
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
  return facts | hugging_face_kinds.changes(kind, values, model_class(config))


def is_projection(config: Mapping[str, Any]) -> bool:
  """Returns whether the head of a model makes embeddings, not classes."""
  kinds = _TOWERS['clip'], _TOWERS['aimv2']
  return tower_of(config)[0] in kinds and not is_classifier(config)


def is_classifier(config: Mapping[str, Any]) -> bool:
  """Returns whether the class of a model is one of classifiers."""
  return hugging_face_kinds.CLASSIFIER in model_class(config)


def model_class(config: Mapping[str, Any]) -> str:
  """Returns the name of a model's class; '' if it is unknown."""
  return (config.get('architectures') or ('',))[0]


def output_of(config: Mapping[str, Any]) -> tuple[str, str]:
  """Returns (output, task) of a model; see `metadata.Description`.

  As in transformers, a single label without `problem_type` is a regression.

  Raises:
    ValueError: vit_jax does not have this `problem_type`.
  """
  if is_projection(config):
    return 'identity', 'classification'
  if model_class(config) and not is_classifier(config):  # without a head
    return PROBLEMS[None]
  problem = config.get('problem_type')
  if problem is None and len(config.get('id2label') or ()) == 1:
    problem = 'regression'
  if problem not in PROBLEMS:
    known = ', '.join(filter(None, PROBLEMS))
    raise ValueError(
      f'its problem_type is {problem!r}, so it is unknown what its outputs '
      f'mean. Set problem_type to one of {known}.'
    )
  return PROBLEMS[problem]


def target_names_of(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the names of a regression's targets; a config has 2 by default."""
  named = config.get('id2label') or {'0': 'LABEL_0', '1': 'LABEL_1'}
  return tuple(str(named[str(i)]) for i in range(len(named)))


def class_names_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Returns the class names of a config; None for placeholders or no names."""
  named = config.get('id2label')
  if not named:
    return None
  names = tuple(str(named[str(i)]) for i in range(len(named)))
  placeholders = tuple(f'LABEL_{i}' for i in range(len(named)))
  return None if names == placeholders else names
