"""One update of the parameters, compiled: no input, no files, no TensorFlow.

Shapes:  B batch · A micro-batches
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.optim import optimizer
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.tasks.task import Context


def _mean_over_micro_batches(
  grad_fn, params, batch, context, accum_steps, mesh
):
  """Mean of what `grad_fn` returns over the A micro-batches of a batch."""

  def split(x):  # [B, …] -> [A, B / A, …]
    # Micro-batch i holds the rows i, i + A, …, so that each device keeps the
    # rows it has.
    x = x.reshape(-1, accum_steps, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, sharding.by_rows(mesh, axis=1))

  def of_micro_batch(index, micro_batch):
    key = jax.random.fold_in(context.key, index)
    return grad_fn(params, micro_batch, context.replace(key=key))

  if accum_steps == 1:
    return of_micro_batch(0, batch)

  def add(total, micro):
    return jax.tree.map(jnp.add, total, of_micro_batch(*micro)), None

  batches = jax.tree.map(split, batch)
  shapes = jax.eval_shape(
    of_micro_batch, 0, jax.tree.map(lambda x: x[0], batches)
  )
  numbers, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  zeros = numbers, sharding.constrain(grads, mesh)
  total, _ = jax.lax.scan(add, zeros, (jnp.arange(accum_steps), batches))
  return jax.tree.map(lambda x: x / accum_steps, total)


def _followers(task, state, params, opt_state, aux):
  """Moving average and task state after an update, {'ema', 'task_state'}.

  An update that was skipped leaves both as they are.
  """
  ema, step = state.ema, state.step + 1
  if ema is not None:
    decay = task.ema_decay(step)
    ema = jax.tree.map(
      lambda old, new: decay * old + (1 - decay) * new, ema, params
    )
  new = {
    'ema': ema,
    'task_state': task.update_task_state(state.task_state, params, aux, step),
  }
  applied = optimizer.was_applied(opt_state)
  if applied is None:
    return new
  old = {'ema': state.ema, 'task_state': state.task_state}
  return jax.tree.map(lambda new, old: jnp.where(applied, new, old), new, old)


def make_update_fn(
  task: Any,
  tx: optax.GradientTransformation,
  schedule: Callable,
  mesh: jax.sharding.Mesh,
  *,
  keys: numerics.RunKeys,
  accum_steps: int = 1,
  value_and_grad: Callable = jax.value_and_grad,
) -> Callable:
  """Returns the compiled `(state, batch, frozen) -> (state, metrics)`.

  The batch is split into `accum_steps` micro-batches, whose mean gradient is
  applied: less memory, the same update. The given state's memory is reused.
  `frozen` is what `task.load_frozen` returned.

  Args:
    task: a `task.Task`.
    tx: optax gradient transformation.
    schedule: number of completed updates -> learning rate.
    mesh: of the devices that share the batch's rows and the state.
    keys: `numerics.RunKeys`. Each step, and for the loss each micro-batch,
      folds in its own number.
    accum_steps: micro-batches in a batch.
    value_and_grad: as `jax.value_and_grad`.
  """

  def loss_of(params, batch, context):
    losses, metrics, aux = task.checked_loss(params, batch, context)
    return jnp.mean(losses), (jax.tree.map(jnp.mean, metrics), aux)

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    in_shardings=(None, sharding.by_rows(mesh), None),  # None: as they lie
    out_shardings=(None, sharding.replicated(mesh)),
  )
  def update(state, batch, frozen):
    batch = task.checked_transform(
      jax.random.fold_in(keys.transform, state.step), batch, state.step, True
    )
    context = Context(
      key=jax.random.fold_in(keys.dropout, state.step),
      step=state.step,
      ema=state.ema,
      frozen=frozen,
      task_state=state.task_state,
      train=True,
    )
    (loss, (metrics, aux)), grads = _mean_over_micro_batches(
      value_and_grad(loss_of, has_aux=True),
      state.params,
      batch,
      context,
      accum_steps,
      mesh,
    )
    grads = sharding.constrain(grads, mesh)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'train_loss': loss,
      'lr': schedule(state.step),
      'grad_norm': optax.tree.norm(grads),
      **optimizer.count_skipped(opt_state),
      **{f'train_{name}': value for name, value in metrics.items()},
    }
    state = state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      **_followers(task, state, params, opt_state, aux),
    )
    return sharding.constrain(state, mesh), metrics

  return update
