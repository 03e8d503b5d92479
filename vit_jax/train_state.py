"""The state of a run, and functions that create it on the mesh."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from vit_jax.optim import rules
from vit_jax.parallel import sharding


@flax.struct.dataclass
class TrainState:
  """The arrays that a training step reads and writes.

  Attributes:
    step: number of completed updates, int32 [].
    params: nested dict of float32 arrays.
    opt_state: state of the optimizer, without frozen parameters.
    ema: moving average of the parameters, or None.
    task_state: see `task.Task.init_task_state`; or None.
  """

  step: jax.Array
  params: Any
  opt_state: optax.OptState
  ema: Any = None
  task_state: Any = None

  def copy(self) -> 'TrainState':
    """Returns a copy in new memory, which the next step does not reuse."""
    return jax.tree.map(jnp.copy, self)


def _from_params(task, params):
  """Returns {'ema': …, 'task_state': …}, initialized from parameters."""
  return {
    'ema': task.ema_decay and jax.tree.map(jnp.copy, params),
    'task_state': task.init_task_state(params),
  }


def make_init_fn(
  task: Any,
  tx: optax.GradientTransformation,
  batch_spec: Mapping[str, Any],
  mesh: jax.sharding.Mesh,
  frozen_paths: Collection[str] = (),
) -> Callable:
  """Returns the compiled `key -> TrainState`, which creates sharded arrays.

  Args:
    task: a `task.Task`.
    tx: Optax gradient transformation.
    batch_spec: {name: abstract array [B, …]}, the batch of the task's loss.
    mesh: device mesh over which `sharding.by_rules` shards the state.
    frozen_paths: paths of parameters that are not trained.
  """

  def init(key):
    params = task.init(key, batch_spec)
    return TrainState(
      jnp.zeros((), jnp.int32),
      params,
      tx.init(rules.select(params, frozen_paths)),
      **_from_params(task, params),
    )

  shardings = sharding.by_rules(jax.eval_shape(init, jax.random.key(0)), mesh)
  return jax.jit(init, out_shardings=shardings)


def with_params(state: TrainState, params: Any, task: Any) -> TrainState:
  """Returns an initial state with other parameters.

  Args:
    state: a TrainState of step 0.
    params: nested dict of NumPy arrays.
    task: a `task.Task`, which initializes the moving average and its own
      state again.
  """
  params = jax.tree.map(
    lambda new, old: sharding.put(new, old.sharding), params, state.params
  )
  shardings = jax.tree.map(
    lambda x: x.sharding, {'ema': state.ema, 'task_state': state.task_state}
  )
  remake = jax.jit(
    lambda params: _from_params(task, params), out_shardings=shardings
  )
  return state.replace(params=params, **remake(params))
