"""Given batches of raw examples: they go through `prepare`, one by one.

Position p in the stream of training examples seeds the augmentation of an
example, as in `input_pipeline`. So the same examples in the same order give the
same batches, whether they come as arrays, from files or in given batches.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data import tensorflow as tf
from vit_jax.data.given import batch_checks


def spec(
  layout: batch_checks.BatchSpec, prepare: Callable
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Returns {name: (shape, dtype)} of a training example after `prepare`."""
  dataset = _dataset([], layout, prepare, seed=0)
  return {
    name: (tuple(x.shape), x.dtype.as_numpy_dtype)
    for name, x in dataset.element_spec.items()
  }


def prepared(
  batches: Iterable[Mapping[str, Any]],
  layout: batch_checks.BatchSpec,
  prepare: Callable,
  size: int,
  positions: Iterator[int] | None = None,
  seed: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches of prepared examples; the last one may be smaller.

  Args:
    batches: raw batches of `batch_checks.to_batch`, of any sizes.
    layout: what the raw batches have in common.
    prepare: see `task.Task`.
    size: number of examples in a batch.
    positions: position in the stream of training examples of each example. None
      in evaluation.
    seed: seed of the run.

  Raises:
    Exception: what `batches` raises, after all earlier batches.
  """
  errors = []

  def rows():
    try:
      for batch in batches:
        for i in range(batch_checks.num_rows(batch)):
          example = {name: x[i] for name, x in batch.items()}
          yield next(positions) if positions else 0, example
    except Exception as error:  # tf.data would replace it by one of its own
      errors.append(error)

  dataset = _dataset(rows, layout, prepare, None if positions is None else seed)
  yield from dataset.batch(size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
  if errors:
    raise errors[0]


def _dataset(rows, layout, prepare, seed):
  """Returns a Dataset of prepared examples; seed None is evaluation."""
  signature = {
    name: tf.TensorSpec(shape, tf.string if dtype.kind == 'O' else dtype)
    for name, (shape, dtype) in layout.rows.items()
  }

  def prepare_one(position, example):
    return prepare(
      example,
      None
      if seed is None
      # `input_pipeline` uses the same seed.
      else tf.stack([tf.constant(~seed, tf.int64), position]),
    )

  return tf.data.Dataset.from_generator(
    rows if callable(rows) else lambda: iter(rows),
    output_signature=(tf.TensorSpec([], tf.int64), signature),
  ).map(prepare_one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
