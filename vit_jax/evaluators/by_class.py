"""Numbers for each class of a classifier.

Shapes:  N examples of a split · K classes
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.evaluators import thresholds as class_thresholds
from vit_jax.evaluators.metrics import average_precision


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
  """Returns the mean of the accuracies of all classes that have examples.

  A model that always answers with the same class has a balanced accuracy of
  1 / K, however frequent this class is.

  Args:
    labels: class numbers [N].
    predicted: predicted class numbers [N].
  """
  counts = np.bincount(labels)
  hits = np.bincount(labels[labels == predicted], minlength=len(counts))
  return float((hits[counts > 0] / counts[counts > 0]).mean())


def table(
  labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns a row for each class, in the order of the classes.

  Args:
    labels: class numbers [N].
    predicted: predicted class numbers [N].
    class_names: names of the K classes.

  Returns:
    Dicts with `class`, `images`, `accuracy` (the fraction of its images that
    are predicted correctly: the recall), `precision` (the fraction of the
    predictions of this class that are correct), and `mostly_confused_with` (the
    most frequent wrong prediction). A number that is not defined is None.
  """
  num_classes = len(class_names)
  right = labels == predicted
  images, predictions, hits = (
    np.bincount(x, minlength=num_classes)
    for x in (labels, predicted, labels[right])
  )
  confused = _most_frequent(labels[~right], predicted[~right])
  return [
    {
      'class': name,
      'images': int(images[i]),
      'accuracy': float(hits[i] / images[i]) if images[i] else None,
      'precision': float(hits[i] / predictions[i]) if predictions[i] else None,
      'mostly_confused_with': (
        class_names[confused[i]] if i in confused else None
      ),
    }
    for i, name in enumerate(class_names)
  ]


def multi_label_table(
  labels: np.ndarray,
  scores: np.ndarray,
  class_names: Sequence[str],
  thresholds: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
  """Returns a row for each class of a model with several labels per image.

  Args:
    labels: 0 or 1 [N, K].
    scores: logits [N, K].
    class_names: names of the K classes.
    thresholds: see `thresholds.predicted` [K].

  Returns:
    Dicts with `class`, `images` (that have the class), `average_precision`, and
    `precision` and `recall`, if a class with a probability above its
    `threshold` counts as predicted. A number that is not defined is None.
  """
  labels = labels > 0
  predicted = class_thresholds.predicted(
    class_thresholds.probabilities(scores), thresholds
  )
  if thresholds is None:
    thresholds = [class_thresholds.DEFAULT] * len(class_names)
  images, predictions = labels.sum(0), predicted.sum(0)
  hits = (labels & predicted).sum(0)
  precisions = average_precision.by_class(labels.astype(float), scores)
  return [
    {
      'class': name,
      'images': int(images[i]),
      'average_precision': float(precisions[i]) if images[i] else None,
      'precision': float(hits[i] / predictions[i]) if predictions[i] else None,
      'recall': float(hits[i] / images[i]) if images[i] else None,
      'threshold': float(thresholds[i]),
    }
    for i, name in enumerate(class_names)
  ]


def _most_frequent(labels, predicted):
  """Returns {label: its most frequent prediction; of several, the first}."""
  pairs, counts = np.unique(
    np.stack([labels, predicted], 1), axis=0, return_counts=True
  )
  found = {}
  for place in np.argsort(-counts, kind='stable'):
    found.setdefault(int(pairs[place, 0]), int(pairs[place, 1]))
  return found
