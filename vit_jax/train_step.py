"""One update of the parameters, compiled: no input, no files, no TensorFlow."""

import functools

import jax
import jax.numpy as jnp
import optax

from vit_jax.optim import loss_functions
from vit_jax.optim import optimizer
from vit_jax.parallel import sharding


def _over_micro_batches(grad_fn, params, batch, step_key, accum_steps, mesh):
  """Mean loss and gradients over the micro-batches of a batch."""

  def split(x):  # [B, …] -> [accum, B / accum, …]
    # Micro-batch i holds the rows i, i + accum, …, so that each device keeps
    # the rows it has.
    x = x.reshape(-1, accum_steps, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, sharding.by_rows(mesh, axis=1))

  def add(total, micro):
    index, micro_batch = micro
    one = grad_fn(params, micro_batch, jax.random.fold_in(step_key, index))
    return jax.tree.map(jnp.add, total, one), None

  zeros = (
    jnp.zeros((), jnp.float32),
    sharding.constrain(jax.tree.map(jnp.zeros_like, params), mesh),
  )
  total, _ = jax.lax.scan(
    add, zeros, (jnp.arange(accum_steps), jax.tree.map(split, batch))
  )
  return jax.tree.map(lambda x: x / accum_steps, total)


def make_update_fn(
  model,
  tx,
  schedule,
  mesh,
  *,
  key,
  accum_steps=1,
  loss_fn=loss_functions.softmax_cross_entropy,
):
  """Returns the compiled `(state, batch) -> (state, metrics)`.

  The batch is split into `accum_steps` micro-batches, whose mean gradient is
  applied: less memory, the same update. The given state's memory is reused.

  Args:
    model: linen module, `apply({'params': p}, images, train=True) -> logits`.
    tx: optax gradient transformation.
    schedule: number of completed updates -> learning rate.
    mesh: of the devices that share the batch's rows and the state.
    key: of the run; each micro-batch of each step folds in its own numbers.
    accum_steps: micro-batches in a batch.
    loss_fn: (logits, labels) -> loss of each example [B].
  """

  def loss_of(params, batch, dropout_key):
    logits = model.apply(
      {'params': params},
      batch['image'],
      train=True,
      rngs={'dropout': dropout_key},
    )
    return jnp.mean(
      loss_functions.loss_per_example(loss_fn, logits, batch['label'])
    )

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    in_shardings=(None, sharding.by_rows(mesh)),  # None: as it lies
    out_shardings=(None, sharding.replicated(mesh)),
  )
  def update(state, batch):
    grad_fn = jax.value_and_grad(loss_of)
    step_key = jax.random.fold_in(key, state.step)
    if accum_steps == 1:
      loss, grads = grad_fn(
        state.params, batch, jax.random.fold_in(step_key, 0)
      )
    else:
      loss, grads = _over_micro_batches(
        grad_fn, state.params, batch, step_key, accum_steps, mesh
      )
    grads = sharding.constrain(grads, mesh)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'train_loss': loss,
      'lr': schedule(state.step),
      'grad_norm': optax.tree.norm(grads),
      **optimizer.count_skipped(opt_state),
    }
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    return sharding.constrain(state, mesh), metrics

  return update
