"""The state of a run, and how it is created on the mesh."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from vit_jax.parallel import sharding


@flax.struct.dataclass
class TrainState:
  """What a step reads and writes.

  Attributes:
    step: completed updates, int32 [].
    params: nested dict of float32 arrays.
    opt_state: of the optimizer.
    ema: moving average of the parameters, or None.
    task_state: see `task.Task.init_task_state`, or None.
  """

  step: jax.Array
  params: Any
  opt_state: optax.OptState
  ema: Any = None
  task_state: Any = None


def _from_params(task, params):
  """What of a state is made from parameters: {'ema': …, 'task_state': …}."""
  return {
    'ema': task.ema_decay and jax.tree.map(jnp.copy, params),
    'task_state': task.init_task_state(params),
  }


def make_init_fn(
  task: Any,
  tx: optax.GradientTransformation,
  batch_spec: Mapping[str, Any],
  mesh: jax.sharding.Mesh,
) -> Callable:
  """Returns the compiled `key -> TrainState`, each part made where it lies.

  Args:
    task: a `task.Task`.
    tx: optax gradient transformation.
    batch_spec: {name: abstract array [B, …]} that the task's loss gets.
    mesh: of the devices that share the state by `sharding.by_rules`.
  """

  def init(key):
    params = task.init(key, batch_spec)
    return TrainState(
      jnp.zeros((), jnp.int32),
      params,
      tx.init(params),
      **_from_params(task, params),
    )

  shardings = sharding.by_rules(jax.eval_shape(init, jax.random.key(0)), mesh)
  return jax.jit(init, out_shardings=shardings)


def with_params(state: TrainState, params: Any, task: Any) -> TrainState:
  """A new state that begins with other parameters.

  Args:
    state: of step 0.
    params: nested dict of arrays, in NumPy.
    task: a `task.Task`; the moving average and the task's state are made anew.
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
