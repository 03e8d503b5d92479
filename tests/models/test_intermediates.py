"""Attention weights, outputs of blocks, and models within other modules."""

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_lit
from tests.tiny_model import ATTENTION
from tests.tiny_model import BLOCK
from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import GRID
from tests.tiny_model import IMAGES
from tests.tiny_model import like
from tests.tiny_model import make_mixer
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from vit_jax import models
from vit_jax.models import block_outputs
from vit_jax.models.layers import attention


def intermediates(model, flat, **options):
  """Returns {path: value} of all intermediate values."""
  params = traverse_util.unflatten_dict(flat, sep='/')
  _, state = model.apply(
    {'params': params}, IMAGES, train=False, mutable='intermediates', **options
  )
  found = traverse_util.flatten_dict(state.get('intermediates', {}), sep='/')
  assert all(len(values) == 1 for values in found.values())
  return {path: values[0] for path, values in found.items()}


@pytest.mark.parametrize(
  'make, settings',
  [
    (make_vit, dict(scan=True, remat='dots')),
    (make_mixer, dict(scan=True)),
    pytest.param(
      make_vit,
      dict(scan=True, positions='relative', classifier='map'),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      make_vit, dict(remat='full', num_registers=1), marks=pytest.mark.slow
    ),
  ],
)
def test_scan_and_remat_keep_all_intermediates(make, settings):
  model = make(**settings)
  flat = params_of(model)
  plain = model.clone(scan=False, remat='none')
  expected = intermediates(plain, flat, capture_intermediates=True)
  found = intermediates(model, flat, capture_intermediates=True)
  assert found.keys() == expected.keys()
  blocks = {path.split('/')[-3] for path in found if 'LayerNorm_1' in path}
  assert len(blocks - {'MAPHead_0'}) == model.num_layers
  for path, value in found.items():
    close(value, expected[path])


def test_attention_weights_of_every_block():
  model = make_vit(scan=True, classifier='map')
  found = intermediates(model, params_of(model))
  assert {path: x.shape for path, x in found.items()} == {
    f'Transformer/encoderblock_0/{ATTENTION}/weights': (3, 2, 12, 12),
    f'Transformer/encoderblock_1/{ATTENTION}/weights': (3, 2, 12, 12),
    f'MAPHead_0/{ATTENTION}/weights': (3, 2, 1, 12),
  }
  for weights in found.values():
    close(weights.sum(-1), 1, 1e-6)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), IMAGES, train=False)
  )
  assert variables.keys() == {'params'}


def test_weights_of_bert():
  tower = models.BertTower(
    out_dim=3,
    vocab_size=11,
    hidden_size=16,
    mlp_dim=24,
    num_heads=2,
    num_layers=1,
  )
  tokens = jnp.array([[5, 3, 0, 0]])
  shapes = jax.eval_shape(tower.init, jax.random.key(0), tokens)
  _, state = tower.apply(like(shapes), tokens, mutable='intermediates')
  weights = jax.tree.leaves(state)
  assert [x.shape for x in weights] == [(1, 2, 4, 4)]
  close(weights[0][0, :, :2, 2:], 0)  # padding
  close(weights[0].sum(-1), 1, 1e-6)


def test_fused_attention_gives_its_weights(monkeypatch):
  model = make_vit(
    hidden_size=32, dtype='bfloat16', attention='plain', num_layers=1
  )
  flat = params_of(model)
  expected = intermediates(model, flat)
  calls = []
  monkeypatch.setattr(attention, 'device', lambda: ('gpu', (9, 0)))
  monkeypatch.setattr(
    attention, 'fused', lambda query, *_: (calls.append(1), query)[1]
  )
  for kind in ('auto', 'fused'):
    fused = model.clone(attention=kind)
    found = intermediates(fused, flat)
    assert len(found) == 1 and not calls
    for path, weights in found.items():
      np.testing.assert_array_equal(weights, expected[path])
    jax.eval_shape(
      lambda fused=fused: fused.apply(
        {'params': traverse_util.unflatten_dict(flat, sep='/')},
        IMAGES,
        train=False,
      )
    )
    assert calls.pop() and not calls


# --- outputs of blocks -------------------------------------------------------


def outputs_of(model, flat, blocks):
  return block_outputs.get(
    model, traverse_util.unflatten_dict(flat, sep='/'), IMAGES, blocks
  )


@pytest.mark.parametrize(
  'make, settings',
  [
    (make_vit, dict(num_layers=3, scan=True)),
    (make_vit, dict(num_layers=3, classifier='gap', num_registers=2)),
    (
      make_vit,
      dict(num_layers=3, remat='full', classifier='map', class_token=True),
    ),
    (make_mixer, dict(num_layers=3)),
    pytest.param(
      make_vit,
      dict(num_layers=3, stem_units=(1,), patch_size=2),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_the_output_of_a_block_is_the_last_of_a_shorter_model(make, settings):
  model = make(**settings)
  flat = params_of(model)
  outputs = outputs_of(model, flat, [1, -1])
  (shorter,) = outputs_of(
    model.clone(num_layers=2, scan=False, remat='none'), flat, [-1]
  ).values()
  assert list(outputs) == [1, -1]
  assert outputs[1].grid.shape == (3, *GRID, 16)
  jax.tree.map(close, outputs[1], shorter)
  differ(outputs[1].grid, outputs[-1].grid)
  # The final norm and the pooling turn the last block into the features.
  _, token, registers, _ = outputs[-1]
  assert (token is None) == (not getattr(model, 'has_token', False))
  count = getattr(model, 'num_registers', 0)
  assert (registers.shape[1] if count else registers) == (count or None)
  norm = next(
    name
    for name in ('Transformer/encoder_norm', 'pre_head_layer_norm')
    if f'{name}/scale' in flat
  )
  if getattr(model, 'classifier', 'gap') in ('gap', 'token'):
    x = outputs[-1].grid.reshape(3, 12, 16)
    if getattr(model, 'classifier', '') == 'token':
      x = token[:, None]
    x = jax.nn.standardize(x, epsilon=1e-6)
    x = x * flat[f'{norm}/scale'] + flat[f'{norm}/bias']
    params = traverse_util.unflatten_dict(flat, sep='/')
    close(x.mean(1), model.apply({'params': params}, IMAGES, train=False))


def test_patches_of_the_grid_are_in_the_order_of_the_image():
  model = make_vit(num_layers=1, positions='none', num_registers=1)
  flat = params_of(model)
  changed = dict(flat)
  for name in (f'{ATTENTION}/out', 'MlpBlock_0/Dense_1'):
    for part in ('kernel', 'bias'):  # the block changes nothing
      changed[f'{BLOCK}0/{name}/{part}'] *= 0
  params = traverse_util.unflatten_dict(changed, sep='/')
  dim = np.zeros_like(IMAGES)
  dim[:, 16:24, 8:16] = IMAGES[:, 16:24, 8:16]  # row 2, column 1
  grids = [
    block_outputs.get(model, params, x, [0])[0].grid
    for x in (dim, np.zeros_like(dim))
  ]
  moved = np.abs(grids[0] - grids[1]).max((0, 3))
  assert moved[2, 1] > 0.1 and (moved > 0).sum() == 1


def test_stages_of_bit():
  model = models.BitResNet(num_classes=3, num_units=(1, 1), width_factor=1)
  flat = params_of(model)
  found = intermediates(model, flat, capture_intermediates=True)
  outputs = outputs_of(model, flat, [0, 1])
  for block, shape in ((0, (3, 8, 6, 256)), (1, (3, 4, 3, 512))):
    assert outputs[block].grid.shape == shape
    close(outputs[block].grid, found[f'block{block + 1}/__call__'], 1e-4)
    assert outputs[block][1:] == (None, None, None)


def test_outputs_in_bfloat16_are_float32():
  model = make_vit(dtype='bfloat16')
  assert outputs_of(model, params_of(model), [0])[0].grid.dtype == jnp.float32


@pytest.mark.parametrize(
  'settings, blocks, message',
  [
    ({}, [0, 2], r'blocks=\[0, 2\]: .* no block 2. .* 2 blocks: 0 to 1, or -2'),
    ({}, [-3], 'no block -3'),
    ({}, [True], 'no block True'),
    ({}, [0.0], 'no block 0.0'),
    ({}, [], 'empty'),
    ({}, 1, r'blocks=1 is not a list'),
    (dict(fractal_columns=2), [0], 'fractal_columns=2'),
  ],
)
def test_blocks_that_do_not_exist(settings, blocks, message):
  with pytest.raises(ValueError, match=message):
    block_outputs.get(make_vit(**settings), {}, IMAGES, blocks)


# --- models within other modules ---------------------------------------------


class Siamese(nn.Module):
  """Two backbones and two heads. One backbone is used twice."""

  @nn.compact
  def __call__(self, images):
    settings = dict(num_classes=0, patch_size=8)
    backbone = models.get_model('testing', name='backbone', **settings)
    other = models.get_model('testing', name='other', **settings)
    x, y = (backbone(x, train=False) for x in (images, -images))
    z = other(images, train=False)
    return [nn.Dense(2, name=f'head_{i}')(v) for i, v in enumerate((x - y, z))]


def test_two_models_in_one_module():
  shapes = jax.eval_shape(Siamese().init, jax.random.key(0), IMAGES)
  params = shapes['params']
  assert set(params) == {'backbone', 'other', 'head_0', 'head_1'}
  alone = models.get_model('testing', num_classes=0, patch_size=8)
  expected = jax.eval_shape(
    lambda: alone.init(jax.random.key(0), IMAGES, train=False)
  )['params']
  assert params['backbone'] == params['other'] == expected
  params = like(params)
  _, second = Siamese().apply({'params': params}, IMAGES)
  features = alone.apply({'params': params['other']}, IMAGES, train=False)
  head = params['head_1']
  close(second, features @ head['kernel'] + head['bias'])


class Wrapped(nn.Module):
  @nn.compact
  def __call__(self, images, tokens):
    lit = models.get_model('LiT-B16B', name='lit')
    return lit(images=images, tokens=tokens)[0]


def test_two_towers_in_a_module(monkeypatch):
  tiny_lit.register(monkeypatch)
  images, tokens = np.zeros((1, 32, 32, 3)), np.zeros((1, 5), np.int32)
  wrapped, alone = (
    jax.eval_shape(
      lambda module=module: module.init(
        jax.random.key(0), images=images, tokens=tokens
      )
    )['params']
    for module in (Wrapped(), models.get_model('LiT-B16B'))
  )
  assert wrapped == {'lit': alone} and set(alone) == {'img', 'txt', 't'}


def test_the_architecture_is_the_first_argument():
  with pytest.raises(TypeError, match="'name'"):
    models.get_model(name='b16', num_classes=2)
  assert models.get_model('b16', num_classes=2, name='x').name == 'x'
