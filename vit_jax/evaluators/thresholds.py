"""Thresholds of the probabilities of a model with several labels per image.

A class is predicted if its probability is above its threshold.

Shapes:  N examples of a split · K classes
"""

import numpy as np

from vit_jax.inference import outputs

DEFAULT = outputs.DEFAULT_THRESHOLD
predicted = outputs.is_predicted


def probabilities(scores: np.ndarray) -> np.ndarray:
  """Returns the sigmoid of logits, float32, with the shape of `scores`."""
  scores = np.asarray(scores, np.float64)
  return np.exp(-np.logaddexp(0, -scores)).astype(np.float32)


def choose(labels: np.ndarray, scores: np.ndarray) -> tuple[float, ...]:
  """Returns the threshold of each class [K] with the largest F1.

  `of_class` defines it.

  Args:
    labels: 0 or 1 [N, K].
    scores: logits [N, K].
  """
  values = probabilities(scores)
  return tuple(
    of_class(labels[:, k], values[:, k]) for k in range(labels.shape[1])
  )


def of_class(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """Returns the threshold of one class with the largest F1.

  F1 = 2 · hits / (predictions + positive examples). It changes only at the
  probabilities of examples. A threshold is in the middle between two
  neighbors, or between 0 and the lowest one, so that rounding errors of the
  probabilities do not matter. If several thresholds have the largest F1, it is
  the one closest to 0.5; of two, the higher one. Without positive examples (or
  if the probabilities of all of them are 0), it is 0.5.

  Args:
    labels: 0 or 1 [N].
    probabilities: float32 [N].
  """
  order = np.argsort(-probabilities, kind='stable')
  labels = labels[order] > 0
  values = probabilities[order].astype(np.float64)
  lower = np.append(values[1:], 0)
  last = np.flatnonzero(values > lower)  # of equal probabilities
  hits = np.cumsum(labels)[last]
  if not hits.size or not hits[-1]:
    return DEFAULT
  f1 = 2 * hits / (last + 1 + labels.sum())
  middle = ((values + lower) / 2)[last]  # from high to low
  best = middle[f1 == f1.max()]
  return float(best[np.argmin(np.abs(best - DEFAULT))])
