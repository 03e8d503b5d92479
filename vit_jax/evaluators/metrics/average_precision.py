"""Average precision of scores, as scikit-learn defines it.

Shapes:  N examples · K classes
"""

import numpy as np


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
  """Returns the average precision of one class.

  It is the sum of (R_n − R_{n−1}) P_n over the different scores, from high to
  low. P_n and R_n are precision and recall of the examples with at least this
  score. So the order of examples with equal scores does not matter, as in
  `sklearn.metrics.average_precision_score`.

  Args:
    labels: 0 or 1 [N], with at least one 1.
    scores: higher means more likely [N].
  """
  order = np.argsort(-scores, kind='stable')
  labels, scores = labels[order], scores[order]
  last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # of equal ones
  hits = np.cumsum(labels, dtype=np.float64)[last]
  precision = hits / (last + 1)
  return float(np.sum(np.diff(hits, prepend=0) * precision) / hits[-1])


def by_class(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Returns the average precision of each class [K]; NaN without positives.

  Args:
    labels: 0 or 1 [N, K].
    scores: [N, K].
  """
  return np.array(
    [
      average_precision(labels[:, k], scores[:, k])
      if labels[:, k].any()
      else np.nan
      for k in range(labels.shape[1])
    ]
  )
