"""Scan and rematerialization of layers."""

import functools

from flax import traverse_util
import jax
import numpy as np
import pytest

from tests.tiny_model import close
from tests.tiny_model import IMAGES
from tests.tiny_model import make_mixer
from tests.tiny_model import make_vit
from tests.tiny_model import params_of


@functools.cache
def loss_and_grads(model):
  def loss(params):
    logits = model.apply(
      {'params': params},
      IMAGES,
      train=True,
      rngs={'dropout': jax.random.key(0)},
    )
    return (logits**2).sum()

  return jax.jit(jax.value_and_grad(loss))(
    traverse_util.unflatten_dict(params_of(model), sep='/')
  )


def check_same_training(model, other):
  loss, grads = loss_and_grads(model)
  other_loss, other_grads = loss_and_grads(other)
  close(other_loss / loss, 1, 1e-6)
  scale = max(abs(x).max() for x in jax.tree.leaves(grads))
  jax.tree.map(
    lambda a, b: close(a / scale, b / scale, 1e-5), grads, other_grads
  )


EVERYTHING = dict(
  num_layers=2,
  dropout_rate=0.1,
  attention_dropout_rate=0.1,
  drop_path_rate=0.5,
  patch_dropout_rate=0.3,
  num_registers=2,
  positions='learned_2d',
  positions_at='every_layer',
  layer_scale=0.5,
  qk_norm=True,
)


LAYERS = dict(
  num_layers=2,
  dropout_rate=0.1,
  drop_path_rate=0.5,
  patch_dropout_rate=0.3,
  gated_mlp=True,
  mlp_norm=True,
  attention_norm=True,
  key_bias=False,
  norm='rms',
  norm_after=True,
  pre_norm=True,
  distilled=True,
)


@pytest.mark.parametrize(
  'make, settings, changes',
  [
    (make_vit, EVERYTHING, dict(scan=True, remat='dots')),
    pytest.param(
      make_vit, EVERYTHING, dict(remat='full'), marks=pytest.mark.slow
    ),
    (make_vit, LAYERS, dict(scan=True, remat='dense')),
    pytest.param(
      make_vit,
      dict(num_layers=2, num_parallel=2, drop_path_rate=0.5),
      dict(scan=True),
      marks=pytest.mark.slow,
    ),
    (
      make_vit,
      dict(num_layers=2, positions='relative', classifier='gap'),
      dict(scan=True),
    ),
    (
      make_mixer,
      dict(num_layers=2, drop_path_rate=0.5),
      dict(scan=True, remat='full'),
    ),
  ],
)
def test_scan_and_remat_do_not_change_training(make, settings, changes):
  model = make(**settings)
  check_same_training(model, model.clone(**changes))


@pytest.mark.slow
def test_remat_of_a_fractal():
  model = make_vit(fractal_columns=2, drop_path_rate=0.3, dropout_rate=0.1)
  check_same_training(model, model.clone(remat='dense'))


def init(model):
  return jax.jit(lambda: model.init(jax.random.key(5), IMAGES, train=False))()


@pytest.mark.parametrize(
  'make', [make_vit, pytest.param(make_mixer, marks=pytest.mark.slow)]
)
def test_scan_and_remat_have_the_same_initial_parameters(make):
  jax.tree.map(
    np.testing.assert_array_equal,
    init(make(num_layers=2, scan=True, remat='full')),
    init(make(num_layers=2)),
  )


def forward_jaxpr(model):
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), IMAGES, train=False)
  )
  return jax.make_jaxpr(
    lambda variables: model.apply(
      variables, IMAGES, train=True, rngs={'dropout': jax.random.key(0)}
    )
  )(variables)


def num_equations(jaxpr):
  """Counts the equations of a jaxpr and of all jaxprs that it calls."""
  inner = [
    x
    for eqn in jaxpr.eqns
    for value in eqn.params.values()
    for x in (value if isinstance(value, (tuple, list)) else [value])
  ]
  return len(jaxpr.eqns) + sum(
    num_equations(getattr(x, 'jaxpr', x))
    for x in inner
    if hasattr(getattr(x, 'jaxpr', x), 'eqns')
  )


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_a_scan_compiles_one_layer_for_any_depth(make):
  def size(**settings):
    return num_equations(
      forward_jaxpr(make(drop_path_rate=0.1, **settings)).jaxpr
    )

  assert size(num_layers=9, scan=True) == size(num_layers=3, scan=True)
  assert size(num_layers=9) > 2 * size(num_layers=3)


@pytest.mark.parametrize('make', [make_vit, make_mixer])
def test_remat_stores_less(make):
  """Compares the number of floats that are kept for the backward pass."""

  def kept(remat):
    model = make(num_layers=4, remat=remat)
    flat = params_of(model)
    params = traverse_util.unflatten_dict(flat, sep='/')
    vjp = jax.eval_shape(
      lambda p: jax.vjp(
        lambda p: model.apply({'params': p}, IMAGES, train=False), p
      )[1],
      params,
    )
    return sum(x.size for x in jax.tree.leaves(vjp))

  sizes = [kept(name) for name in ('none', 'dots', 'dense', 'full')]
  assert sizes[0] > sizes[1] >= sizes[2] > sizes[3]
  # 'dots' also keeps the products in attention.
  assert (sizes[1] > sizes[2]) == (make is make_vit)
