"""Definitions of the model options, and error messages."""

import functools
import math

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import ATTENTION
from tests.tiny_model import close
from tests.tiny_model import differ
from tests.tiny_model import IMAGES
from tests.tiny_model import like
from tests.tiny_model import make_mixer
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import mlp


def test_layer_scale_begins_small_and_scales_the_branches():
  model = make_vit(layer_scale=0.125)
  params = model.init(jax.random.key(0), IMAGES, train=False)['params']
  flat = traverse_util.flatten_dict(params, sep='/')
  scales = [path for path in flat if 'LayerScale' in path]
  assert len(scales) == 4 and (flat[scales[0]] == 0.125).all()
  flat = {**params_of(model), **{path: 0 * flat[path] for path in scales}}
  other = {
    path: x + 1 if 'Dense' in path or ATTENTION in path else x
    for path, x in flat.items()
  }
  close(run(model, flat), run(model, other))


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
def test_large_epsilon(make):
  flat = params_of(make())
  features = run(make(norm_epsilon=1e6), flat)
  # The norms scale their input to nearly 0, so only their biases remain.
  last = [path for path in flat if path.endswith('norm/bias')]
  close(features, np.broadcast_to(flat[last[0]], features.shape), 0.05)


@pytest.mark.parametrize(
  'make, settings, num_norms, num_mlps',
  [
    (make_vit, dict(classifier='map', qk_norm=True), 2 * 4 + 2, 3),
    (make_vit, dict(fractal_columns=2), 3 * 2 + 1, 3),
    (make_mixer, {}, 3 * 2 + 1, 3 * 2),
  ],
)
def test_every_norm_has_the_epsilon_and_every_mlp_the_gelu(
  monkeypatch, make, settings, num_norms, num_mlps
):
  model = make(gelu='exact', norm_epsilon=0.5, **settings)
  epsilons, kinds = [], []

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.LayerNorm):
      epsilons.append(context.module.epsilon)
    return call(*args, **kwargs)

  monkeypatch.setattr(mlp, 'gelu', lambda x, kind: (kinds.append(kind), x)[1])
  with nn.intercept_methods(record):
    jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
  assert epsilons == [0.5] * num_norms
  assert kinds == ['exact'] * num_mlps


@pytest.mark.parametrize(
  'model',
  [
    make_vit(num_layers=1),
    make_mixer(num_layers=1),
    make_vit(num_layers=1, stem_units=(), stem_width=32, patch_size=2),
  ],
  ids=['vit', 'mixer', 'hybrid'],
)
def test_images_of_four_channels(model):
  images = like(jnp.zeros((3, 32, 24, 4)))
  flat = params_of(model, images)
  differ(run(model, flat, images), run(model, flat, images.at[..., -1].set(0)))


def test_padding_of_the_stem_with_zeros_changes_nothing():
  """BiT pads with zeros and Flax with −∞; pooled values are never negative."""
  x = nn.relu(like(jnp.zeros((1, 9, 8, 2)))) - 0
  padded = jnp.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0)))
  close(
    nn.max_pool(padded, (3, 3), (2, 2), 'VALID'),
    nn.max_pool(x, (3, 3), (2, 2), 'SAME'),
  )


OPTIONS = {
  'map': dict(
    classifier='map',
    positions='relative',
    patch_dropout_rate=0.5,
    attention_dropout_rate=0.1,
    qk_norm=True,
  ),
  'gap': dict(
    classifier='gap',
    positions='sincos2d',
    num_registers=2,
    positions_at='every_layer_shared',
    class_token=True,
    drop_path_rate=0.5,
    dropout_rate=0.1,
    layer_scale=0.1,
  ),
  'fractal': dict(
    fractal_columns=2,
    drop_path_rate=0.3,
    gelu='exact',
    positions='learned_2d',
    positions_at='every_layer',
    global_drop_path_rate=0.5,
    head_dim=6,
  ),
  'hybrid': dict(
    stem_units=(),
    stem_width=32,
    patch_size=2,
    classifier='unpooled',
    num_layers=1,
    dropout_rate=0.1,
  ),
  'mixer': dict(drop_path_rate=0.5, scan=True),
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param('map', marks=pytest.mark.slow),
    pytest.param('fractal', marks=pytest.mark.slow),
    pytest.param('gap', marks=pytest.mark.slow),
    'hybrid',
    'mixer',
  ],
)
def test_options_in_bfloat16(name):
  make = make_mixer if name == 'mixer' else make_vit
  plain = make(num_classes=5, **OPTIONS[name])
  half = plain.clone(dtype='bfloat16')
  flat = params_of(half)
  assert {x.dtype for x in flat.values()} == {jnp.dtype('float32')}
  expected, logits = (
    jax.jit(functools.partial(run, model, seed=0))(flat)
    for model in (plain, half)
  )
  assert logits.dtype == jnp.float32
  assert 0 < abs(logits - expected).max() < 0.05 * abs(expected).max()


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(positions='sin'), "positions='sin' .*learned, learned_2d"),
    (dict(positions_at='all'), "positions_at='all' .*input, every_layer"),
    (
      dict(positions='relative', positions_at='every_layer'),
      "positions='relative'.*positions_at='every_layer'.*positions_at='input'",
    ),
    (
      dict(positions='sincos2d', hidden_size=18),
      'hidden_size=18 .*multiple of 4.* 8',
    ),
    (
      dict(positions='learned_2d', hidden_size=15, num_heads=3),
      'hidden_size=15 .*multiple of 2.* 4',
    ),
    (dict(class_token=False), "class_token=False.*'token' .*'gap' .*'map'"),
    (dict(num_registers=-1), 'num_registers=-1 must be 0 or more'),
    (dict(drop_path_rate=1.0), 'drop_path_rate=1.0 must be .* below 1'),
    (dict(patch_dropout_rate=1.0), 'patch_dropout_rate=1.0 must be'),
    (dict(embedding_dropout_rate=-1), 'embedding_dropout_rate=-1 must be'),
    (
      dict(patch_dropout_rate=0.5, classifier='unpooled'),
      "patch_dropout_rate=0.5 .*classifier='unpooled' .*every patch",
    ),
    (dict(gelu='relu'), "gelu='relu' .*tanh, exact"),
    (dict(norm_epsilon=0), 'norm_epsilon=0 must be above 0'),
    (dict(head_dim=0), 'head_dim=0 must be 1 or more'),
    (dict(attention='flash'), "attention='flash' .*auto, plain"),
    (dict(remat='all'), "remat='all' .*none, full, dots, dense"),
    (dict(global_drop_path_rate=0.5), 'rate=0.5 .*fractal_columns'),
    (dict(drop_path_schedule='const'), "'const' is not one of linear, const"),
    (
      dict(fractal_columns=2, drop_path_schedule='constant'),
      "schedule='constant' needs a sequence .*fractal_columns=2",
    ),
    (
      dict(fractal_columns=2, global_drop_path_rate=1.5),
      '=1.5 must be from 0 to 1',
    ),
    (dict(fractal_columns=0), 'fractal_columns=0 must be 1 or more'),
    (dict(fractal_columns=3, num_layers=6), 'num_layers=6 .* multiple of 4'),
    (
      dict(fractal_columns=2, scan=True),
      'scan=True .*fractal_columns=2.*scan=False',
    ),
  ],
)
def test_errors_contain_the_fix(settings, message):
  with pytest.raises(ValueError, match=message):
    make_vit(**settings)


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(drop_path_rate=1.0), 'drop_path_rate=1.0 must be'),
    (dict(drop_path_schedule='const'), "'const' is not one of linear, const"),
    (dict(gelu='relu'), "gelu='relu' .*tanh"),
    (dict(remat='all'), "remat='all' .*full"),
  ],
)
def test_mistakes_with_a_mixer(settings, message):
  with pytest.raises(ValueError, match=message):
    make_mixer(**settings)
