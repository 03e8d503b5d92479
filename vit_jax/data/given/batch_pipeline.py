"""From checked batches of the caller to the batches of a run."""

from collections.abc import Iterator
import functools
import itertools
import math

import numpy as np

from vit_jax.data import examples
from vit_jax.data.given import batch_checks
from vit_jax.data.given import raw_examples
from vit_jax.parallel import processes


def make(is_raw: bool) -> examples.Pipeline:
  """Returns the functions that make batches; `is_raw` if they are prepared."""
  return examples.Pipeline(
    functools.partial(_train, is_raw),
    functools.partial(_evaluate, is_raw),
    functools.partial(_spec, is_raw),
    prepares=is_raw,
  )


def _train(is_raw, source, settings, share, prepare, first_step):
  """Yields the training batches; stops all processes if one fails."""
  batches = source.batches(first_step)
  if is_raw:
    rows = share.rows(settings.batch)
    positions = (
      step * settings.batch + int(row)
      for step in itertools.count(first_step)
      for row in rows
    )
    layout = _layout_of(source)
    batches = raw_examples.prepared(
      batches, layout, prepare, len(rows), positions, settings.seed
    )
  while True:
    yield processes.together(lambda: next(batches))


def _spec(is_raw, source, settings, share, prepare):
  del settings, share
  if is_raw:
    return raw_examples.spec(_layout_of(source), prepare)
  return {name: (x.shape[1:], x.dtype) for name, x in source.sample.items()}


def _layout_of(source):
  return batch_checks.BatchSpec(batch_checks.rows_of(source.sample, True), True)


def _evaluate(is_raw, source, settings, share, prepare):
  """Yields batches with a mask, equally many on all processes."""
  size = len(share.rows(settings.batch_eval))
  batches = source.batches()
  if is_raw:
    batches = raw_examples.prepared(batches, _layout_of(source), prepare, size)
  else:
    batches = _rebatched(batches, size)
  last = None
  for _ in range(math.ceil(source.num_examples / settings.batch_eval)):
    batch = next(batches, None)
    if batch is None:  # other processes have another batch
      batch = {name: x[:0] for name, x in last.items()}
    last = batch
    count = batch_checks.num_rows(batch)
    batch = {**batch, 'mask': np.ones(count, np.float32)}
    yield {
      name: np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1))
      for name, x in batch.items()
    }
  next(batches, None)  # raises ValueError if there are more examples


def _rebatched(batches, size) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches of `size` rows from batches of any sizes."""
  waiting, count = [], 0
  for batch in batches:
    while batch_checks.num_rows(batch) + count >= size:
      taken = size - count
      waiting.append({name: x[:taken] for name, x in batch.items()})
      batch = {name: x[taken:] for name, x in batch.items()}
      yield _joined(waiting)
      waiting, count = [], 0
    if batch_checks.num_rows(batch):
      waiting.append(batch)
      count += batch_checks.num_rows(batch)
  if waiting:
    yield _joined(waiting)


def _joined(batches):
  return {
    name: np.concatenate([batch[name] for batch in batches])
    for name in batches[0]
  }
