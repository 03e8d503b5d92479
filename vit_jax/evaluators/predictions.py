"""The outputs of a model for each example of a split, and metrics of them.

Some metrics are not means over the examples, for example the average precision.
They need the outputs for the entire split, on the host.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import console
from vit_jax.evaluators import means
from vit_jax.parallel import sharding


def make_gather_fn(outputs: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """Returns the compiled `(params, batch, context) -> (outputs, mask [B])`.

  Each process gets all rows of the global batch.

  Args:
    outputs: (params, batch, context) -> pytree of arrays [B, …].
    mesh: device mesh over which the batch is sharded.
  """
  return jax.jit(
    lambda params, batch, context: (
      outputs(params, batch, context),
      batch['mask'],
    ),
    in_shardings=(None, sharding.by_rows(mesh), None),  # None: as placed
    out_shardings=sharding.replicated(mesh),
  )


def gather(
  gather_fn: Callable,
  params: Any,
  batches: Iterable[Mapping[str, Any]],
  mesh: jax.sharding.Mesh,
  num_examples: int,
  context: Any,
) -> Any:
  """Returns the outputs for N examples, each once: NumPy arrays [N, …].

  Args:
    gather_fn: from `make_gather_fn`.
    params: parameters of the model.
    batches: dicts with a `mask` [B], which is 0 for padding rows.
    mesh: the device mesh of `gather_fn`.
    num_examples: N, the expected number of examples in all batches.
    context: `task.Context` of the evaluation.

  Raises:
    ValueError: there are no examples, or `num_examples` is different.
  """
  parts, count = [], 0
  for batch in batches:
    parts.append(gather_fn(params, sharding.put_batch(batch, mesh), context))
    if len(parts) > 1:  # at most two batches on the device
      parts[-2] = _without_padding(parts[-2])
  parts[-1:] = map(_without_padding, parts[-1:])
  count = sum(count for _, count in parts)
  parts = [found for found, _ in parts]
  means.check_count(count, num_examples)
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _without_padding(gathered):
  """Returns (outputs on the host, number of rows) of one batch."""
  found, mask = jax.device_get(gathered)
  rows = np.flatnonzero(mask > 0)
  return jax.tree.map(lambda x: x[rows], found), len(rows)


class Predictions:
  """An evaluator of means, and of metrics of all outputs of a split.

  The means are those of the loss and of the task's metrics. The outputs are the
  `aux` that the task's loss returns in evaluation: a dict of arrays [B, …]. If
  `aux` is None, there are only means.
  """

  def __init__(
    self, task, data, split, mesh, metrics, tables=None, *, choose=None
  ):
    """Creates the evaluator of a split.

    Args:
      task: a `task.Task`.
      data: an `input_pipeline.Datasets`.
      split: name of the split.
      mesh: device mesh over which the batches are sharded.
      metrics: function of the gathered outputs -> {metric: value}.
      tables: function of the gathered outputs -> {name: rows}.
      choose: function of the gathered outputs -> {name: value}; see
        `task.whole_split_metrics`. None: nothing is chosen on this split.
    """
    self._data = data
    self._split = split
    self._mesh = mesh
    self._metrics = metrics
    self._tables = tables or (lambda **outputs: {})
    self._choose = choose

    def outputs(params, batch, context):
      batch = task.checked_transform(context.key, batch, context.step, False)
      losses, metrics, aux = task.checked_loss(params, batch, context)
      return {**metrics, 'loss': losses}, aux

    self._gather_fn = make_gather_fn(outputs, mesh)

  def __call__(self, params, context):
    """Returns the `Evaluation` of parameters in a `task.Context`."""
    used, chosen = context.chosen or {}, {}
    context = context.replace(params=None, chosen=None)  # for the host
    batches = console.counting(
      self._data.evaluate(self._split),
      self._data.num_batches(self._split),
      'evaluating',
    )
    values, outputs = gather(
      self._gather_fn,
      params,
      batches,
      self._mesh,
      self._data.num_examples[self._split],
      context,
    )
    numbers = {
      name: float(x.mean(dtype=np.float64)) for name, x in values.items()
    }
    loss, tables = numbers.pop('loss'), {}
    if outputs is not None:
      if self._choose:
        used = chosen = self._choose(**outputs)
      numbers.update(self._metrics(**outputs, **used))
      tables = self._tables(**outputs, **used)
    return means.Evaluation(
      {**numbers, 'loss': loss}, tables=tables, chosen=chosen
    )
