"""Tables of array names in timm.

A row is (kind, our path, their path). For each kind of module, ARRAYS lists the
arrays. {i}, {s} and {u} are the numbers of a block, a stage and a unit. `a|b`
are two modules that are one module in PyTorch.

Some modules have several names in timm, which depend on the class of the model.
The usual names are in TIMM_VIT, the other ones in ALTERNATIVES.
"""

import re

from vit_jax.models import param_paths

_BLOCK = param_paths.block('{i}')
_ATTENTION = f'{_BLOCK}{param_paths.ATTENTION}/'
_MLP = f'{_BLOCK}MlpBlock_0/'
_POOL = f'{param_paths.POOLING}/'
_POOL_ATTENTION = f'{_POOL}{param_paths.ATTENTION}/'
_UNIT = 'block{s+1}/unit{u+1}/'

TIMM_VIT = (
  ('array', param_paths.CLASS_TOKEN, 'cls_token'),
  ('array', param_paths.REGISTERS, 'reg_token'),
  ('array', param_paths.POSITIONS, 'pos_embed'),
  ('conv', 'embedding', 'patch_embed.proj'),
  ('norm', _BLOCK + 'LayerNorm_0', 'blocks.{i}.norm1'),
  ('heads', _ATTENTION + 'query|key|value', 'blocks.{i}.attn.qkv'),
  ('norm', _ATTENTION + 'query_ln', 'blocks.{i}.attn.q_norm'),
  ('norm', _ATTENTION + 'key_ln', 'blocks.{i}.attn.k_norm'),
  ('norm', _ATTENTION + 'norm', 'blocks.{i}.attn.norm'),
  ('out', _ATTENTION + 'out', 'blocks.{i}.attn.proj'),
  ('array', _BLOCK + 'LayerScale_0/scale', 'blocks.{i}.ls1.gamma'),
  ('norm', _BLOCK + 'LayerNorm_1', 'blocks.{i}.norm2'),
  ('dense', _MLP + 'Dense_0', 'blocks.{i}.mlp.fc1'),
  ('norm', _MLP + 'norm', 'blocks.{i}.mlp.norm'),
  ('dense', _MLP + 'Dense_1', 'blocks.{i}.mlp.fc2'),
  ('array', _BLOCK + 'LayerScale_1/scale', 'blocks.{i}.ls2.gamma'),
  (
    'array',
    _BLOCK + param_paths.RELATIVE_TABLE,
    'blocks.{i}.attn.relative_position_bias_table',
  ),
  *(
    ('dense', before + param_paths.RELATIVE_MLP.replace('0', i), f'{there}{n}')
    for before, module in (
      (_BLOCK, 'blocks.{i}.attn.rel_pos'),
      (f'{param_paths.ENCODER}/', 'shared_rel_pos'),
    )
    for there in (f'{module}.mlp.fc',)
    for i, n in ('01', '12')
  ),
  # One array for each block; timm stacks them: `torch_layouts`.
  ('array', _BLOCK + param_paths.ROTARY, 'blocks.{i}.rope.freqs'),
  ('norm', param_paths.PRE_NORM, 'norm_pre'),
  ('norm', param_paths.ENCODER_NORM, 'norm'),
  ('norm', param_paths.HEAD_NORM, 'fc_norm'),
  ('array', param_paths.PROBE, 'attn_pool.latent'),
  ('heads', _POOL_ATTENTION + 'query', 'attn_pool.q'),
  ('heads', _POOL_ATTENTION + 'key|value', 'attn_pool.kv'),
  ('out', _POOL_ATTENTION + 'out', 'attn_pool.proj'),
  ('norm', _POOL + 'LayerNorm_0', 'attn_pool.norm'),
  ('dense', _POOL + 'MlpBlock_0/Dense_0', 'attn_pool.mlp.fc1'),
  ('dense', _POOL + 'MlpBlock_0/Dense_1', 'attn_pool.mlp.fc2'),
  ('dense', param_paths.PRE_LOGITS, 'pre_logits.fc'),  # timm before 0.8
  ('dense', param_paths.HEAD, 'head'),
  *(
    row
    for number in '123'
    for row in (
      (
        'conv',
        _UNIT + f'conv{number}',
        f'patch_embed.backbone.stages.{{s}}.blocks.{{u}}.conv{number}',
      ),
      (
        'norm',
        _UNIT + f'gn{number}',
        f'patch_embed.backbone.stages.{{s}}.blocks.{{u}}.norm{number}',
      ),
    )
  ),
  (
    'conv',
    _UNIT + 'conv_proj',
    'patch_embed.backbone.stages.{s}.blocks.{u}.downsample.conv',
  ),
  (
    'norm',
    _UNIT + 'gn_proj',
    'patch_embed.backbone.stages.{s}.blocks.{u}.downsample.norm',
  ),
  ('conv', 'conv_root', 'patch_embed.backbone.stem.conv'),
  ('norm', 'gn_root', 'patch_embed.backbone.stem.norm'),
)
# The hidden layer of a gated MLP, if one array holds gates and values.
PACKED_GATE = (('dense', _MLP + 'gate|Dense_0', 'blocks.{i}.mlp.fc1'),)
# Names in the classes Eva and Beit; see `timm_settings.array_names`.
ALTERNATIVES = {
  'separate_gate': (
    ('dense', _MLP + 'gate', 'blocks.{i}.mlp.fc1_g'),
    ('dense', _MLP + 'Dense_0', 'blocks.{i}.mlp.fc1_x'),
  ),
  'separate_qkv': tuple(
    ('heads', _ATTENTION + name, f'blocks.{{i}}.attn.{name[0]}_proj')
    for name in ('query', 'key', 'value')
  ),
  'separate_bias': tuple(
    (
      'head_bias',
      _ATTENTION + f'{name}/bias',
      f'blocks.{{i}}.attn.{name[0]}_bias',
    )
    for name in ('query', 'value')
  ),
  'gamma': (
    ('array', _BLOCK + 'LayerScale_0/scale', 'blocks.{i}.gamma_1'),
    ('array', _BLOCK + 'LayerScale_1/scale', 'blocks.{i}.gamma_2'),
  ),
}


def _side_by_side(row, j):
  """Returns a row for layer j of timm's ParallelThingsBlock.

  Its numbers in vit_jax are those of layer 0, plus 10·j (`EncoderBlock`).
  """
  kind, here, there = row
  here = re.sub(
    r'(LayerNorm|LayerScale)_(\d)',
    lambda m: f'{m[1]}_{10 * j + int(m[2])}',
    here,
  )
  here = re.sub(r'(Attention|MlpBlock)_0', rf'\g<1>_{10 * j}', here)
  for ours, module in (('attn|norm1|ls1', 'attns'), ('mlp|norm2|ls2', 'ffns')):
    there = re.sub(rf'\.({ours})\b', rf'.{module}.{j}.\1', there)
  return kind, here, re.sub(r'(norm|ls)[12]', r'\1', there)


PARALLEL = tuple(
  _side_by_side(row, j)
  for j in (0, 1)
  for row in TIMM_VIT
  if row[2].startswith('blocks.')
)
# If the stem has only a root, timm's names of its two modules have no `stem.`.
TIMM_ROOT = tuple(
  (kind, here, there.replace('stem.', ''))
  for kind, here, there in TIMM_VIT
  if here.endswith('_root')
)

_MIXER = 'MixerBlock_{i}/'
TIMM_MIXER = (
  ('conv', 'stem', 'stem.proj'),
  ('norm', _MIXER + 'LayerNorm_0', 'blocks.{i}.norm1'),
  ('dense', _MIXER + 'token_mixing/Dense_0', 'blocks.{i}.mlp_tokens.fc1'),
  ('dense', _MIXER + 'token_mixing/Dense_1', 'blocks.{i}.mlp_tokens.fc2'),
  ('norm', _MIXER + 'LayerNorm_1', 'blocks.{i}.norm2'),
  ('dense', _MIXER + 'channel_mixing/Dense_0', 'blocks.{i}.mlp_channels.fc1'),
  ('dense', _MIXER + 'channel_mixing/Dense_1', 'blocks.{i}.mlp_channels.fc2'),
  ('norm', 'pre_head_layer_norm', 'norm'),
  ('dense', param_paths.HEAD, 'head'),
)

# timm's names of units are those in hybrids, without `patch_embed.backbone.`.
TIMM_BIT = (
  ('conv', 'conv_root', 'stem.conv'),
  ('norm', param_paths.BIT_NORM, 'norm'),
  ('pointwise', param_paths.HEAD, 'head.fc'),
  *(
    (kind, here, there.removeprefix('patch_embed.backbone.'))
    for kind, here, there in TIMM_VIT
    if here.startswith(_UNIT)
  ),
)

# {kind: (our array, their array, change) for each array of a module}
ARRAYS = {
  'array': (('', '', 'same'),),
  'norm': (('/scale', '.weight', 'same'), ('/bias', '.bias', 'same')),
  'dense': (('/kernel', '.weight', 'turned'), ('/bias', '.bias', 'same')),
  'conv': (('/kernel', '.weight', 'conv'), ('/bias', '.bias', 'same')),
  'pointwise': (
    ('/kernel', '.weight', 'pointwise'),
    ('/bias', '.bias', 'same'),
  ),
  'heads': (('/kernel', '.weight', 'heads'), ('/bias', '.bias', 'heads')),
  # Without the axes of length 1 that our arrays have.
  'vector': (('', '', 'vector'),),
  'rows': (('', '', 'rows'),),
  'projection': (('/kernel', '.weight', 'turned'),),
  'in_proj': (('/kernel', '_weight', 'heads'), ('/bias', '_bias', 'heads')),
  'head_bias': (('', '', 'heads'),),
  'out': (('/kernel', '.weight', 'out'), ('/bias', '.bias', 'same')),
}
