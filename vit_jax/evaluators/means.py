"""The mean loss and metrics over an entire split: sum, count, divide once."""

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
  """The result of an evaluator."""

  numbers: dict[str, float]  # {metric: value}
  arrays: dict[str, Any] = {}
  pictures: dict[str, Any] = {}
  tables: dict[str, list[dict[str, Any]]] = {}  # {name: rows}
  # Fields of `metadata.Description` that this split chose; values for JSON.
  chosen: dict[str, Any] = {}


def make_eval_fn(task: Any, mesh: jax.sharding.Mesh) -> Callable:
  """Returns the compiled `(params, batch, context) -> sums` of a task.

  The sums are over the rows that the batch's `mask` [B] marks. The keys are
  'loss', the names of the metrics, and 'count' for the number of rows.

  Args:
    task: a `task.Task`.
    mesh: device mesh over which the batch is sharded.
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
    in_shardings=(None, sharding.by_rows(mesh), None),  # None: as placed
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
  """Returns the mean loss and metrics over all examples of `batches`.

  Args:
    eval_fn: from `make_eval_fn`.
    params: parameters of the model.
    batches: dicts with a `mask` [B], which is 0 for padding rows.
    mesh: the device mesh of `eval_fn`.
    num_examples: expected number of examples in all batches.
    context: `task.Context` of the evaluation.

  Returns:
    {metric: mean, 'loss': mean, 'count': number of examples}, Python numbers.

  Raises:
    ValueError: there are no examples, or `num_examples` is different.
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
  check_count(count, num_examples)
  means = {name: float(x / count) for name, x in total.items()}
  return {**means, 'count': count}


def check_count(count: int, num_examples: int) -> None:
  """Raises ValueError unless a split has the expected number of examples."""
  if not count:
    raise ValueError('the evaluation split has no examples. Use another split')
  if count != num_examples:
    raise ValueError(
      f'the split to evaluate has {count} examples, but the metadata of its '
      f'dataset lists {num_examples}. Prepare the dataset again'
    )


class Means:
  """An evaluator of the mean loss and metrics of a task over one split."""

  def __init__(self, task, data, split, mesh):
    self._data = data
    self._split = split
    self._mesh = mesh
    self._eval_fn = make_eval_fn(task, mesh)

  def __call__(self, params, context):
    """Returns the `Evaluation` of parameters in a `task.Context`."""
    context = context.replace(params=None, chosen=None)  # for the host
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
