"""The optimizer that minimizes a loss in one step."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.optim import minimize


def step(tx, params, value_fn):
  """Returns (params, state) after one update."""
  grads = jax.grad(value_fn)(params)
  updates, state = tx.update(
    grads, tx.init(params), params, value=None, grad=grads, value_fn=value_fn
  )
  return jax.tree.map(jnp.add, params, updates), state


def test_one_step_leads_to_the_minimum_from_everywhere():
  scales = jnp.array([1.0, 30.0, 0.1])

  def loss(params):
    # Names that are also names in the state of optax.
    return jnp.sum(
      scales * (params['value'] - jnp.array([1.0, 2.0, 3.0])) ** 2
    ) + jnp.cosh(params['grad'] + 1.0)

  expected = {'value': np.array([1.0, 2.0, 3.0]), 'grad': -1.0, 'frozen': None}
  tx = minimize.to_convergence(
    lambda params: {**params, 'value': params['value'] / scales**0.5}
  )
  found = []
  for start in (0.0, 7.0):
    params = {'value': jnp.full(3, start), 'grad': start, 'frozen': None}
    params, state = step(tx, params, loss)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), params, expected
    )
    assert state.iterations < 20 and state.gradient <= minimize.TOLERANCE
    np.testing.assert_allclose(state.loss, 1.0, atol=1e-6)
    found.append(int(state.iterations))
  assert found[0] == found[1]


def test_the_number_of_iterations_is_limited():
  tx = minimize.to_convergence(max_iterations=2)
  _, state = step(tx, jnp.zeros(2), lambda x: jnp.sum(jnp.exp(x) - 3 * x))
  assert state.iterations == 2 and state.gradient > minimize.TOLERANCE


def test_standardized_coordinates_give_the_same_outputs():
  rng = np.random.default_rng(0)
  x = rng.normal(5, [1, 20, 0], (50, 3)).astype(np.float32)  # one is constant
  head = {
    'kernel': rng.normal(size=(3, 2)).astype(np.float32),
    'bias': rng.normal(size=2).astype(np.float32),
  }
  mean, std = x.mean(0), x.std(0)
  changed = minimize.standardizing(mean, std)(head)
  expected = (x - mean) / np.where(std > 1e-6, std, 1) @ head['kernel']
  np.testing.assert_allclose(
    x @ changed['kernel'] + changed['bias'], expected + head['bias'], atol=1e-4
  )
