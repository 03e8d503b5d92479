"""Facts that belong to a model type of Hugging Face; see `hugging_face`."""

from collections.abc import Mapping
from typing import Any

# Part of the name of a class whose head makes logits.
CLASSIFIER = 'ForImageClassification'
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


def changes(
  kind: str, values: Mapping[str, Any], class_name: str
) -> dict[str, Any]:
  """Returns the facts that differ from those of `hugging_face.facts_of`.

  Args:
    kind: the model type.
    values: values of its config, with all defaults.
    class_name: name of the class of the model; '' if it is unknown.

  Raises:
    ValueError: vit_jax does not have this model.
  """
  return _KINDS[kind](values, class_name) if kind in _KINDS else {}


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
  if name.endswith(CLASSIFIER):
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
  if name.endswith(CLASSIFIER):
    facts |= {'global_pool': 'avg', 'model_norm': None}
  return facts


def _siglip(values, name):
  facts = {'class_token': False, 'global_pool': 'avg'}
  if values.get('vision_use_head', True) and not name.endswith(CLASSIFIER):
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
    'patch_embed_norm': True,
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


# {model type: function (values of the config, name of the class) -> facts}
_KINDS = {
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
}
