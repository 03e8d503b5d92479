"""An optimizer that minimizes the loss of a batch to convergence in one step.

It is for convex losses of few parameters, such as a linear head. Each step
starts at 0 and uses L-BFGS with a line search, so the result depends only on
the loss, and not on the parameters before the step.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# At this gradient, float32 still has a digit to spare.
TOLERANCE = 1e-5
MAX_ITERATIONS = 1000


def standardizing(mean: np.ndarray, std: np.ndarray) -> Callable:
  """Returns the `change` for a linear head on features.

  In the coordinates of L-BFGS, the head is applied to standardized features,
  (feature - mean) / std. The minimum of the loss stays the same.

  Args:
    mean: means of the features [D].
    std: standard deviations of the features [D]. 0 is used as 1.
  """
  std = np.where(std > 1e-6, std, 1).astype(np.float32)
  mean = mean.astype(np.float32)

  def change(head):
    kernel = head['kernel'] / std[:, None]
    shift = jnp.dot(mean, kernel, precision='highest')
    return {'kernel': kernel, 'bias': head['bias'] - shift}

  return change


class MinimizeState(NamedTuple):
  """What the last step needed; the next step does not read it."""

  iterations: jax.Array  # int32 []
  loss: jax.Array  # at the end, float32 []
  gradient: jax.Array  # largest absolute value at the end, float32 []


def to_convergence(
  change: Callable = lambda params: params,
  tolerance: float = TOLERANCE,
  max_iterations: int = MAX_ITERATIONS,
) -> optax.GradientTransformationExtraArgs:
  """Returns a transformation whose update leads to the minimum of the loss.

  Args:
    change: (other coordinates) -> params, an invertible linear function. L-BFGS
      needs fewer iterations in coordinates in which the loss is similarly
      curved in all directions.
    tolerance: largest absolute value of a gradient in these coordinates at
      which the search ends.
    max_iterations: the search ends after this number of iterations at the
      latest.
  """
  lbfgs = optax.lbfgs()

  def init(params):
    del params
    zero = jnp.zeros((), jnp.float32)
    return MinimizeState(jnp.zeros((), jnp.int32), zero, zero)

  def update(updates, state, params, *, value_fn, **unused: Any):
    del updates, state, unused
    # A flat list, because optax searches the state for names such as 'value',
    # which parameters may have.
    leaves, treedef = jax.tree.flatten(params)

    def params_of(x):
      return change(jax.tree.unflatten(treedef, x))

    def value(x):
      return value_fn(params_of(x))

    value_and_grad = optax.value_and_grad_from_state(value)

    def is_open(carry):
      _, _, iterations, _, gradient = carry
      return (gradient > tolerance) & (iterations < max_iterations)

    def iterate(carry):
      x, lbfgs_state, iterations, *_ = carry
      loss, grads = value_and_grad(x, state=lbfgs_state)
      step, lbfgs_state = lbfgs.update(
        grads, lbfgs_state, x, value=loss, grad=grads, value_fn=value
      )
      largest = jnp.stack(
        [jnp.abs(x).max() for x in jax.tree.leaves(grads)]
      ).max()
      # A minimum that is found needs no further step.
      scale = jnp.where(largest > tolerance, 1.0, 0.0)
      x = jax.tree.map(lambda x, y: x + scale * y, x, step)
      return x, lbfgs_state, iterations + 1, loss, largest

    zeros = jax.tree.map(jnp.zeros_like, leaves)
    infinite = jnp.float32(jnp.inf)
    start = zeros, lbfgs.init(zeros), jnp.int32(0), infinite, infinite
    x, _, *found = jax.lax.while_loop(is_open, iterate, start)
    difference = jax.tree.map(jnp.subtract, params_of(x), params)
    return difference, MinimizeState(*found)

  return optax.GradientTransformationExtraArgs(init, update)


def results(opt_state: Any) -> dict[str, jax.Array]:
  """Returns metrics at the end of a search; {} for other optimizers.

  They replace the metrics of the parameters before the step. A search that
  needed `MAX_ITERATIONS` did not converge.
  """
  if not isinstance(opt_state, MinimizeState):
    return {}
  return {
    'train_loss': opt_state.loss,
    'grad_norm': opt_state.gradient,
    'iterations': opt_state.iterations,
  }
