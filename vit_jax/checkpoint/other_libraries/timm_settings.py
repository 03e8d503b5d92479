"""Translates the facts of an architecture of timm into settings of our models.

Facts are a dict with the keys of `timm_architectures.json`: class, block, attn,
num_heads, act, norm and so on. Every fact that changes a result is read here. A
value that our models do not have raises a ValueError with the reason. Facts of
the preparation of images (mean, std, size) are not read.
"""

from collections.abc import Mapping
from typing import Any

# timm's names of values, and ours.
_GELU = {'gelu': 'exact', 'gelu_tanh': 'tanh', 'quick_gelu': 'quick'}
_NORMS = {'LayerNorm': 'layer', 'RmsNorm': 'rms'}
_CLASSIFIERS = {'avg': 'gap'} | {
  name: name for name in ('token', 'map', 'probe', 'token_gap')
}
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
  'ParallelThingsBlock': {},
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
  'layer_scale': ((None, False, True), 'LayerScale in one kind of layer only'),
  'num_kv_heads': ((None,), 'fewer heads of keys than of queries'),
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
  return _mixer(facts) if facts['class'] == 'MlpMixer' else _vit(facts)


def array_names(facts: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the `names` of `torch_convert.to_timm` for an architecture."""
  return tuple(
    name
    for name, applies in (
      ('gamma', facts['class'] in ('Eva', 'Beit')),
      ('separate_gate', facts.get('mlp') == 'SwiGLU'),
      ('separate_qkv', isinstance(facts.get('qkv_bias'), list)),
    )
    if applies
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
  if facts.get('attn_pool'):
    settings |= _pooling(facts)
  if facts['patch_embed'] == 'HybridEmbed':
    settings |= dict(stem_units=_stem_units(facts), stem_epsilons='timm')
    if facts.get('stem_width', 64) != 64:
      settings['stem_width'] = facts['stem_width']
  qkv_bias = facts['qkv_bias']  # Or a list: for query, key and value.
  differences = dict(
    num_parallel=facts.get('parallel', 1),
    norm=_NORMS[facts['norm']],
    pre_norm=bool(facts.get('model_norm_pre')),
    encoder_norm=bool(facts.get('model_norm')),
    head_norm=bool(facts.get('model_fc_norm')),
    patch_bias=bool(facts.get('patch_bias')),
    patch_norm=facts.get('patch_embed_norm', False),
    out_bias=facts.get('out_bias', True),
    mlp_bias=facts.get('mlp_bias', True),
    qkv_bias=bool(qkv_bias),
    key_bias=not (
      qkv_bias and (facts['attn'] == 'EvaAttention' or facts['class'] == 'Beit')
    ),
    qk_norm=bool(facts.get('attn_q_norm')),
    qk_norm_bias=facts.get('attn_q_norm') == 'LayerNorm',
    attention_norm=bool(facts.get('attn_norm')),
    distilled=bool(facts.get('distilled')),
    drop_remainder=any(
      side % facts['patch_size'][0] for side in facts['img_size']
    ),
  )
  biases = 'patch_bias', 'qkv_bias', 'key_bias', 'out_bias', 'mlp_bias'
  usual = dict.fromkeys((*biases, 'encoder_norm', 'num_parallel'), 1)
  usual['norm'] = 'layer'
  return settings | {
    name: value
    for name, value in differences.items()
    if value != usual.get(name, False)
  }


def _pooling(facts):
  """Returns settings of attention pooling."""
  pool = facts['attn_pool']
  if pool.get('latent_len', 1) != 1:
    raise ValueError('vit_jax does not have pooling with several latents.')
  settings = {}
  if pool['num_heads'] not in (None, facts['num_heads']):
    settings['pool_heads'] = pool['num_heads']
  # In timm, these models have an MLP of this width, and pool all tokens.
  if facts['class'] == 'Eva' and facts['mlp_hidden'] != 4 * facts['embed_dim']:
    settings['pool_mlp_dim'] = 4 * facts['embed_dim']
  if facts['class'] == 'Eva' or facts.get('pool_include_prefix'):
    settings['pool_all_tokens'] = True
  return settings


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
  if facts.get('rel_pos_shared'):
    found['positions_at'] = 'every_layer_shared'
  if facts.get('rel_pos_dim'):  # Otherwise, it is the default.
    found['relative_mlp_dim'] = facts['rel_pos_dim']
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
