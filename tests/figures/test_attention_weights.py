"""Attention of models, compared with NumPy on the weights that they sow."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import GRID
from tests.tiny_model import IMAGES
from tests.tiny_model import make_mixer
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from vit_jax import models
from vit_jax.figures import attention_maps
from vit_jax.figures import attention_weights
from vit_jax.models.layers import attention as attention_layers

H, W = GRID


def nested(flat):
  return traverse_util.unflatten_dict(flat, sep='/')


def everything(attention, tokens):
  """A reduction: all maps, and the weights themselves."""
  return {
    'rollout': attention_maps.rollout(attention, tokens),
    'distance': attention_maps.distance(attention, tokens),
    'last': attention_maps.last_block(attention, tokens),
    'weights': attention,
  }


def with_relevance(attention, gradients, tokens):
  return {
    'relevance': attention_maps.relevance(attention, gradients, tokens),
    'weights': attention,
    'gradients': gradients,
  }


def sown(model, params):
  """Returns ([weights of each block], probe or None), without `figures`."""
  _, state = model.apply(
    {'params': params}, IMAGES, train=False, mutable='intermediates'
  )
  found = traverse_util.flatten_dict(state['intermediates'], sep='/')
  blocks = [
    np.concatenate(
      [
        np.asarray(x, np.float64)
        for path, (x,) in found.items()
        if f'encoderblock_{i}/' in path
      ],
      axis=1,
    )
    for i in range(model.num_layers)
  ]
  probes = [np.asarray(x) for p, (x,) in found.items() if 'MAPHead_0' in p]
  return blocks, probes[0][:, :, 0] if probes else None


def slow_rollout(blocks, rows_of_head):
  """Returns the rollout of each image as products of full matrices."""
  maps = []
  for image in range(len(blocks[0])):
    product = np.eye(blocks[0].shape[-1])
    for weights in blocks:
      mean = weights[image].mean(0)
      product = (0.5 * mean + 0.5 * np.eye(len(mean))) @ product
    maps.append(rows_of_head[image] @ product)
  return np.array(maps)


def slow_distance(weights, first, stride):
  """Returns the distance of each head with loops over pairs of patches."""
  found = np.zeros(weights.shape[:2])
  for q in range(H * W):
    for k in range(H * W):
      rows, columns = q // W - k // W, q % W - k % W
      pixels = stride * (rows**2 + columns**2) ** 0.5
      found += weights[:, :, first + q, first + k] * pixels / (H * W)
  return found


# settings -> (tokens before the patches, tokens that the head reads)
MODELS = {
  'token': (dict(scan=True, num_registers=2), 1, [0]),
  'distilled': (dict(distilled=True, remat='full'), 2, [0, 1]),
  'gap': (dict(classifier='gap', num_parallel=2), 0, range(12)),
  'map': (dict(classifier='map', num_registers=1), 0, None),
  'map of all': (
    dict(classifier='map', class_token=True, pool_all_tokens=True),
    1,
    None,
  ),
  'hybrid': (
    dict(stem_units=(1,), patch_size=2, positions='none', block='parallel'),
    1,
    [0],
  ),
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      name,
      marks=pytest.mark.slow if name not in ('token', 'gap', 'hybrid') else (),
    )
    for name in MODELS
  ],
)
def test_maps_equal_those_of_numpy(name):
  settings, first, reads = MODELS[name]
  model = make_vit(**settings)
  params = nested(params_of(model))
  found = attention_weights.reduce(model, params, IMAGES, everything)
  blocks, probe = sown(model, params)
  count = blocks[0].shape[-1]
  head = np.zeros((len(IMAGES), count))
  if reads is not None:
    head[:, list(reads)] = 1 / len(reads)
  elif probe.shape[-1] == count:
    head[:] = probe.mean(1)
  else:
    head[:, first : first + 12] = probe.mean(1)
  patches = slice(first, first + 12)
  rows = slow_rollout(blocks, head)[:, patches]
  expected = (rows / rows.sum(-1, keepdims=True)).reshape(-1, H, W)
  close(found['rollout'], expected, 1e-5)
  for weights, distance in zip(blocks, found['distance'], strict=True):
    close(distance, slow_distance(weights, first, 8), 1e-4)
  last = found['last']
  assert ('token' in last) == (first > 0) and ('probe' in last) == (
    probe is not None
  )
  if first:
    expected = blocks[-1][:, :, 0, patches]
    close(last['token'].reshape(expected.shape), expected, 1e-6)
  expected = blocks[-1][:, :, patches, patches][:, :, 7]
  close(last['patches'][:, :, 7].reshape(expected.shape), expected, 1e-6)
  if probe is not None:
    own = probe if probe.shape[-1] == 12 else probe[:, :, patches]
    close(last['probe'].reshape(own.shape), own, 1e-6)


def test_permuted_patches_permute_the_map():
  """Without positions, a model does not know where a patch is."""
  model = make_vit(positions='none')
  params = nested(params_of(model))

  def rollout(images):
    return np.asarray(
      attention_weights.reduce(model, params, images, everything)['rollout']
    )

  def shuffled(x, side):
    size = (len(x), H, side, W, side, -1)
    cut = np.asarray(x).reshape(size).swapaxes(2, 3)
    cut = cut.reshape(len(x), 12, side, side, -1)[:, order]
    cut = cut.reshape(len(x), H, W, side, side, -1).swapaxes(2, 3)
    return cut.reshape(x.shape)

  order = np.random.default_rng(0).permutation(12)
  close(rollout(shuffled(IMAGES, 8)), shuffled(rollout(IMAGES), 1), 1e-6)


def test_queries_of_zero_give_the_uniform_map():
  model = make_vit()
  flat = params_of(model)
  flat = {k: x * ('/query/' not in k) for k, x in flat.items()}
  found = attention_weights.reduce(model, nested(flat), IMAGES, everything)
  close(found['rollout'], 1 / 12, 1e-6)


def test_bfloat16_and_fused_attention(monkeypatch):
  model = make_vit(dtype='bfloat16', attention='plain', num_classes=3)
  params = nested(params_of(model))
  expected = attention_weights.reduce(
    model.clone(dtype=jnp.float32), params, IMAGES, everything
  )
  found = attention_weights.reduce(model, params, IMAGES, everything)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  calls = []

  def fused(*args):
    calls.append(1)
    return attention_layers.plain(*args)[0]

  monkeypatch.setattr(attention_layers, 'device', lambda: ('gpu', (9, 0)))
  monkeypatch.setattr(attention_layers, 'fused', fused)
  fast = model.clone(attention='fused')
  found = attention_weights.reduce(fast, params, IMAGES, everything)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert len(calls) == fast.num_layers  # of the outputs to compare with
  # A kernel that computes something else is noticed.
  monkeypatch.setattr(attention_layers, 'fused', lambda q, k, v, b: v)
  with pytest.raises(ValueError, match='bfloat16.* differ by'):
    attention_weights.reduce(
      fast.clone(remat='full'), params, IMAGES, everything
    )


def test_parameters_that_are_not_finite():
  model = make_vit()
  flat = params_of(model)
  flat['cls'] = flat['cls'] * np.nan
  with pytest.raises(ValueError, match='differ by nan'):
    attention_weights.reduce(model, nested(flat), IMAGES, everything)


@pytest.mark.parametrize(
  'classifier', ['token', 'gap', pytest.param('map', marks=pytest.mark.slow)]
)
def test_relevance_of_classes(classifier):
  model = make_vit(num_classes=3, classifier=classifier, num_registers=1)
  flat = params_of(model)
  run = functools.partial(attention_weights.reduce, model)
  first, second = (
    run(nested(flat), IMAGES, with_relevance, np.full(3, label))
    for label in (0, 2)
  )
  differ(first['relevance'], second['relevance'])
  assert first['relevance'].shape == (3, H, W)
  assert (first['relevance'] >= 0).all()
  jax.tree.map(close, first['weights'], second['weights'])
  # Each image has its own class.
  mixed = run(nested(flat), IMAGES, with_relevance, np.array([0, 2, 0]))
  close(mixed['relevance'][1], second['relevance'][1], 1e-6)
  close(mixed['relevance'][2], first['relevance'][2], 1e-6)
  zero = {k: x * ('head/kernel' not in k) for k, x in flat.items()}
  found = run(nested(zero), IMAGES, with_relevance, np.zeros(3, int))
  np.testing.assert_array_equal(found['relevance'], np.zeros((3, H, W)))


def test_gradients_of_weights_are_finite_differences():
  model = make_vit(num_classes=3, classifier='map', attention='plain')
  params = nested(params_of(model))
  found = attention_weights.reduce(
    model, params, IMAGES, with_relevance, np.full(3, 1)
  )
  name = 'MultiHeadDotProductAttention_0'

  def logit(block, place, step):
    offset = np.zeros((3, 2, 12, 12), np.float32)
    offset[place] = step
    offsets = {
      'Transformer': {f'encoderblock_{block}': {name: {'weights': offset}}}
    }
    variables = {'params': params, attention_layers.OFFSETS: offsets}
    return model.apply(variables, IMAGES, train=False)[:, 1].sum()

  for block in (0, 1):
    for place in ((0, 1, 2, 3), (2, 0, 11, 0)):
      difference = (
        logit(block, place, 0.02) - logit(block, place, -0.02)
      ) / 0.04
      gradient = found['gradients'].blocks[block][place]
      np.testing.assert_allclose(gradient, difference, rtol=0.02, atol=1e-3)
  assert found['gradients'].probe.shape == (3, 2, 12)


def test_offsets_are_not_in_the_default_program():
  """Without offsets, the program of training is what it was."""
  q = jnp.ones((1, 3, 2, 4))

  def text(**options):
    return jax.jit(
      lambda q: attention_layers.plain(q, q, q, **options)[0]
    ).lower(q).as_text()  # fmt: skip

  assert text() == text(offset=None)
  assert text() != text(offset=jnp.zeros((1, 2, 3, 3)))


@pytest.mark.parametrize(
  'model, message',
  [
    (make_mixer(), 'MlpMixer has no attention'),
    (
      models.BitResNet(num_classes=3, num_units=(1,), width_factor=1),
      'BitResNet has no attention',
    ),
    (make_vit(fractal_columns=2), 'fractal_columns=2: .*not one sequence'),
  ],
)
def test_models_without_attention(model, message):
  with pytest.raises(ValueError, match=message):
    attention_weights.reduce(model, {}, IMAGES, everything)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({}, 'no head'),
    (dict(num_classes=3, classifier='unpooled'), "classifier='unpooled'"),
  ],
)
def test_models_without_a_logit_of_a_class(settings, message):
  with pytest.raises(ValueError, match=message):
    attention_weights.reduce(
      make_vit(**settings), {}, IMAGES, with_relevance, [0, 0, 0]
    )
