"""What each option of the models is defined by."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import models
from vit_jax.models import attention
from vit_jax.models import dropout
from vit_jax.models import fractal
from vit_jax.models import mlp
from vit_jax.models import patches
from vit_jax.models import pooling
from vit_jax.models import positions

# A grid of 4 × 3 patches.
IMAGES = np.random.default_rng(0).standard_normal(
    (3, 32, 24, 3)).astype(np.float32)
GRID = (4, 3)
BLOCK = 'Transformer/encoderblock_'
ATTENTION = 'MultiHeadDotProductAttention_0'


def make_vit(**settings):
  return models.VisionTransformer(**{
      **dict(num_classes=0, patch_size=8, hidden_size=16, mlp_dim=24,
             num_heads=2, num_layers=2), **settings})


def make_mixer(**settings):
  return models.MlpMixer(**{
      **dict(num_classes=0, patch_size=8, hidden_size=16, num_layers=3,
             tokens_mlp_dim=8, mlp_dim=24), **settings})


def like(shapes, seed=0, scale=0.3):
  """Random values that hide nothing, as zeros of an initialiser would."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype),
      shapes)


@functools.cache
def shapes_of(model, image_shape):
  return jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros(image_shape), train=False))


def params_of(model, images=IMAGES):
  """Random parameters, flat; scales about 1."""
  flat = traverse_util.flatten_dict(
      like(shapes_of(model, images.shape)['params']), sep='/')
  return {path: x + path.endswith('scale') for path, x in flat.items()}


def run(model, flat, images=IMAGES, seed=None):
  """Logits; in training if there is a seed.

  Not compiled as a whole, since the operations are those of most other tests.
  """
  params = traverse_util.unflatten_dict(flat, sep='/')
  rngs = None if seed is None else {'dropout': jax.random.key(seed)}
  return model.apply(
      {'params': params}, images, train=seed is not None, rngs=rngs)


def close(a, b, atol=2e-5):
  np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5)


def differ(a, b):
  assert abs(np.asarray(a) - np.asarray(b)).max() > 1e-3


# --- attention


@pytest.mark.parametrize('qk_norm', [False, True])
def test_attention_equals_flax(qk_norm):
  """With heads as wide as usual, and with another width."""
  x = like(jnp.zeros((2, 5, 12)), 1)
  for head_dim, width in ((None, 12), (7, 21)):
    theirs = nn.MultiHeadDotProductAttention(
        3, qkv_features=width, normalize_qk=qk_norm)
    ours = attention.MultiHeadAttention(3, head_dim, qk_norm=qk_norm)
    shapes = jax.eval_shape(lambda: theirs.init(jax.random.key(0), x))
    own_shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(
        jnp.shape, own_shapes)
    variables = like(shapes)
    close(ours.apply(variables, x), theirs.apply(variables, x))


def test_qk_norm_does_not_see_the_scale_of_queries_and_keys():
  for qk_norm, check in ((True, close), (False, differ)):
    model = make_vit(qk_norm=qk_norm, norm_epsilon=1e-12)
    flat = params_of(model)
    larger = {path: 7 * x if {'query', 'key'} & set(path.split('/')) else x
              for path, x in flat.items()}
    check(run(model, flat), run(model, larger))


def test_dropped_attention_weights():
  """Not the outputs are dropped, but single weights, and the rest scaled."""
  query, value = jnp.zeros((1, 4, 1, 8)), like(jnp.ones((1, 400, 1, 8))) + 1
  y, weights = attention.plain(query, value, value, dropout_rate=0.25,
                               dropout_key=jax.random.key(0))
  close(weights, 1 / 400)
  assert len(np.unique(y[..., 0])) == 4  # each query drops for itself
  assert 0 < abs(y - 1).max() < 0.2


def test_fused_attention_equals_plain():
  query, key, value, bias = (
      like(jnp.zeros(shape), i, scale=1) for i, shape in enumerate(
          [(2, 5, 3, 8)] * 3 + [(2, 3, 5, 5)]))
  for given in (None, bias):
    expected, _ = attention.plain(query, key, value, given)
    close(attention.fused(query, key, value, given, implementation='xla'),
          expected)


FITS = dict(dtype='bfloat16', head_dim=64, num_tokens=197, has_bias=False,
            drops_weights=False, train=True)


@pytest.mark.parametrize('platform, capability, changes, reason', [
    ('gpu', (9, 0), {}, ''),
    ('gpu', (8, 0), {'dtype': jnp.float16, 'head_dim': 128}, ''),
    ('gpu', (9, 0), {'has_bias': True, 'train': False}, ''),
    ('gpu', (9, 0), {'has_bias': True, 'num_tokens': 196}, ''),
    ('gpu', (9, 0), {'has_bias': True}, 'even number of tokens.* 197'),
    ('gpu', (7, 5), {}, r'8.0, and the GPU has 7.5'),
    ('gpu', None, {}, 'NVIDIA'),  # one of AMD's
    ('cpu', None, {}, 'NVIDIA GPU, and the device is a cpu'),
    ('tpu', None, {}, 'the device is a tpu'),
    ('gpu', (9, 0), {'dtype': jnp.float32}, 'bfloat16 or float16, not float32'),
    ('gpu', (9, 0), {'head_dim': 136}, 'width 8, 16, … 128, not 136'),
    ('gpu', (9, 0), {'head_dim': 5}, 'not 5'),
    ('gpu', (9, 0), {'drops_weights': True}, 'no attention dropout')])
def test_where_attention_is_fused(platform, capability, changes, reason):
  found = attention.why_not_fused(platform, capability, **{**FITS, **changes})
  assert bool(found) == bool(reason) and re.search(reason, found)


def test_attention_is_fused_only_where_it_can_be(monkeypatch):
  model = make_vit(attention='fused')
  with pytest.raises(ValueError, match="'fused' needs an NVIDIA GPU.*'auto'"):
    params_of(model)
  # As on a GPU, with XLA's implementation in the place of cuDNN's.
  plain = make_vit(hidden_size=32, dtype='bfloat16', num_layers=1,
                   attention='plain', positions='relative', classifier='gap')
  flat = params_of(plain)
  expected = run(plain, flat)
  calls = []

  def fused(query, key, value, bias=None):
    calls.append(query.shape)
    return jax.nn.dot_product_attention(
        query, key, value, bias, implementation='xla')

  monkeypatch.setattr(attention, 'device', lambda: ('gpu', (9, 0)))
  monkeypatch.setattr(attention, 'fused', fused)
  close(run(plain.clone(attention='auto'), flat), expected, atol=0.05)
  assert calls == [(3, 12, 2, 16)]


# --- positions


def test_sincos_positions_are_those_of_the_formula():
  table = positions.sincos_2d(GRID, 16)
  for row in range(4):
    for column in range(3):
      for i in range(4):
        frequency = 10_000 ** (-i / 3)
        close([table[row * 3 + column, 4 * quarter + i]
               for quarter in range(4)],
              [math.sin(column * frequency), math.cos(column * frequency),
               math.sin(row * frequency), math.cos(row * frequency)], 1e-6)


@pytest.mark.parametrize('kind', positions.ADDED)
def test_who_has_a_position(kind):
  layout = patches.Layout(GRID, has_token=True, num_registers=2)
  module = positions.PositionEmbedding(kind, layout)
  variables = like(jax.eval_shape(
      lambda: module.init(jax.random.key(0), 16)))
  table = module.apply(variables, 16)
  assert table.shape == (1, 1 + 12 + 2, 16)
  assert not table[:, -2:].any()
  assert table[:, 0].any() == (kind == 'learned')
  grid = table[0, 1:13].reshape(4, 3, 16)
  if kind == 'learned_2d':
    assert {x.shape for x in variables['params'].values()} == {(4, 8), (3, 8)}
  if kind != 'learned':  # halves that know the row alone, the column alone
    halves = [grid[..., :8], grid[..., 8:]]
    by_row, by_column = halves if kind == 'learned_2d' else halves[::-1]
    assert (by_row == by_row[:, :1]).all() and by_row.std(0).max() > 0.1
    assert (by_column == by_column[:1]).all() and by_column.std(1).max() > 0.1


def test_relative_positions_are_products_with_the_vector_of_the_offset():
  layout = patches.Layout(GRID, has_token=True, num_registers=2)
  module = positions.RelativePositions(layout)
  query = like(jnp.zeros((2, 15, 3, 5)), 1)
  variables = like(jax.eval_shape(
      lambda: module.init(jax.random.key(0), query)))
  logits = module.apply(variables, query)
  table = np.asarray(variables['params']['embedding'])
  assert logits.shape == (2, 3, 15, 15) and table.shape == (23, 5)
  expected = np.zeros(logits.shape)
  for q in range(12):
    for k in range(12):
      expected[:, :, 1 + q, 1 + k] = np.asarray(
          query[:, 1 + q]) @ table[k - q + 11] / 5**0.5
  close(logits, expected)
  # Of patches that are left, those of the whole.
  kept = jnp.array([[0, 3, 4, 11], [1, 2, 9, 10]])
  stay = jnp.pad(kept + 1, ((0, 0), (1, 0)))
  stay = jnp.concatenate([stay, jnp.full((2, 2), 13) + jnp.arange(2)], axis=1)
  fewer = module.apply(
      variables, jnp.take_along_axis(query, stay[..., None, None], 1), kept)
  for b in range(2):
    close(fewer[b], logits[b][:, stay[b]][:, :, stay[b]])


def test_relative_positions_do_not_see_a_shift():
  """Patches that only see each other answer the same elsewhere."""
  module = positions.RelativePositions(patches.Layout(GRID))
  query = like(jnp.zeros((1, 12, 2, 5)), 1)
  variables = like(jax.eval_shape(
      lambda: module.init(jax.random.key(0), query)))
  shifted = module.apply(variables, jnp.roll(query, 4, axis=1))
  close(shifted[..., 4:, 4:], module.apply(variables, query)[..., :8, :8])


@pytest.mark.parametrize('classifier', ['gap', 'map'])
@pytest.mark.parametrize('kind', ['none', 'learned', 'relative'])
def test_order_is_seen_through_positions_alone(classifier, kind):
  model = make_vit(classifier=classifier, positions=kind, num_layers=1)
  flat = params_of(model)
  rows = np.concatenate(np.split(IMAGES, 4, axis=1)[::-1], axis=1)
  check = close if kind == 'none' else differ
  check(run(model, flat), run(model, flat, rows))


def test_where_positions_are_added():
  """At every layer, with zeros in the second, is at the input."""
  at_input = make_vit(classifier='gap')
  everywhere = make_vit(classifier='gap', positions_at='every_layer')
  shared = make_vit(classifier='gap', positions_at='every_layer_shared')
  flat = params_of(at_input)
  assert flat.keys() == params_of(shared).keys()
  own = {path: x for path, x in flat.items() if 'posembed_input' not in path}
  table = flat['Transformer/posembed_input/pos_embedding']
  paths = [f'{BLOCK}{i}/posembed/pos_embedding' for i in range(2)]
  assert params_of(everywhere).keys() == own.keys() | set(paths)
  own[paths[0]], own[paths[1]] = table, 0 * table
  close(run(everywhere, own), run(at_input, flat))
  own[paths[1]] = table
  close(run(everywhere, own), run(shared, flat))
  differ(run(shared, flat), run(at_input, flat))


# --- tokens


def test_registers_and_class_token_are_read_only_where_it_is_said():
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
  for name in ('registers', 'cls'):  # and yet they are attended to
    turned = {**flat, name: flat[name][..., ::-1]}
    differ(run(every_patch, turned), features)


def test_registers_are_alike_but_for_what_they_hold():
  """They have no positions: their order is not seen."""
  model = make_vit(num_registers=3)
  flat = params_of(model)
  turned = {**flat, 'registers': flat['registers'][:, ::-1]}
  close(run(model, turned), run(model, flat))


def test_attention_pooling():
  """As flax's attention and our MLP have it; the published names."""
  module = pooling.AttentionPooling(24, 2)
  x = like(jnp.zeros((3, 5, 16)), 1)
  params = like(jax.eval_shape(
      lambda: module.init(jax.random.key(0), x)))['params']
  assert params.keys() == {'probe', ATTENTION, 'LayerNorm_0', 'MlpBlock_0'}
  assert params['probe'].shape == (1, 1, 16)
  y = nn.MultiHeadDotProductAttention(2).apply(
      {'params': params[ATTENTION]}, jnp.tile(params['probe'], (3, 1, 1)), x)
  z = nn.LayerNorm().apply({'params': params['LayerNorm_0']}, y)
  z = mlp.MlpBlock(24).apply({'params': params['MlpBlock_0']}, z)
  close(module.apply({'params': params}, x), (y + z)[:, 0])
  flat = params_of(make_vit(classifier='map'))
  assert flat['MAPHead_0/MlpBlock_0/Dense_0/kernel'].shape == (16, 24)
  assert 'cls' not in flat


def test_patch_dropout_keeps_as_many_patches_in_each_image():
  layout = patches.Layout(GRID, has_token=True, num_registers=2)
  kept = layout.sample(jax.random.key(0), 500, 0.7)
  assert kept.shape == (500, 4)  # of 12
  assert (jnp.diff(kept, axis=1) > 0).all()  # each at most once
  counts = np.bincount(np.ravel(kept), minlength=12)
  assert abs(counts - 500 / 3).max() < 5 * (500 * 2 / 9)**0.5
  x = like(jnp.zeros((500, 15, 3)))
  chosen = layout.select(x, kept)
  assert (chosen[:, 0] == x[:, 0]).all()
  assert (chosen[:, -2:] == x[:, -2:]).all()
  assert (chosen[7, 1:5] == x[7, kept[7] + 1]).all()
  assert layout.sample(jax.random.key(0), 2, 0.99).shape == (2, 1)


@pytest.mark.parametrize('settings', [
    {}, {'positions': 'relative'}, {'positions_at': 'every_layer'},
    {'positions_at': 'every_layer_shared', 'positions': 'sincos2d'}])
def test_patch_dropout_in_training_alone(settings):
  whole = make_vit(num_registers=2, **settings)
  model = whole.clone(patch_dropout_rate=0.5)
  flat = params_of(model)
  close(run(model, flat), run(whole, flat))
  params = traverse_util.unflatten_dict(flat, sep='/')
  _, seen = model.apply(
      {'params': params}, IMAGES, train=True, mutable='intermediates',
      rngs={'dropout': jax.random.key(0)})
  weights = seen['intermediates']['Transformer']['encoderblock_1'][ATTENTION]
  assert weights['weights'][0].shape == (3, 2, 1 + 6 + 2, 1 + 6 + 2)
  differ(run(model, flat, seed=0), run(model, flat, seed=1))


# --- what is dropped


@pytest.mark.parametrize('rate', [0.1, 0.75])
def test_dropout_keeps_the_mean_and_drops_each_for_itself(rate):
  x = like(jnp.zeros((200, 51))) + 3
  for dtype in (jnp.float32, jnp.bfloat16):
    y = dropout.dropout(x.astype(dtype), rate, jax.random.key(1))
    assert y.dtype == dtype
  y = np.asarray(dropout.dropout(x, rate, jax.random.key(0)))
  dropped = y == 0
  close(y[~dropped], x[~dropped] / (1 - rate), 1e-3)
  deviation = (rate * (1 - rate))**0.5
  assert abs(dropped.mean() - rate) < 5 * deviation / dropped.size**0.5
  noise = (dropped - rate) / deviation  # no two beside each other are alike
  for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[:, 2:], noise[:, :-2]),
               (noise[1:], noise[:-1])):
    assert abs((a * b).mean()) < 5 / a.size**0.5
  assert dropout.dropout(x, rate, None) is x
  assert (dropout.dropout(x, 1e-9, jax.random.key(0)) == x).all()


def test_drop_path_drops_samples_and_keeps_the_mean():
  y = like(jnp.zeros((4000, 3)), 1) + 1
  dropped = dropout.drop_path(y, 0.3, jax.random.key(0))
  alive = (dropped != 0).all(1)
  assert (alive == (dropped != 0).any(1)).all()  # a sample, or nothing
  close(dropped[alive], y[alive] / 0.7)
  assert abs(alive.mean() - 0.7) < 5 * (0.3 * 0.7 / 4000)**0.5
  close(dropout.linear_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
  assert dropout.drop_path(y, 0.3, None) is y


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_drop_path_grows_with_depth(make):
  """Of three layers, with nearly 1 in the last: 0, a half, and 1."""
  model = make(num_layers=3, drop_path_rate=1 - 1e-7)
  flat = params_of(model)
  images = np.repeat(IMAGES[:1], 3, axis=0)
  outcomes = np.unique(np.concatenate([
      run(model, flat, images, seed=seed) for seed in range(9)]).round(3),
                       axis=0)
  # The two branches of the second are there or not, each for itself.
  assert len(outcomes) == 4
  first = run(make(num_layers=1), flat, images)
  assert abs(outcomes - first[:1]).max(1).min() < 2e-3
  close(run(model, flat), run(make(num_layers=3), flat))


def test_layer_scale_begins_small_and_scales_the_branches():
  model = make_vit(layer_scale=0.125)
  params = model.init(jax.random.key(0), IMAGES, train=False)['params']
  flat = traverse_util.flatten_dict(params, sep='/')
  scales = [path for path in flat if 'LayerScale' in path]
  assert len(scales) == 4 and (flat[scales[0]] == 0.125).all()
  flat = {**params_of(model), **{path: 0 * flat[path] for path in scales}}
  other = {path: x + 1 if 'Dense' in path or ATTENTION in path else x
           for path, x in flat.items()}
  close(run(model, flat), run(model, other))


@pytest.mark.parametrize('settings, num_draws', [
    ({}, 1 + 2 * 6), ({'fractal_columns': 2}, 1 + 3 * 4)])
def test_nothing_is_drawn_twice(settings, num_draws, monkeypatch):
  """Keys of all dropout in a pass: embeddings, attention, MLP, branches."""
  keys = []

  def recorded(function):
    def record(x, rate, key):
      if key is not None:  # initialisation draws none
        keys.append(tuple(np.ravel(jax.random.key_data(key))))
      return function(x, rate, key)
    return record

  for name in ('dropout', 'drop_path'):
    monkeypatch.setattr(dropout, name, recorded(getattr(dropout, name)))
  model = make_vit(dropout_rate=0.1, attention_dropout_rate=0.1,
                   drop_path_rate=0.1, **settings)
  flat = params_of(model)
  run(model, flat, seed=0)
  assert len(set(keys)) == len(keys) == num_draws


def test_dropout_of_embeddings_is_its_own():
  flat = params_of(make_vit())
  for settings, check in (
      (dict(embedding_dropout_rate=0.5), differ),
      (dict(dropout_rate=0.5, embedding_dropout_rate=0.0), differ),
      (dict(embedding_dropout_rate=0.0), close)):
    check(run(make_vit(**settings), flat, seed=0), run(make_vit(), flat))
  nothing_else = make_vit(num_layers=1, embedding_dropout_rate=0.5)
  same = make_vit(num_layers=1, dropout_rate=0.5)
  zeroed = {path: 0 * x if BLOCK in path else x for path, x in flat.items()}
  close(run(nothing_else, zeroed, seed=3), run(same, zeroed, seed=3))


# --- fractals


def alone(flat, column):
  """Parameters of a plain encoder: those of one column."""
  return {path.replace(f'_{column}_', '_'): x for path, x in flat.items()
          if BLOCK not in path or path.startswith(f'{BLOCK}{column}_')}


def test_a_column_alone_is_a_plain_encoder():
  """Global drop-path, over seeds: each column, and nothing else."""
  model = make_vit(num_layers=4, fractal_columns=3, global_drop_path_rate=1.0)
  flat = params_of(model)
  assert len({path.split('/')[1] for path in flat if BLOCK in path}) == 7
  columns = [run(make_vit(num_layers=2**c), alone(flat, c)) for c in range(3)]
  found = set()
  for seed in range(8):
    logits = run(model, flat, seed=seed)
    errors = [abs(logits - column).max() for column in columns]
    assert min(errors) < 2e-5
    found.add(int(np.argmin(errors)))
  assert found == {0, 1, 2}


def test_a_fractal_is_made_of_means():
  """Two fractals of two columns, by hand; with letters for layers."""
  def layer(x, column, index):
    return np.tanh(x + 10 * column + index)

  x = np.float32(0.3)
  for i in range(2):
    x = (layer(x, 0, i) + layer(layer(x, 1, 2 * i), 1, 2 * i + 1)) / 2
  close(fractal.run(np.float32(0.3), 2, 4, layer, None), x)


def test_local_drop_path_drops_inputs_of_joins_and_keeps_one():
  keys = jax.random.split(jax.random.key(0), 3000)

  def draw(key):
    kept = fractal.drop_path(key, 3, 0.4, 0.0)
    return kept(0, range(1, 3)), kept(1, range(0, 3))

  two, three = jax.vmap(draw)(keys)
  assert two.any(1).all() and three.any(1).all()
  # P(kept) is 0.6, or being the survivor of none: 0.4^n / n more.
  for kept, n in ((two, 2), (three, 3)):
    close(kept.mean(0), [0.6 + 0.4**n / n] * n, atol=0.04)
  together = (two[:, 0] & three[:, 1]).mean()  # joins draw for themselves
  close(together, two[:, 0].mean() * three[:, 1].mean(), atol=0.04)


def test_joins_take_the_mean_of_what_is_kept():
  def layer(x, column, index):
    return x + 10.0**(2 * column + index)

  kept = lambda index, columns: jnp.array([True, False, True])[
      columns.start:columns.stop]
  # Column 1 (of two layers) is dropped where it meets others.
  found = fractal.run(np.float32(0), 3, 4, layer, kept)
  half = 1e4 + 1e5  # after the first join, of columns 1 and 2: 2 alone
  close(found, (1 + half + 1e6 + 1e7) / 2)


# --- smaller settings


def test_exact_gelu():
  x = jnp.linspace(-4, 4, 33)
  exact = [0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x.tolist()]
  close(mlp.gelu(x, 'exact'), exact, 1e-6)
  assert 1e-4 < abs(mlp.gelu(x, 'tanh') - np.array(exact)).max() < 1e-3
  for make in (make_vit, make_mixer):
    flat = params_of(make())
    found = abs(run(make(gelu='exact'), flat) - run(make(), flat)).max()
    assert 1e-6 < found < 1e-2


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_epsilon_of_all_norms(make):
  """Scaling what enters the norms is the same as scaling epsilon inversely."""
  flat = params_of(make())
  differ(run(make(norm_epsilon=10.0), flat), run(make(), flat))
  paths = [path for path in flat if path.endswith('scale')]
  flat.update({path: 1 + 0 * flat[path] for path in paths})
  features = run(make(norm_epsilon=1e6), flat)
  # Norms of next to nothing: all that is left are their biases.
  last = [path for path in flat if path.endswith('norm/bias')]
  close(features, np.broadcast_to(flat[last[0]], features.shape), 0.05)


@pytest.mark.parametrize('model', [
    make_vit(num_layers=1), make_mixer(num_layers=1),
    make_vit(num_layers=1, stem_units=(), stem_width=32, patch_size=2)],
    ids=['vit', 'mixer', 'hybrid'])
def test_images_of_four_channels(model):
  images = like(jnp.zeros((3, 32, 24, 4)))
  flat = params_of(model, images)
  differ(run(model, flat, images), run(
      model, flat, images.at[..., -1].set(0)))


def test_zeros_around_the_stems_pool_change_nothing():
  """BiT pads with zeros, flax with −∞; what is pooled is never below 0."""
  x = nn.relu(like(jnp.zeros((1, 9, 8, 2)))) - 0
  padded = jnp.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0)))
  close(nn.max_pool(padded, (3, 3), (2, 2), 'VALID'),
        nn.max_pool(x, (3, 3), (2, 2), 'SAME'))


OPTIONS = {
    'map': dict(classifier='map', positions='relative', patch_dropout_rate=0.5,
                attention_dropout_rate=0.1, qk_norm=True),
    'gap': dict(classifier='gap', positions='sincos2d', num_registers=2,
                positions_at='every_layer_shared', class_token=True,
                drop_path_rate=0.5, dropout_rate=0.1, layer_scale=0.1),
    'fractal': dict(fractal_columns=2, drop_path_rate=0.3, gelu='exact',
                    positions='learned_2d', positions_at='every_layer',
                    global_drop_path_rate=0.5, head_dim=6),
    'hybrid': dict(stem_units=(), stem_width=32, patch_size=2,
                   classifier='unpooled', num_layers=1, dropout_rate=0.1),
    'mixer': dict(drop_path_rate=0.5, scan=True),
}


@pytest.mark.parametrize('name', [
    pytest.param('map', marks=pytest.mark.slow),
    pytest.param('fractal', marks=pytest.mark.slow),
    pytest.param('gap', marks=pytest.mark.slow), 'hybrid', 'mixer'])
def test_options_in_bfloat16(name):
  make = make_mixer if name == 'mixer' else make_vit
  plain = make(num_classes=5, **OPTIONS[name])
  half = plain.clone(dtype='bfloat16')
  flat = params_of(half)
  assert {x.dtype for x in flat.values()} == {jnp.dtype('float32')}
  expected, logits = (jax.jit(functools.partial(run, model, seed=0))(flat)
                      for model in (plain, half))
  assert logits.dtype == jnp.float32
  assert 0 < abs(logits - expected).max() < 0.05 * abs(expected).max()


# --- ways to run the layers


@functools.cache
def loss_and_grads(model):
  def loss(params):
    logits = model.apply({'params': params}, IMAGES, train=True,
                         rngs={'dropout': jax.random.key(0)})
    return (logits**2).sum()

  return jax.jit(jax.value_and_grad(loss))(
      traverse_util.unflatten_dict(params_of(model), sep='/'))


def check_same_training(model, other):
  loss, grads = loss_and_grads(model)
  other_loss, other_grads = loss_and_grads(other)
  close(other_loss / loss, 1, 1e-6)
  scale = max(abs(x).max() for x in jax.tree.leaves(grads))
  jax.tree.map(lambda a, b: close(a / scale, b / scale, 1e-5),
               grads, other_grads)


EVERYTHING = dict(
    num_layers=2, dropout_rate=0.1, attention_dropout_rate=0.1,
    drop_path_rate=0.5, patch_dropout_rate=0.3, num_registers=2,
    positions='learned_2d', positions_at='every_layer', layer_scale=0.5,
    qk_norm=True)


@pytest.mark.parametrize('make, settings, changes', [
    (make_vit, EVERYTHING, dict(scan=True, remat='dots')),
    pytest.param(make_vit, EVERYTHING, dict(remat='full'),
                 marks=pytest.mark.slow),
    (make_vit, dict(num_layers=2, positions='relative', classifier='gap'),
     dict(scan=True)),
    (make_mixer, dict(num_layers=2, drop_path_rate=0.5),
     dict(scan=True, remat='full'))])
def test_scan_and_remat_change_no_training(make, settings, changes):
  model = make(**settings)
  check_same_training(model, model.clone(**changes))


@pytest.mark.slow
def test_remat_of_a_fractal():
  model = make_vit(fractal_columns=2, drop_path_rate=0.3, dropout_rate=0.1)
  check_same_training(model, model.clone(remat='dense'))


def init(model):
  return jax.jit(lambda: model.init(jax.random.key(5), IMAGES, train=False))()


@pytest.mark.parametrize('make', [
    make_vit, pytest.param(make_mixer, marks=pytest.mark.slow)])
def test_scan_and_remat_begin_with_the_same_parameters(make):
  jax.tree.map(np.testing.assert_array_equal,
               init(make(num_layers=2, scan=True, remat='full')),
               init(make(num_layers=2)))


def forward_jaxpr(model):
  variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), IMAGES, train=False))
  return jax.make_jaxpr(lambda variables: model.apply(
      variables, IMAGES, train=True,
      rngs={'dropout': jax.random.key(0)}))(variables)


def num_equations(jaxpr):
  """Of a jaxpr and all that it calls."""
  inner = [x for eqn in jaxpr.eqns for value in eqn.params.values()
           for x in (value if isinstance(value, (tuple, list)) else [value])]
  return len(jaxpr.eqns) + sum(
      num_equations(getattr(x, 'jaxpr', x)) for x in inner
      if hasattr(getattr(x, 'jaxpr', x), 'eqns'))


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_a_scan_compiles_one_layer_whatever_the_depth(make):
  def size(**settings):
    return num_equations(forward_jaxpr(
        make(drop_path_rate=0.1, **settings)).jaxpr)

  assert size(num_layers=9, scan=True) == size(num_layers=3, scan=True)
  assert size(num_layers=9) > 2 * size(num_layers=3)


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_remat_keeps_less(make):
  """Floats that the forward pass leaves for the backward one."""
  def kept(remat):
    model = make(num_layers=4, remat=remat)
    flat = params_of(model)
    params = traverse_util.unflatten_dict(flat, sep='/')
    vjp = jax.eval_shape(lambda p: jax.vjp(lambda p: model.apply(
        {'params': p}, IMAGES, train=False), p)[1], params)
    return sum(x.size for x in jax.tree.leaves(vjp))

  sizes = [kept(name) for name in ('none', 'dots', 'dense', 'full')]
  assert sizes[0] > sizes[1] >= sizes[2] > sizes[3]
  assert (sizes[1] > sizes[2]) == (make is make_vit)  # products in attention


# --- mistakes


@pytest.mark.parametrize('settings, message', [
    (dict(positions='sin'), "positions 'sin' is not one of learned, lear"),
    (dict(positions_at='all'), "positions_at 'all' is not one of input"),
    (dict(positions='relative', positions_at='every_layer'),
     "'relative' are not added .* leave positions_at at 'input'"),
    (dict(positions='sincos2d', hidden_size=18), 'multiple of 4.* is 18'),
    (dict(positions='learned_2d', hidden_size=15, num_heads=3),
     'multiple of 2.* is 15'),
    (dict(class_token=False), "class_token False: classifier 'token' reads it"),
    (dict(num_registers=-1), 'num_registers -1 must be 0 or more'),
    (dict(drop_path_rate=1.0), 'drop_path_rate 1.0 must be .* below 1'),
    (dict(patch_dropout_rate=1.0), 'patch_dropout_rate 1.0 must be'),
    (dict(embedding_dropout_rate=-1), 'embedding_dropout_rate -1 must be'),
    (dict(patch_dropout_rate=0.5, classifier='unpooled'),
     "patch_dropout_rate 0.5: classifier 'unpooled' answers for every patch"),
    (dict(gelu='relu'), "gelu 'relu' is not one of tanh, exact"),
    (dict(norm_epsilon=0), 'norm_epsilon 0 must be above 0'),
    (dict(head_dim=0), 'head_dim 0 must be 1 or more'),
    (dict(attention='flash'), "attention 'flash' is not one of auto, plain"),
    (dict(remat='all'), "remat 'all' is not one of none, full, dots, dense"),
    (dict(global_drop_path_rate=0.5), '0.5 chooses .* set fractal_columns'),
    (dict(fractal_columns=2, global_drop_path_rate=1.5), 'must be from 0 to 1'),
    (dict(fractal_columns=0), 'fractal_columns 0 must be 1 or more'),
    (dict(fractal_columns=3, num_layers=6), 'num_layers 6 .* multiple of 4'),
    (dict(fractal_columns=2, scan=True), 'scan True needs layers one after')])
def test_mistakes_name_the_mend(settings, message):
  with pytest.raises(ValueError, match=message):
    make_vit(**settings)


@pytest.mark.parametrize('settings, message', [
    (dict(drop_path_rate=1.0), 'drop_path_rate 1.0 must be'),
    (dict(gelu='relu'), "gelu 'relu' is not one of"),
    (dict(remat='all'), "remat 'all' is not one of")])
def test_mistakes_with_a_mixer(settings, message):
  with pytest.raises(ValueError, match=message):
    make_mixer(**settings)
