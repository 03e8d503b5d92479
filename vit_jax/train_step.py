"""The compiled training step: one update of the parameters.

It reads no input and no files, and does not use TensorFlow.

Shapes:  B batch · A micro-batches
"""

from collections.abc import Callable
from collections.abc import Collection
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.optim import minimize
from vit_jax.optim import optimizer
from vit_jax.optim import rules
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.tasks.task import Context


def _mean_over_micro_batches(
  grad_fn, params, batch, context, accum_steps, mesh
):
  """Returns the mean output of `grad_fn` over the A micro-batches."""

  def split(x):  # [B, …] -> [A, B / A, …]
    # Micro-batch i has the rows i, i + A, …. So no row moves to another device.
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
  metrics, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  zeros = metrics, sharding.constrain(grads, mesh)
  total, _ = jax.lax.scan(add, zeros, (jnp.arange(accum_steps), batches))
  return jax.tree.map(lambda x: x / accum_steps, total)


def _followers(task, state, params, opt_state, aux, frozen_paths):
  """Returns the moving average and task state after an update, as a dict.

  The keys are 'ema' and 'task_state'. A skipped update keeps the old values.
  The average of a frozen parameter stays equal to it, without rounding.
  """
  ema, step = state.ema, state.step + 1
  if ema is not None:
    decay = task.ema_decay(step)
    trained = jax.tree.map(
      lambda old, new: decay * old + (1 - decay) * new,
      rules.select(ema, frozen_paths),
      rules.select(params, frozen_paths),
    )
    ema = rules.merge(trained, ema)
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
  schedule: Callable | None,
  mesh: jax.sharding.Mesh,
  *,
  keys: numerics.RunKeys,
  accum_steps: int = 1,
  value_and_grad: Callable = jax.value_and_grad,
  frozen_paths: Collection[str] = (),
  make_batch: Callable | None = None,
) -> Callable:
  """Returns the compiled `(state, batch, frozen) -> (state, metrics)`.

  The batch is split into `accum_steps` micro-batches, and the mean of their
  gradients is applied. This needs less memory. Without dropout, the update does
  not change. The input state is donated: its memory is reused. `frozen` is the
  result of `task.load_frozen`.

  Args:
    task: a `task.Task`.
    tx: Optax gradient transformation.
    schedule: number of completed updates -> learning rate, for the metric `lr`.
      None leaves it out, unless the optimizer's state has a learning rate.
    mesh: device mesh over which the batch and the state are sharded.
    keys: random keys of the run. The step number is folded into each key. The
      number of the micro-batch is also folded into the key of the loss.
    accum_steps: number of micro-batches in a batch.
    value_and_grad: replaces `jax.value_and_grad`; see `optim/sam.py`. It is
      applied to each micro-batch.
    frozen_paths: paths of parameters that are not trained. They have no
      gradient, and `grad_norm` is the norm over the others.
    make_batch: feed -> batch. The update then has a feed in place of the batch,
      such as numbers of examples and arrays on the devices.
  """
  tx = optax.with_extra_args_support(tx)
  rows = sharding.by_rows(mesh)

  def loss_of(params, batch, context):
    losses, metrics, aux = task.checked_loss(params, batch, context)
    return jnp.mean(losses), (jax.tree.map(jnp.mean, metrics), aux)

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    in_shardings=(None, None if make_batch else rows, None),  # None: as placed
    out_shardings=(None, sharding.replicated(mesh)),
  )
  def update(state, batch, frozen):
    if make_batch:
      batch = jax.lax.with_sharding_constraint(make_batch(batch), rows)
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

    def loss_of_trained(trained, batch, context):
      return loss_of(rules.merge(trained, state.params), batch, context)

    def mean_of(function, trained):
      return _mean_over_micro_batches(
        function, trained, batch, context, accum_steps, mesh
      )

    def mean_loss(trained):  # for optimizers that search along a line
      return mean_of(lambda *x: (loss_of_trained(*x)[0], ()), trained)[0]

    trained = rules.select(state.params, frozen_paths)
    (loss, (metrics, aux)), grads = mean_of(
      value_and_grad(loss_of_trained, has_aux=True), trained
    )
    grads = sharding.constrain(grads, mesh)
    updates, opt_state = tx.update(
      grads,
      state.opt_state,
      trained,
      value=loss,
      grad=grads,
      value_fn=mean_loss,
    )
    trained = optax.apply_updates(trained, updates)
    params = rules.merge(trained, state.params)
    metrics = {
      'train_loss': loss,
      **optimizer.applied_rate(
        schedule, state.step, state.opt_state, opt_state
      ),
      'grad_norm': optax.tree.norm(grads),
      **optimizer.count_skipped(opt_state),
      **minimize.results(opt_state),
      **{f'train_{name}': value for name, value in metrics.items()},
    }
    state = state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      **_followers(task, state, params, opt_state, aux, frozen_paths),
    )
    return sharding.constrain(state, mesh), metrics

  return update
