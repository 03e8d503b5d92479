"""Reads timm's `config.json`: the facts of the architecture of a file.

timm builds a model from `architecture`, and from `model_args`, which replace
values of the architecture. The facts of an architecture are in `timm_table`.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoint.other_libraries import timm_table

# Arguments that do not change the outputs of trained weights, or that the
# arrays determine.
_IGNORED = (
  *('num_classes', 'in_chans', 'weight_init', 'fix_init', 'head_init_scale'),
  *('drop_rate', 'pos_drop_rate', 'patch_drop_rate', 'proj_drop_rate'),
  *('attn_drop_rate', 'drop_path_rate', 'qkv_fused', 'rope_jitter_coords'),
  *('dynamic_img_size', 'dynamic_img_pad', 'strict_img_size'),
)
# {argument: fact with the same values}
_SAME = {
  name: name
  for name in (
    *('depth', 'embed_dim', 'num_heads', 'qkv_bias', 'global_pool'),
    *('class_token', 'no_embed_class', 'reg_tokens', 'num_kv_heads'),
  )
} | {'num_reg_tokens': 'reg_tokens'}
# {argument: norms that True adds and False removes}
_NORMS = {
  'pre_norm': ('model_norm_pre',),
  'scale_attn_norm': ('attn_norm',),
  'scale_mlp_norm': ('mlp_norm',),
  'qk_norm': ('attn_q_norm', 'attn_k_norm'),
}
_ACTIVATIONS = ('gelu', 'gelu_tanh', 'quick_gelu', 'silu')


def is_bit(config: Mapping[str, Any]) -> bool:
  """Returns whether a config is that of a BiT, which is not in the table."""
  name = config['architecture']
  return name.startswith('resnetv2_') and '_bit' in name


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the facts of the model of a timm `config.json`.

  Raises:
    ValueError: the architecture or an argument in `model_args` is unknown.
  """
  facts = timm_table.facts_of(config['architecture'].partition('.')[0])
  published = config.get('pretrained_cfg', config)
  args = dict(config.get('model_args') or {})
  if published.get('fixed_input_size') and published.get('input_size'):
    args.setdefault('img_size', published['input_size'][-2:])
  args = {name: x for name, x in args.items() if name not in _IGNORED}
  for changed in (_change_values, _change_norms, _change_sizes):
    facts |= changed(facts, args)
  if args:
    name, value = sorted(args.items())[0]
    raise ValueError(
      f'its model_args have {name}={value!r}, which vit_jax does not know.'
    )
  return facts


def _change_values(facts, args):
  """Returns changed facts. Arguments that are used are removed from `args`."""
  changed = {}
  kind = facts.get('norm', 'LayerNorm')
  for name, norms in _NORMS.items():
    if name in args:
      changed |= dict.fromkeys(norms, kind if args[name] else None)
      args.pop(name)
  if 'init_values' in args:
    changed['layer_scale'] = args.pop('init_values') is not None
  if args.get('act_layer') is not None:
    changed['act'] = args['act_layer']
    if changed['act'] not in _ACTIVATIONS:
      raise ValueError(
        f'its activation is {changed["act"]!r}; vit_jax has only '
        f'{", ".join(_ACTIVATIONS)}.'
      )
  args.pop('act_layer', None)
  if args.get('pos_embed', 'learn') != 'learn':
    changed['pos_embed'] = None
  args.pop('pos_embed', None)
  return changed


def _change_norms(facts, args):
  """Returns where the last norm is: before or after the pooling, as in timm."""
  explicit = args.pop('use_fc_norm', None)
  explicit = args.pop('fc_norm', explicit)
  has_norm = args.pop('final_norm', None)
  pool = args.get('global_pool', facts['global_pool'])
  if explicit is None and pool == facts['global_pool'] and has_norm is None:
    return {}
  changed = {}
  if pool != facts['global_pool']:
    changed['attn_pool'] = {'num_heads': None} if pool == 'map' else None
  after = bool(facts.get('model_fc_norm'))
  if explicit is not None:
    after = explicit
  elif after == (facts['global_pool'] == 'avg'):  # timm's default
    after = pool == 'avg' and facts['class'] != 'VisionTransformerRelPos'
  kind = facts.get('model_norm') or facts.get('model_fc_norm')
  if has_norm is not None:
    kind = facts.get('norm', 'LayerNorm') if has_norm else None
  changed['model_norm'] = None if after else kind
  changed['model_fc_norm'] = kind if after else None
  return changed


def _change_sizes(facts, args):
  changed = {}
  for name in ('img_size', 'patch_size'):
    size = args.pop(name, None)
    if size is not None:
      changed[name] = [size] * 2 if isinstance(size, int) else list(size)
  for name in args.keys() & _SAME.keys():
    changed[_SAME[name]] = args.pop(name)
  wide = facts | changed
  ratio = args.pop('mlp_ratio', None)
  if 'mlp_hidden' in facts and (ratio or 'embed_dim' in changed):
    ratio = ratio or facts['mlp_hidden'] / facts['embed_dim']
    changed['mlp_hidden'] = int(wide['embed_dim'] * ratio)
  if 'head_dim' in facts and changed.keys() & {'num_heads', 'embed_dim'}:
    changed['head_dim'] = wide['embed_dim'] // wide['num_heads']
  if (
    'num_heads' in changed
    and facts.get('attn_pool')
    and (
      facts['class'] != 'Eva'  # there, the heads of the pooling are independent
    )
  ):
    changed['attn_pool'] = facts['attn_pool'] | {'num_heads': None}
  rope = dict(facts.get('rope') or {})
  if 'feat_shape' in rope and changed.keys() & {'img_size', 'patch_size'}:
    rope['feat_shape'] = [
      side // patch
      for side, patch in zip(wide['img_size'], wide['patch_size'], strict=True)
    ]
    changed['rope'] = rope
  return changed
