"""Accuracy, top-5, balanced accuracy and calibration of a classifier.

Shapes:  B batch · N images of a split · K classes of the dataset
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import console
from vit_jax.evaluators import by_class
from vit_jax.evaluators import means
from vit_jax.evaluators import predictions
from vit_jax.evaluators.metrics import calibration


def of_rows(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """Returns the numbers [B] of each image that `measure` needs.

  An image is in the top 5 if fewer than five logits are above that of its
  class. The loss is the cross-entropy, and `brier` is Σ (p − y)².

  Args:
    logits: [B, K].
    labels: class numbers [B].
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)
  probabilities = jax.nn.softmax(logits)
  targets = jax.nn.one_hot(labels, logits.shape[1])
  return {
    'labels': labels,
    'predicted': logits.argmax(1),
    'in_top_5': (logits > own).sum(1) < 5,
    'confidence': probabilities.max(1),
    'loss': jax.nn.logsumexp(logits, axis=1) - own[:, 0],
    'brier': ((probabilities - targets) ** 2).sum(1),
  }


def measure(
  rows: dict[str, np.ndarray], class_names: Sequence[str]
) -> means.Evaluation:
  """Returns the metrics of all N images.

  With five classes or fewer, there is no `top_5`. The table `classes` has the
  numbers of each class.

  Args:
    rows: arrays [N] from `of_rows`.
    class_names: names of the K classes.
  """
  labels, predicted = rows['labels'], rows['predicted']
  right = labels == predicted
  numbers = {
    'accuracy': right.mean(),
    'top_5': rows['in_top_5'].mean(),
    'balanced_accuracy': by_class.balanced_accuracy(labels, predicted),
    'ece': calibration.expected_calibration_error(rows['confidence'], right),
    'brier': rows['brier'].mean(dtype=np.float64),
    'loss': rows['loss'].mean(dtype=np.float64),
  }
  if len(class_names) <= 5:
    del numbers['top_5']
  return means.Evaluation(
    {name: float(x) for name, x in numbers.items()},
    tables={'classes': by_class.table(labels, predicted, class_names)},
  )


class Classifier:
  """An evaluator of the logits of a classifier on one split."""

  def __init__(
    self,
    logits: Callable,
    classes: np.ndarray,
    data: Any,
    split: str,
    mesh: jax.sharding.Mesh,
  ):
    """Creates the evaluator.

    Args:
      logits: (params, images [B, H, W, C]) -> logits of all classes of the
        model.
      classes: the logit [K] of each class of the dataset. Only these compete.
      data: an `input_pipeline.Datasets`.
      split: name of the split.
      mesh: device mesh over which the batches are sharded.
    """
    self._data, self._split, self._mesh = data, split, mesh

    def outputs(params, batch, _):
      return of_rows(logits(params, batch['image'])[:, classes], batch['label'])

    self._gather_fn = predictions.make_gather_fn(outputs, mesh)

  def __call__(self, params, context):
    """Returns the `Evaluation` of parameters."""
    del context
    batches = console.counting(
      self._data.evaluate(self._split),
      self._data.num_batches(self._split),
      'evaluating',
    )
    rows = predictions.gather(
      self._gather_fn,
      params,
      batches,
      self._mesh,
      self._data.num_examples[self._split],
      None,
    )
    return measure(rows, self._data.class_names)
