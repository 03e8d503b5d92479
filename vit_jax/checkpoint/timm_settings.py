"""Translates the facts of an architecture of timm into settings of our models.

Facts are a dict with the keys of `timm_architectures.json`: class, block, attn,
num_heads, act, norm and so on. Every fact that changes a result is read here. A
value that our models do not have is refused with its reason. Facts of the
preparation of images (mean, std, size) are not read.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer

# timm's names of values, and ours.
_GELU = {'gelu': 'exact', 'gelu_tanh': 'tanh', 'quick_gelu': 'quick'}
_NORMS = {'LayerNorm': 'layer', 'RmsNorm': 'rms'}
_CLASSIFIERS = {'token': 'token', 'avg': 'gap', 'map': 'map'}
_CLASSES = (
  'VisionTransformer',
  'VisionTransformerDistilled',
  'VisionTransformerRelPos',
  'Eva',
  'Beit',
)
# {block of timm: our settings}
_BLOCKS = {
  'Block': {},
  'EvaBlock': {},
  'RelPosBlock': {},
  'EvaBlockPostNorm': {'norm_after': True},
  'ResPostBlock': {'norm_after': True},
  'ResPostRelPosBlock': {'norm_after': True},
  'ParallelScalingBlock': {'block': 'parallel'},
}
_RELATIVE = {'table': 'relative_table', 'RelPosMlp': 'relative_mlp'}
_ROTARY = {
  'RotaryEmbeddingCat': 'axial',
  'RotaryEmbeddingDinoV3': 'normalized',
  'RotaryEmbeddingMixed': 'mixed',
}
_ATTENTION = ('Attention', 'EvaAttention', 'AttentionRope', 'RelPosAttention')
# {fact: (values that we have, reason for the refusal of other values)}
_REFUSED = {
  'class': ((*_CLASSES, 'MlpMixer'), 'models of this class'),
  'block': ((*_BLOCKS, 'MixerBlock'), 'blocks of this kind'),
  'attn': ((None, *_ATTENTION), 'attention of this kind'),
  'mlp': ((None, 'Mlp', 'GluMlp', 'SwiGLU'), 'MLPs of this kind'),
  'act': ((None, 'silu', *_GELU), 'this activation'),
  'norm': ((None, *_NORMS), 'norms of this kind'),
  'attn_norm': ((None, *_NORMS), 'norms of this kind'),
  'mlp_norm': ((None, *_NORMS), 'norms of this kind'),
  'attn_q_norm': ((None, *_NORMS), 'norms of this kind'),
  'global_pool': (tuple(_CLASSIFIERS), 'this pooling'),
  'rel_pos': ((None, *_RELATIVE), 'relative positions of this kind'),
}
# What an option of `VisionTransformer` is, for the reason of a refusal.
_OPTIONS = {
  'pre_norm': 'a norm before the blocks',
  'encoder_norm': 'blocks without a norm after them',
  'head_norm': 'a norm after pooling',
  'patch_bias': 'patches without a bias',
  'qkv_bias': 'queries, keys and values without a bias',
  'gated_mlp': 'gated MLPs',
  'mlp_norm': 'a norm within MLPs',
  'attention_norm': 'a norm within attention',
  'norm': 'RMS norms',
  'norm_after': 'norms after the branches',
  'block': 'parallel blocks',
  'distilled': 'a distillation token',
  'drop_remainder': 'a patch size that does not divide the image size',
}


def settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns arguments of `models.get_model` for an architecture of timm.

  They are complete: no value of a named architecture remains. With
  `tokens_mlp_dim`, the model is a Mixer, otherwise a Vision Transformer. The
  initial value of LayerScale, which is no fact, is 1e-4.

  Args:
    facts: facts of one architecture. Facts that are missing in
      `timm_architectures.json` may be added: `stem_units` of hybrids, and all
      facts of the blocks of parallel models.

  Raises:
    ValueError: no model of this library has these facts; the message has the
      reason. Or a fact that is needed is missing.
  """
  for fact, (known, reason) in _REFUSED.items():
    value = facts.get(fact)
    if value not in known:
      kind = value['type'] if isinstance(value, Mapping) else value
      raise ValueError(f'vit_jax does not have {reason}: {kind}.')
  settings = _mixer(facts) if facts['class'] == 'MlpMixer' else _vit(facts)
  family = MlpMixer if 'tokens_mlp_dim' in settings else VisionTransformer
  _check_options(settings, family)
  return settings


def _check_options(settings, family):
  fields = {field.name for field in dataclasses.fields(family)}
  missing = [name for name in settings if name not in fields]
  if missing:
    raise ValueError(
      'vit_jax does not have '
      + ' and '.join(_OPTIONS.get(name, name) for name in missing)
      + '.'
    )


def _mixer(facts):
  return dict(
    patch_size=_patch_size(facts),
    hidden_size=facts['embed_dim'],
    num_layers=facts['depth'],
    # All Mixers of timm have these ratios; the arrays must agree.
    tokens_mlp_dim=facts['embed_dim'] // 2,
    mlp_dim=4 * facts['embed_dim'],
    gelu='exact',
    norm_epsilon=facts['norm_eps'],
  )


def _vit(facts):
  if facts['class'] == 'Beit':  # The only class whose facts lack it.
    facts = {'head_dim': facts['embed_dim'] // facts['num_heads'], **facts}
  _check_complete(facts)
  settings = dict(
    patch_size=_patch_size(facts),
    hidden_size=facts['embed_dim'],
    num_layers=facts['depth'],
    num_heads=facts['num_heads'],
    norm_epsilon=facts['norm_eps'],
    classifier=_CLASSIFIERS[facts['global_pool']],
    class_token=facts['class_token'],
    **_positions(facts),
    **_rotary(facts.get('rope')),
    **_mlp(facts),
    **_BLOCKS[facts['block']],
  )
  if facts['num_heads'] * facts['head_dim'] != facts['embed_dim']:
    settings['head_dim'] = facts['head_dim']
  if facts.get('reg_tokens'):
    registers = facts['reg_tokens']  # A number, or the shape of the array.
    settings['num_registers'] = (
      registers if isinstance(registers, int) else registers[1]
    )
  if facts.get('layer_scale'):
    settings['layer_scale'] = 1e-4
  if facts['patch_embed'] == 'HybridEmbed':
    settings['stem_units'] = _stem_units(facts)
  eva = facts['attn'] in ('EvaAttention',) or facts['class'] == 'Beit'
  differences = dict(
    norm=_NORMS[facts['norm']],
    pre_norm=bool(facts.get('model_norm_pre')),
    encoder_norm=bool(facts.get('model_norm')),
    head_norm=bool(facts.get('model_fc_norm')),
    patch_bias=bool(facts.get('patch_bias')),
    qkv_bias=bool(facts['qkv_bias']),
    qk_norm=bool(facts.get('attn_q_norm')),
    attention_norm=bool(facts.get('attn_norm')),
    distilled=bool(facts.get('distilled')),
    drop_remainder=any(
      side % facts['patch_size'][0] for side in facts['img_size']
    ),
  )
  usual = dict(norm='layer', encoder_norm=True, patch_bias=True, qkv_bias=True)
  return settings | {
    name: value
    for name, value in differences.items()
    if value != usual.get(name, False)
  }


def _check_complete(facts):
  for fact in ('num_heads', 'head_dim', 'mlp_hidden', 'norm', 'norm_eps'):
    if facts.get(fact) is None:
      raise ValueError(
        f'the facts of this architecture ({facts["block"]}) do not contain '
        f'{fact}.'
      )


def _patch_size(facts):
  down, across = facts['patch_size']
  if down != across:
    raise ValueError(
      f'vit_jax has square patches only, but these are {down} x {across}.'
    )
  return down


def _stem_units(facts):
  if 'stem_units' not in facts:
    raise ValueError(
      'vit_jax does not have the convolutional stem of this hybrid: it is not '
      'a ResNet with group norms.'
    )
  return tuple(facts['stem_units'])


def _positions(facts):
  """Returns settings of positions, except rotary ones."""
  if facts.get('rel_pos'):
    found = dict(positions=_RELATIVE[facts['rel_pos']])
  elif facts['class'] == 'VisionTransformerRelPos':
    # The blocks have no positions, so they share the model's.
    found = dict(positions='relative_mlp', positions_at='every_layer_shared')
  else:
    return dict(positions='learned' if facts.get('pos_embed') else 'none')
  if facts.get('pos_embed'):
    raise ValueError(
      f'vit_jax does not have both learned positions and {found["positions"]}.'
    )
  return found


def _rotary(rope):
  """Returns settings of rotary positions."""
  if not rope:
    return {}
  kind = _ROTARY.get(rope['type'])
  if kind is None:
    raise ValueError(
      f'vit_jax does not have rotary positions of this kind: {rope["type"]}.'
    )
  for fact, known in (('in_pixels', False), ('normalize_coords', 'separate')):
    if rope.get(fact, known) != known:
      raise ValueError(
        f'vit_jax does not have rotary positions with {fact}={rope[fact]!r}.'
      )
  settings = dict(
    rotary=kind,
    rotary_temperature=float(rope['temperature']),
    rotary_indexing=rope['grid_indexing'],
    rotary_offset=float(rope.get('grid_offset', 0)),
    rotary_halves=rope.get('rotate_half', False),
  )
  if rope.get('ref_feat_shape'):
    settings['rotary_grid'] = tuple(rope['ref_feat_shape'])
  return settings


def _mlp(facts):
  """Returns settings of the MLP."""
  settings = dict(mlp_dim=facts['mlp_hidden'])
  if facts['mlp'] in ('GluMlp', 'SwiGLU'):
    if facts['act'] != 'silu':
      raise ValueError(
        f'vit_jax does not have gated MLPs with {facts["act"]}, only SwiGLU.'
      )
    settings['gated_mlp'] = True
    if facts['mlp'] == 'GluMlp':  # One array holds gates and values.
      settings['mlp_dim'] //= 2
  else:
    if facts['act'] not in _GELU:
      raise ValueError(
        f'vit_jax does not have {facts["act"]} in MLPs that are not gated.'
      )
    settings['gelu'] = _GELU[facts['act']]
  if facts.get('mlp_norm'):
    settings['mlp_norm'] = True
  return settings
