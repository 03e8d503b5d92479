"""SAM and GSAM: their formulas, and training steps with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.digits_run import make_config
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.optim import given_optimizer
from vit_jax.optim import sam
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.run import given
from vit_jax.run import setup
from vit_jax.tasks import classification
from vit_jax.tasks import task

# f = ½ pᵀAp for two arrays p = (x, y), with the gradient Ap.
A = np.float32([[3, 1, 0, 1], [1, 2, 0, 0], [0, 0, 1, 0], [1, 0, 0, 4]])
P = np.float32([0.5, -1, 2, 0.3])
PARAMS = {'x': jnp.array(P[:1]), 'y': jnp.array(P[1:]), 'frozen': None}
CONTEXT = task.Context(key=jax.random.key(0), step=jnp.int32(3))
G = A @ P


def flat(tree):
  return np.concatenate([tree['x'], tree['y']])


def loss(params, batch, context):
  del batch, context
  p = jnp.concatenate([params['x'], params['y']])
  return 0.5 * p @ A @ p, 'aux'


def gradient(rho=0.1, params=PARAMS, function=loss, **options):
  made = sam.Sam(lambda step: rho, **options)
  value, grads = made.value_and_grad(function, has_aux=True)(
    params, None, CONTEXT
  )
  assert grads['frozen'] is None and value[1] == 'aux'
  np.testing.assert_array_equal(value[0], function(params, None, CONTEXT)[0])
  return flat(grads)


def norm(x):
  return np.linalg.norm(x)


@pytest.mark.parametrize(
  'adaptive, direction',
  [
    ('none', G / norm(G)),
    ('big_vision', abs(P) * G / norm(G)),
    ('asam', P**2 * G / norm(P * G)),
  ],
)
def test_sam_on_a_quadratic_function(adaptive, direction):
  np.testing.assert_allclose(
    gradient(adaptive=adaptive), A @ (P + 0.1 * direction), rtol=1e-5
  )


def test_gsam_removes_a_part_of_the_orthogonal_component():
  sharp = A @ (P + 0.1 * G / norm(G))
  rest = G - (G @ sharp) / (sharp @ sharp) * sharp
  found = gradient(alpha=0.7)
  np.testing.assert_allclose(found, sharp - 0.7 * rest, rtol=1e-5)
  # r is orthogonal to g'.
  assert abs((found - sharp) @ sharp) < 1e-4 * norm(rest) * norm(sharp)
  rest = sharp - (G @ sharp) / (G @ G) * G
  np.testing.assert_allclose(
    gradient(alpha=0.7, base='clean'), G + 0.7 * rest, rtol=1e-5
  )


def test_a_gradient_of_zeros_does_not_perturb_and_others_are_checked():
  seen = []

  def recorded(params, batch, context):
    jax.debug.callback(lambda *p: seen.append(p), params['x'], params['y'])
    return loss(params, batch, context)

  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  np.testing.assert_array_equal(gradient(params=zeros, function=recorded), 0)
  jax.effects_barrier()
  assert len(seen) >= 2 and not np.concatenate(sum(map(list, seen), [])).any()

  def overflowing(params, batch, context):
    del batch, context
    return jnp.exp(1e3 * params['x']).sum() + (params['y'] ** 2).sum(), 'aux'

  assert np.isnan(gradient(function=overflowing)).all()


def test_the_radius_follows_the_learning_rate():
  """GSAM, equation 8; bv's rates, with a warm-up from 0."""

  def schedule(step):
    return jnp.interp(step, jnp.array([0, 10, 100]), jnp.array([0, 3e-3, 3e-5]))

  made = sam.radius(0.6, 0.1, 3e-3, schedule, 100)
  for step, expected in ((10, 0.6), (55, 0.35), (100, 0.1)):
    np.testing.assert_allclose(made(step), expected, rtol=1e-4)
  np.testing.assert_array_equal(sam.radius(0.6, 0.0, 3e-3, schedule, 100)(0), 0)
  assert sam.radius(0.6, None, 3e-3, None, 100)(7) == 0.6
  assert sam.radius(0.6, 0.1, 1e-2, lambda step: 1e-2, 100)(7) == 0.6
  with pytest.raises(ValueError, match='config.sam.rho_min=0.1 follows the le'):
    sam.radius(0.6, 0.1, 3e-3, None, 100)


def test_radii_that_are_equal_and_no_alpha_are_sam():
  config = make_config()
  config.sam.update(dict(rho=0.2, rho_min=0.2))
  made = sam.make(config, lambda step: 0.1, 8)
  found = made.value_and_grad(loss, has_aux=True)(PARAMS, None, CONTEXT)[1]
  np.testing.assert_array_equal(flat(found), gradient(0.2))
  config.sam.update(dict(rho=0.0, rho_min=None))
  assert sam.make(config, lambda step: 0.1, 8) is None


# --- training steps ----------------------------------------------------------


class Plain:
  """A classifier with dropout: a head on the pixels."""

  @staticmethod
  def apply(variables, images, train, rngs):
    head = variables['params']['head']
    x = images.reshape(len(images), -1)
    kept = jax.random.bernoulli(rngs['dropout'], 0.5, x.shape)
    return jnp.where(kept, x, 0) @ head['kernel'] + head['bias']


def step(value_and_grad, num_devices=1, accum_steps=4, tx=None, scale=1.0):
  """Returns (state, metrics) after one step, on 16 rows."""
  rng = np.random.default_rng(0)
  made = dataclasses.replace(
    classification.of_model(Plain), init=lambda key, spec: rng_params()
  )
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  batch = {
    'image': scale * rng.standard_normal((16, 2, 2, 3)).astype(np.float32),
    'label': rng.integers(0, 3, 16).astype(np.int32),
  }
  tx = tx or optax.sgd(0.1)
  state = train_state.make_init_fn(made, tx, batch, mesh)(jax.random.key(0))
  update = train_step.make_update_fn(
    made,
    tx,
    lambda step: 0.1,
    mesh,
    keys=numerics.run_keys(0),
    accum_steps=accum_steps,
    value_and_grad=value_and_grad,
  )
  state, metrics = update(state, sharding.put_batch(batch, mesh), None)
  return jax.device_get((state, metrics))


def rng_params():
  kernel = np.random.default_rng(1).standard_normal((12, 3))
  return {'head': {'kernel': jnp.float32(kernel), 'bias': jnp.zeros(3)}}


def of_sam(rho, **options):
  return sam.Sam(lambda step: rho, **options).value_and_grad


def test_a_radius_of_0_is_the_plain_step_to_the_bit():
  """Both passes have the same dropout masks."""
  for found, expected in zip(
    step(of_sam(0.0)), step(jax.value_and_grad), strict=True
  ):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_devices_do_not_change_a_step_and_micro_batches_do():
  options = dict(alpha=0.5, adaptive='asam')
  state, metrics = step(of_sam(0.5, **options))
  plain, clean = step(jax.value_and_grad)
  assert metrics['train_loss'] == clean['train_loss']
  assert metrics['grad_norm'] != clean['grad_norm']

  def difference(a, b):
    return abs(a.params['head']['kernel'] - b.params['head']['kernel']).max()

  assert difference(state, plain) > 1e-3
  assert (
    difference(state, step(of_sam(0.5, **options), num_devices=4)[0]) < 1e-6
  )
  # Each micro-batch has its own perturbation. Dropout masks differ, too.
  assert (
    difference(state, step(of_sam(0.5, **options), accum_steps=1)[0]) > 1e-3
  )


def test_an_update_that_is_not_finite_is_skipped():
  tx = optax.apply_if_finite(optax.sgd(0.1), 2)
  # The loss overflows, and the gradient with it.
  state, metrics = step(of_sam(0.5), tx=tx, scale=1e38)
  assert metrics['skipped_updates'] == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, rng_params())


# --- settings ----------------------------------------------------------------


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(alpha=0.1), 'config.sam.alpha=0.1 needs config.sam.rho, which is 0'),
    (dict(rho=-0.1), 'config.sam.rho=-0.1 must be at least 0'),
    (dict(rho=0.1, rho_min=0.2), 'config.sam.rho_min=0.2 must be from 0 to'),
    (dict(rho=0.1, adaptive='yes'), "adaptive='yes' is not one of none, big_v"),
    (dict(rho=0.1, base='clean'), 'sam.base=clean with config.sam.alpha=0'),
  ],
)
def test_wrong_settings_are_rejected(settings, message):
  config = make_config()
  config.sam.update(settings)
  with pytest.raises(ValueError, match=message):
    setup.check(config)


def test_the_number_of_micro_batches_must_be_known():
  config = make_config(accum_steps='auto')
  config.sam.rho = 0.1
  with pytest.raises(ValueError, match='rho=0.1 .* config.accum_steps=auto'):
    setup.check(config)


def test_optimizers_that_evaluate_the_loss_are_rejected():
  config = make_config()
  config.sam.rho = 0.1
  own = given.Given(optimizer=optax.lbfgs())
  mesh, data = setup.check(config, own), setup.get_datasets(config)
  with pytest.raises(ValueError, match='rho=0.1 .* evaluates the loss'):
    setup.make_parts(config, mesh, data, own)
  plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
  assert not given_optimizer.calls_loss(plateau, rng_params())


def test_a_line_has_the_size_of_a_micro_batch():
  config = make_config(batch=32, accum_steps=2)
  assert sam.describe(config) == ''
  config.sam.update(dict(rho=0.6, rho_min=0.1, alpha=0.4))
  assert sam.describe(config).startswith('GSAM: radius 0.6 to 0.1, alpha 0.4; ')
  assert 'm = 16 images' in sam.describe(config)
