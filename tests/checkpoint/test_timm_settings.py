"""Facts of timm's architectures, our settings, and the names of arrays."""

import functools

from flax import traverse_util
import jax
import numpy as np
import pytest

from tests.tiny_model import close
from tests.tiny_model import IMAGES
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from vit_jax import models
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import torch_convert
from vit_jax.checkpoint.other_libraries import timm_settings
from vit_jax.checkpoint.other_libraries import timm_table

REFUSED = {
  'sapiens2': 'LayerScale in one kind of layer only: attention',
  'resnet': 'stem of this hybrid',
  'mci': 'stem of this hybrid',
  'dlittle': 'attention of this kind: DiffAttention',
  'dwee': 'attention of this kind: DiffAttention',
  'dpwee': 'blocks of this kind: DiffParallelScalingBlock',
}


@functools.cache
def settings_of(name):
  return timm_settings.settings_of(timm_table.facts_of(name))


def test_every_architecture_has_settings_or_a_reason():
  refused = 0
  for name in timm_table.names():
    reason = [text for key, text in REFUSED.items() if key in name.split('_')]
    reason += [text for key, text in REFUSED.items() if f'_{key}' in name]
    if reason:
      refused += 1
      with pytest.raises(ValueError, match=reason[0]):
        settings_of(name)
      continue
    settings = settings_of(name)
    base = 'Mixer-B_16' if 'tokens_mlp_dim' in settings else 'ViT-B_16'
    models.get_model(base, num_classes=2, **settings)
  assert refused == 13


@pytest.mark.parametrize(
  'name, settings',
  [
    (
      'vit_base_patch16_clip_quickgelu_224',
      dict(gelu='quick', pre_norm=True, patch_bias=False, norm_epsilon=1e-5),
    ),
    (
      'vit_giant_patch14_reg4_dinov2',
      dict(gated_mlp=True, mlp_dim=4096, num_registers=4, num_heads=24),
    ),
    (
      'eva02_base_patch14_448',
      dict(gated_mlp=True, mlp_dim=2048, mlp_norm=True, key_bias=False),
    ),
    (
      'eva_giant_patch14_560',
      dict(num_heads=16, classifier='gap', encoder_norm=False, head_norm=True),
    ),
    ('vit_base_patch16_dinov3', dict(qkv_bias=False, layer_scale=1e-4)),
    ('beit3_base_patch16_224', dict(attention_norm=True, mlp_norm=True)),
    ('vit_base_patch16_rpn_224', dict(norm_after=True, qkv_bias=False)),
    ('test_vit4', dict(norm='rms', num_registers=1, class_token=False)),
    (
      'vit_base_patch16_xp_224',
      dict(block='parallel', norm='rms', qk_norm=True, mlp_dim=3072),
    ),
    ('vit_small_patch16_18x2_224', dict(num_parallel=2, num_layers=18)),
    ('vit_relpos_medium_patch16_cls_224', dict(relative_mlp_dim=256)),
    ('deit_tiny_distilled_patch16_224', dict(distilled=True, gelu='exact')),
    ('vit_so400m_patch14_siglip_384', dict(drop_remainder=True, mlp_dim=4304)),
    ('vit_giantopt_patch16_siglip_256', dict(gelu='tanh', num_heads=16)),
    (
      'vit_pe_core_gigantic_patch14_448',
      dict(pool_heads=8, pool_mlp_dim=6144, pool_all_tokens=True),
    ),
    ('test_vit3', dict(classifier='map', pool_all_tokens=True)),
    (
      'vit_base_r50_s16_384',
      dict(stem_units=(3, 4, 9), stem_epsilons='timm', patch_size=1),
    ),
    ('mixer_s32_224', dict(tokens_mlp_dim=256, mlp_dim=2048, gelu='exact')),
  ],
)
def test_settings_of_some_architectures(name, settings):
  found = settings_of(name)
  assert {key: found.get(key) for key in settings} == settings


@pytest.mark.parametrize(
  'name, fact, value, message',
  [
    ('deit3_base_patch16_224', 'act', 'relu', 'this activation: relu'),
    ('deit3_base_patch16_224', 'act', 'silu', 'silu in MLPs .* not gated'),
    ('eva02_base_patch14_448', 'act', 'gelu', 'gated MLPs with gelu'),
    ('deit3_base_patch16_224', 'patch_size', [16, 8], '16 x 8'),
    ('deit3_base_patch16_224', 'num_heads', None, 'do not contain num_heads'),
    (
      'vit_base_patch16_rope_224',
      'num_kv_heads',
      [4, 2],
      'fewer heads of keys',
    ),
    ('vit_base_patch16_siglip_224', 'attn_pool', {'latent_len': 2}, 'latents'),
  ],
)
def test_facts_without_a_counterpart_are_refused(name, fact, value, message):
  facts = timm_table.facts_of(name) | {fact: value}
  with pytest.raises(ValueError, match=message):
    timm_settings.settings_of(facts)


# {architecture: some names of its arrays in timm 1.0.31}
NAMES = {
  'beit3_base_patch16_224': (
    'attn.norm.bias',
    'mlp.norm.weight',
    'fc_norm.bias',
  ),
  'vit_base_patch16_clip_224': (
    'norm_pre.weight',
    'attn.qkv.bias',
    'norm.bias',
  ),
  'vit_giant_patch14_dinov2': ('mlp.fc1.weight', 'ls2.gamma', 'cls_token'),
  'eva02_base_patch14_448': (
    *('attn.q_proj.bias', 'attn.k_proj.weight', 'attn.v_proj.weight'),
    *('mlp.fc1_g.bias', 'mlp.fc1_x.weight', 'mlp.norm.bias', 'mlp.fc2.weight'),
  ),
  'eva_giant_patch14_560': ('attn.qkv.weight', 'attn.q_bias', 'attn.v_bias'),
  'beitv2_base_patch16_224': ('gamma_1', 'gamma_2', 'attn.q_bias'),
  'vit_base_patch16_xp_224': (
    *('in_norm.weight', 'in_proj.weight', 'mlp_bias', 'q_norm.weight'),
    *('attn_out_proj.bias', 'mlp_out_proj.weight'),
  ),
  'vit_pwee_patch16_reg1_gap_256': ('in_proj.bias', 'ls.gamma', 'reg_token'),
  'vit_small_patch16_18x2_224': (
    *('attns.0.norm.bias', 'attns.1.attn.qkv.weight', 'attns.1.ls.gamma'),
    *('ffns.0.mlp.fc2.bias', 'ffns.1.norm.weight', 'ffns.1.ls.gamma'),
  ),
  'deit_tiny_distilled_patch16_224': ('dist_token', 'head_dist.bias'),
}


def tiny(name):
  """Returns a small model of an architecture, and its arrays."""
  small = dict(num_classes=3, patch_size=8, hidden_size=16, mlp_dim=8)
  small |= dict(num_heads=2, num_layers=1, head_dim=None, rotary_grid=None)
  model = make_vit(**settings_of(name) | small)
  tree = jax.eval_shape(
    lambda: model.init(jax.random.key(0), IMAGES, train=False)
  )['params']
  rng = np.random.default_rng(0)
  return model, {
    path: rng.standard_normal(x.shape).astype(np.float32)
    for path, x in traverse_util.flatten_dict(tree, sep='/').items()
  }


@pytest.mark.parametrize('name', NAMES)
def test_names_of_arrays_in_both_directions(name):
  facts = timm_table.facts_of(name)
  embeds_class = not facts.get('no_embed_class')
  _, flat = tiny(name)
  there = torch_convert.to_timm(
    flat, timm_settings.array_names(facts), embeds_class
  )
  for expected in NAMES[name]:
    assert {expected, f'blocks.0.{expected}'} & there.keys(), expected
  back = torch_convert.to_linen(there, 2, embeds_class)
  assert back.keys() == flat.keys()
  # The position of the class token becomes a part of the token.
  for path in flat.keys() - (set() if embeds_class else {'cls', POSITIONS}):
    np.testing.assert_array_equal(back[path], flat[path], err_msg=path)
  again = torch_convert.to_timm(
    back, timm_settings.array_names(facts), embeds_class
  )
  assert again.keys() == there.keys()
  for path, array in there.items():
    np.testing.assert_array_equal(again[path], array, err_msg=path)


POSITIONS = 'Transformer/posembed_input/pos_embedding'


def test_parts_of_packed_arrays():
  rng = np.random.default_rng(0)
  gates, values = rng.standard_normal((2, 6, 4))
  flat = {'blocks.0.mlp.fc1.weight': np.concatenate([gates, values])}
  flat['blocks.0.mlp.fc2.weight'] = np.zeros((4, 6))
  found = torch_convert.to_linen(flat, 1)
  mlp = 'Transformer/encoderblock_0/MlpBlock_0'
  np.testing.assert_array_equal(found[f'{mlp}/gate/kernel'], gates.T)
  np.testing.assert_array_equal(found[f'{mlp}/Dense_0/kernel'], values.T)


def test_two_heads_become_their_mean():
  rng = np.random.default_rng(0)
  class_token, distilled = rng.standard_normal((2, 5, 4))
  flat = {
    'cls_token': np.zeros((1, 1, 4)),
    'dist_token': np.ones((1, 1, 4)),
    **{
      f'{x}.weight': rng.standard_normal((3, 4)) for x in ('head', 'head_dist')
    },
    **{f'{x}.bias': rng.standard_normal(3) for x in ('head', 'head_dist')},
  }
  expected = (
    class_token @ flat['head.weight'].T
    + flat['head.bias']
    + distilled @ flat['head_dist.weight'].T
    + flat['head_dist.bias']
  ) / 2
  found = torch_convert.to_linen(flat, 1)
  assert found['cls'].tolist() == [[[0] * 4, [1] * 4]]
  tokens = np.concatenate([class_token, distilled], axis=1)
  close(tokens @ found['head/kernel'] + found['head/bias'], expected, 1e-6)


def test_positions_of_a_class_token_without_one_in_timm():
  rng = np.random.default_rng(0)
  flat = {'cls': rng.standard_normal((1, 1, 4))}
  flat[POSITIONS] = rng.standard_normal((1, 7, 4))
  there = torch_convert.to_timm(flat, all_positions=False)
  np.testing.assert_array_equal(there['pos_embed'], flat[POSITIONS][:, 1:])
  close(there['cls_token'], flat['cls'] + flat[POSITIONS][:, :1], 1e-6)


def test_biases_that_change_nothing():
  model = make_vit(num_layers=1, qkv_bias=False, qk_norm=True)
  wide = model.clone(qkv_bias=True, qk_norm_bias=True)
  flat = params_of(model)
  tree = traverse_util.unflatten_dict(flat, sep='/')
  initial = traverse_util.unflatten_dict(params_of(wide), sep='/')
  adapted = adaptation.adapt(tree, initial, (4, 3), keep_head=True)
  found = traverse_util.flatten_dict(adapted, sep='/')
  assert len(found) == len(flat) + 5
  assert not any(found[path].any() for path in found.keys() - flat.keys())
  back = adaptation.adapt(adapted, tree, (4, 3), keep_head=True)
  assert traverse_util.flatten_dict(back, sep='/').keys() == flat.keys()
  path = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/bias'
  found[path] = found[path] + 1
  with pytest.raises(ValueError, match=path):
    adaptation.adapt(
      traverse_util.unflatten_dict(found, sep='/'), tree, (4, 3), keep_head=True
    )
