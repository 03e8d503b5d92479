"""Converted weights give the logits that timm and Hugging Face computed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests import reference
from vit_jax import models
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import torch_convert
from vit_jax.checkpoint import weights_file


def facts():
  """Returns the file that `python -m tests.outside` wrote."""
  with open(reference.DATA / 'interop.json', encoding='utf-8') as file:
    return json.load(file)


CASES = [name for name in facts() if name != 'made_by']


def write_file(path, arrays):
  """Writes a `.safetensors` or `.npz` of reference values."""
  flat = {
    name: reference.torch_value_at(name, tuple(shape))
    for name, shape in arrays.items()
  }
  if path.suffix == '.npz':
    np.savez(path, **flat)
  else:
    safetensors.numpy.save_file(flat, path)
  return flat


def adapted(loaded, settings, size):
  """Returns a model with 5 classes, and the adapted weights with their head."""
  settings = dict(settings)
  model = models.get_model(settings.pop('name'), num_classes=5, **settings)
  initial = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)
  )['params']
  return model, adaptation.adapt(
    loaded, initial, model.grid_size(*size), keep_head=True
  )


@pytest.mark.parametrize('case', CASES)
def test_logits_equal_those_of_the_other_library(case, tmp_path):
  file = 'x.npz' if case.startswith('published') else 'x.safetensors'
  case = facts()[case]
  write_file(tmp_path / file, case['arrays'])
  loaded = weights_file.load(tmp_path / file, num_heads=3)
  settings = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in case['settings'].items()
  }
  model, params = adapted(loaded, settings, case['image_size'])
  images = reference.random_images(case['image_size'])
  with jax.default_matmul_precision('highest'):
    logits = model.apply({'params': params}, images, train=False)
  expected = np.asarray(case['logits'])
  np.testing.assert_allclose(
    logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


@pytest.mark.parametrize(
  'case',
  [
    case
    for case in CASES
    if case.startswith('timm') and 'no_' not in case and 'registers' not in case
  ],
)
def test_round_trips_are_bit_exact(case, tmp_path):
  """Checks timm -> npz -> timm, and npz -> timm -> npz."""
  flat = write_file(tmp_path / 'a.safetensors', facts()[case]['arrays'])
  params = weights_file.load(tmp_path / 'a.safetensors', num_heads=3)
  weights_file.save(tmp_path / 'b.npz', params)
  weights_file.save(
    tmp_path / 'c.safetensors', weights_file.load(tmp_path / 'b.npz')
  )
  there = safetensors.numpy.load_file(tmp_path / 'c.safetensors')
  assert there.keys() == flat.keys()
  for name, array in flat.items():
    np.testing.assert_array_equal(there[name], array, err_msg=name)
  # Our files contain the number of heads in their header.
  back = weights_file.load(tmp_path / 'c.safetensors')
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_registers_have_zeros_for_positions_in_timm():
  rng = np.random.default_rng(0)
  ours = {
    'cls': rng.normal(size=(1, 1, 4)),
    'registers': rng.normal(size=(1, 2, 4)),
    'Transformer/posembed_input/pos_embedding': rng.normal(size=(1, 10, 4)),
  }
  there = torch_convert.to_timm(ours)
  assert there['pos_embed'].shape == (1, 12, 4)
  np.testing.assert_array_equal(there['pos_embed'][:, 1:3], 0)
  back = torch_convert.to_linen(there, num_heads=1)
  for path, array in ours.items():
    np.testing.assert_array_equal(back[path], array)
  # If timm's registers have positions, these are added to our registers.
  there['pos_embed'][:, 1:3] = 1
  back = torch_convert.to_linen(there, num_heads=1)
  np.testing.assert_array_equal(back['registers'], ours['registers'] + 1)


def test_norms_of_queries_and_keys_have_a_bias_in_timm():
  block = 'Transformer/encoderblock_0'
  path = f'{block}/MultiHeadDotProductAttention_0/query_ln'
  flat = {f'{path}/scale': np.arange(4.0)}
  there = torch_convert.to_timm(
    flat | {f'{block}/LayerNorm_0/bias': np.ones(6)}
  )
  assert not there['blocks.0.attn.q_norm.bias'].any()
  np.testing.assert_array_equal(
    there['blocks.0.attn.q_norm.weight'], np.arange(4)
  )
  # RMS norms have no bias.
  there = torch_convert.to_timm(flat)
  assert there.keys() == {'blocks.0.attn.q_norm.weight'}


def test_heads_are_never_guessed():
  """A width of 384 is possible with 6 heads, and with MoCo v3's 12 heads."""
  flat = {'blocks.0.attn.proj.weight': np.ones((384, 384))}
  with pytest.raises(ValueError, match='384 .*4, 6, 8, 12 heads.*num_heads='):
    torch_convert.find_num_heads(flat)
  flat['blocks.0.attn.q_norm.weight'] = np.ones(32)
  assert torch_convert.find_num_heads(flat) == 12
  table = {'blocks.0.attn.relative_position_bias_table': np.ones((12, 5))}
  assert torch_convert.find_num_heads(table) == 5


def test_an_unknown_number_of_heads(tmp_path):
  case = facts()['timm ViT']
  write_file(tmp_path / 'model.safetensors', case['arrays'])
  with pytest.raises(ValueError, match='width 24.*num_heads='):
    weights_file.load(tmp_path / 'model.safetensors')
  with pytest.raises(
    ValueError, match=r'num_heads=5 .* 24, .*blocks.0.attn.* \(.*\)'
  ):
    weights_file.load(tmp_path / 'model.safetensors', num_heads=5)
  expected = weights_file.load(tmp_path / 'model.safetensors', num_heads=3)
  args = dict(num_heads=3, embed_dim=24, depth=2, img_size=32, mlp_ratio=1.5)
  for config in (
    {'model_type': 'vit', 'num_attention_heads': 3, 'hidden_size': 24},
    {'architecture': 'vit_base_patch16_224', 'model_args': args},
  ):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    jax.tree.map(
      np.testing.assert_array_equal, weights_file.load(tmp_path), expected
    )


def test_shards(tmp_path):
  case = facts()['Hugging Face ViT']
  flat = write_file(tmp_path / 'all.safetensors', case['arrays'])
  expected = weights_file.load(tmp_path / 'all.safetensors', num_heads=3)
  folder = tmp_path / 'shards'
  folder.mkdir()
  weight_map = {name: f'part-{len(name) % 2}.safetensors' for name in flat}
  for part in set(weight_map.values()):
    safetensors.numpy.save_file(
      {name: flat[name] for name in flat if weight_map[name] == part},
      folder / part,
    )
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))
  found = weights_file.load(folder, num_heads=3)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  index.write_text(json.dumps({'weight_map': {'a': '../all.safetensors'}}))
  with pytest.raises(ValueError, match='files outside its folder'):
    weights_file.load(folder, num_heads=3)


def test_arrays_that_cannot_be_converted_are_listed():
  with pytest.raises(ValueError, match='differential attention') as error:
    torch_convert.to_linen(
      {
        'blocks.0.attn.lambda_q1': np.ones(8),
        'norm.weight': np.ones(8),
        'blocks.0.attn.rope': np.ones((2, 3)),
      },
      num_heads=1,
    )
  assert 'blocks.0.attn.lambda_q1 (8,)' in str(error.value)
  assert 'blocks.0.attn.rope (2, 3)' in str(error.value)
  with pytest.raises(ValueError, match=r':\n  txt/x \(3,\)\n.*\.npz'):
    torch_convert.to_timm({'txt/x': np.ones(3), 'cls': np.ones((1, 1, 2))})
