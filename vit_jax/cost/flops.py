"""Counts the floating-point operations per image, with XLA's cost analysis."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.optim import rules


def count(
  task: Any,
  params: Any,
  batch: Mapping[str, Any],
  context: Any,
  frozen_paths: Collection[str] = (),
  value_and_grad: Callable = jax.value_and_grad,
) -> tuple[float, float]:
  """Returns (forward, training) floating-point operations per example.

  The compiler counts before it optimizes, and counts the body of a loop once.
  So make the task with a config from `setup.without_loops`.

  Args:
    task: a `task.Task`.
    params: parameters of the model, or their shapes.
    batch: shapes of a batch of any size.
    context: a `task.Context`, of arrays or of their shapes.
    frozen_paths: paths of parameters that are not trained.
    value_and_grad: as in `train_step.make_update_fn`.
  """
  row = {
    name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    for name, x in batch.items()
  }
  params, context = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)),
    (params, context),
  )

  def loss(params, batch, context, train):
    batch = task.checked_transform(context.key, batch, context.step, train)
    losses, metrics, _ = task.checked_loss(
      params, batch, context.replace(train=train)
    )
    return jnp.mean(losses), metrics

  def forward(params, batch, context):
    return loss(params, batch, context, False)

  def training(params, batch, context):
    def loss_of_trained(trained, batch, context):
      return loss(rules.merge(trained, params), batch, context, True)

    trained = rules.select(params, frozen_paths)
    gradient = value_and_grad(loss_of_trained, has_aux=True)
    return gradient(trained, batch, context)

  return tuple(
    jax.jit(function).lower(params, row, context).cost_analysis()['flops']
    for function in (forward, training)
  )
