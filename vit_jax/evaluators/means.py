"""The mean loss and metrics over a whole data set: sum, count, divide once."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import console
from vit_jax.parallel import sharding


class Evaluation(NamedTuple):
  """What an evaluator finds."""

  numbers: dict[str, float]  # {metric: value}
  arrays: dict[str, Any] = {}
  pictures: dict[str, Any] = {}


def make_eval_fn(task: Any, mesh: jax.sharding.Mesh) -> Callable:
  """Returns the compiled `(params, batch, context) -> sums` of a task.

  Sums are over the rows that the batch's `mask` [B] marks: of the loss, of each
  metric and, as 'count', of the rows.

  Args:
    task: a `task.Task`.
    mesh: of the devices that share the batch's rows.
  """

  def sums(params, batch, context):
    batch = task.checked_transform(context.key, batch, context.step, False)
    mask = batch['mask'] > 0
    losses, metrics, _ = task.checked_loss(params, batch, context)
    return {
      'count': jnp.sum(mask),
      **{
        name: jnp.sum(jnp.where(mask, values, 0))
        for name, values in {**metrics, 'loss': losses}.items()
      },
    }

  return jax.jit(
    sums,
    in_shardings=(None, sharding.by_rows(mesh), None),  # None: as they lie
    out_shardings=sharding.replicated(mesh),
  )


def evaluate(
  eval_fn: Callable,
  params: Any,
  batches: Iterable[Mapping[str, Any]],
  mesh: jax.sharding.Mesh,
  num_examples: int,
  context: Any,
) -> dict[str, float]:
  """Means over every example of `batches`, each counted once.

  Args:
    eval_fn: from `make_eval_fn`.
    params: of the model.
    batches: dicts with a `mask` [B], 0 where a row is padding.
    mesh: of `eval_fn`.
    num_examples: that the batches must hold.
    context: `task.Context` of the evaluation.

  Returns:
    {metric: mean, 'loss': mean, 'count': number of examples} in Python numbers.

  Raises:
    ValueError: there is no example, or another number than expected.
  """
  sums = []
  for batch in batches:
    sums.append(eval_fn(params, sharding.put_batch(batch, mesh), context))
    if len(sums) > 1:
      jax.block_until_ready(sums[-2])  # at most two batches on the device
  sums = jax.device_get(sums)
  names = sums[0] if sums else ['count']
  total = {
    name: np.sum([s[name] for s in sums], dtype=np.float64) for name in names
  }
  count = int(total.pop('count'))
  if not count:
    raise ValueError('the split to evaluate holds no example')
  if count != num_examples:
    raise ValueError(
      f'the split to evaluate has {count} examples, and its data set lists '
      f'{num_examples}: prepare the data set again'
    )
  means = {name: float(x / count) for name, x in total.items()}
  return {**means, 'count': count}


class Means:
  """The evaluator of a task's loss and metrics over one part of the data."""

  def __init__(self, task, data, split, mesh):
    self._data = data
    self._split = split
    self._mesh = mesh
    self._eval_fn = make_eval_fn(task, mesh)

  def __call__(self, params, context):
    """The `Evaluation` of parameters in a `task.Context`."""
    batches = console.counting(
      self._data.evaluate(self._split),
      self._data.num_batches(self._split),
      'evaluating',
    )
    numbers = evaluate(
      self._eval_fn,
      params,
      batches,
      self._mesh,
      self._data.num_examples[self._split],
      context,
    )
    del numbers['count']
    return Evaluation(numbers)
