"""Extra tokens, patch dropout and pooling."""

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import ATTENTION
from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import GRID
from tests.tiny_model import IMAGES
from tests.tiny_model import like
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import mlp
from vit_jax.models.layers import patches


def test_registers_and_class_token_are_outputs_only_if_requested():
  settings = dict(class_token=True, num_registers=4)
  every_patch = make_vit(classifier='unpooled', **settings)
  flat = params_of(every_patch)
  assert flat['registers'].shape == (1, 4, 16)
  assert flat['Transformer/posembed_input/pos_embedding'].shape[1] == 13
  features = run(every_patch, flat)
  assert features.shape == (3, 12, 16)
  close(run(make_vit(classifier='gap', **settings), flat), features.mean(1))
  with_token = run(make_vit(classifier='token_unpooled', **settings), flat)
  close(with_token[:, 1:], features)
  close(run(make_vit(classifier='token', **settings), flat), with_token[:, 0])
  for name in ('registers', 'cls'):  # attention reads them
    turned = {**flat, name: flat[name][..., ::-1]}
    differ(run(every_patch, turned), features)


def test_the_order_of_registers_has_no_effect():
  """Registers have no positions, so their order has no effect."""
  model = make_vit(num_registers=3)
  flat = params_of(model)
  turned = {**flat, 'registers': flat['registers'][:, ::-1]}
  close(run(model, turned), run(model, flat))


@pytest.mark.parametrize(
  'settings', [{}, dict(gelu='exact', norm_epsilon=0.5, head_dim=6)]
)
def test_attention_pooling(settings):
  """Compares with the attention of Flax and our MLP; checks published names."""
  model = make_vit(classifier='map', **settings)
  flat = params_of(model)
  assert flat['MAPHead_0/MlpBlock_0/Dense_0/kernel'].shape == (16, 24)
  assert 'cls' not in flat
  params = traverse_util.unflatten_dict(flat, sep='/')
  head = params.pop('MAPHead_0')
  assert head.keys() == {'probe', ATTENTION, 'LayerNorm_0', 'MlpBlock_0'}
  assert head['probe'].shape == (1, 1, 16)
  tokens = model.clone(classifier='unpooled').apply(
    {'params': params}, IMAGES, train=False
  )
  y = nn.MultiHeadDotProductAttention(
    2, qkv_features=2 * settings.get('head_dim', 8)
  ).apply(
    {'params': head[ATTENTION]}, jnp.tile(head['probe'], (3, 1, 1)), tokens
  )
  z = nn.LayerNorm(settings.get('norm_epsilon', 1e-6)).apply(
    {'params': head['LayerNorm_0']}, y
  )
  z = mlp.MlpBlock(24, gelu=settings.get('gelu', 'tanh')).apply(
    {'params': head['MlpBlock_0']}, z
  )
  close(run(model, flat), (y + z)[:, 0])


def test_patch_dropout_keeps_equally_many_patches_in_each_image():
  layout = patches.Layout(GRID, num_tokens=1, num_registers=2)
  kept = layout.sample(jax.random.key(0), 500, 0.7)
  assert kept.shape == (500, 4)  # of 12
  assert (jnp.diff(kept, axis=1) > 0).all()  # no patch is kept twice
  counts = np.bincount(np.ravel(kept), minlength=12)
  assert abs(counts - 500 / 3).max() < 5 * (500 * 2 / 9) ** 0.5
  x = like(jnp.zeros((500, 15, 3)))
  chosen = layout.select(x, kept)
  assert (chosen[:, 0] == x[:, 0]).all()
  assert (chosen[:, -2:] == x[:, -2:]).all()
  assert (chosen[7, 1:5] == x[7, kept[7] + 1]).all()
  assert layout.sample(jax.random.key(0), 2, 0.99).shape == (2, 1)


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'positions': 'relative'},
    {'positions_at': 'every_layer'},
    {'positions_at': 'every_layer_shared', 'positions': 'sincos2d'},
  ],
)
def test_patch_dropout_only_in_training(settings):
  whole = make_vit(num_registers=2, **settings)
  model = whole.clone(patch_dropout_rate=0.5)
  flat = params_of(model)
  close(run(model, flat), run(whole, flat))
  params = traverse_util.unflatten_dict(flat, sep='/')
  _, seen = model.apply(
    {'params': params},
    IMAGES,
    train=True,
    mutable='intermediates',
    rngs={'dropout': jax.random.key(0)},
  )
  weights = seen['intermediates']['Transformer']['encoderblock_1'][ATTENTION]
  assert weights['weights'][0].shape == (3, 2, 1 + 6 + 2, 1 + 6 + 2)
  differ(run(model, flat, seed=0), run(model, flat, seed=1))
