"""Few-shot linear regression (ViT paper, section 4.1, "Metrics").

A ridge regression in closed form maps the features of a few training images of
each class to targets of −1 and 1. It is computed as in big_vision's
`fewshot_lsr`, here in float64 on the host.

Shapes:  n chosen training images · N test images · D width · K classes
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.evaluators import means
from vit_jax.inference import feature_files

_BIAS = 100.0  # constant feature, whose weight the penalty hardly changes
_EPSILON = 1e-5  # added to standard deviations


def choose(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
  """Returns the indices of `shots` random images of each class, by class.

  For the same seed, fewer shots are a part of more shots.

  Args:
    labels: class numbers of the training images [M]. Each class has at least
      `shots` images.
    shots: number of images of each class.
    seed: seed of the choice.
  """
  rng = np.random.default_rng(seed)
  return np.concatenate(
    [
      rng.permutation(np.flatnonzero(labels == label))[:shots]
      for label in np.unique(labels)
    ]
  )


def ridge(
  x: np.ndarray, y: np.ndarray, l2: float, form: str | None = None
) -> np.ndarray:
  """Returns the weights [D, K] with the least |x w − y|² + l2 |w|².

  Args:
    x: features [n, D].
    y: targets [n, K].
    l2: strength of the penalty.
    form: 'primal' solves for [D, D], 'dual' for [n, n]. Both have the same
      result. None: the smaller one.
  """
  if form is None:
    form = 'primal' if len(x) >= x.shape[1] else 'dual'
  if form == 'primal':
    return np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
  return x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)


def scores(
  train: feature_files.Arrays, test: np.ndarray, num_classes: int, l2: float
) -> np.ndarray:
  """Returns the outputs [N, K] of the regression for test features [N, D].

  The features are standardized by those of the chosen images. The predicted
  class has the largest output.

  Args:
    train: {'feature': [n, D], 'label': [n]} of the chosen images.
    test: [N, D].
    num_classes: K.
    l2: see `ridge`.
  """
  x = train['feature'].astype(np.float64)
  mean, std = x.mean(0), x.std(0) + _EPSILON

  def standardized(features):
    features = (features.astype(np.float64) - mean) / std
    return np.pad(features, [(0, 0), (0, 1)], constant_values=_BIAS)

  targets = 2 * np.eye(num_classes)[train['label']] - 1
  weights = ridge(standardized(x), targets, l2)
  return standardized(test) @ weights


def measure(
  train: feature_files.Arrays,
  test: feature_files.Arrays,
  num_classes: int,
  *,
  shots: Sequence[int],
  seeds: Sequence[int],
  l2: float,
) -> means.Evaluation:
  """Returns `accuracy_Nshot`, the mean over seeds, for each number of shots.

  The table `few_shot` has the accuracy for each seed.

  Args:
    train: {'feature': [M, D], 'label': class numbers [M]}.
    test: the same with N images.
    num_classes: K.
    shots: numbers of training images of each class.
    seeds: seeds of the choice of these images.
    l2: see `ridge`.

  Raises:
    ValueError: a class has fewer images than shots.
  """
  counts = np.bincount(train['label'], minlength=num_classes)
  if counts.min() < max(shots):
    raise ValueError(
      f'shots={max(shots)} needs {max(shots)} training images of each class, '
      f'but class {counts.argmin()} (of 0, 1, …) has {counts.min()}. Use fewer '
      'shots' + (f', at most {counts.min()}' if counts.min() else '')
    )
  rows: list[dict[str, Any]] = []
  for count in shots:
    for seed in seeds:
      chosen = choose(train['label'], count, seed)
      few = {name: x[chosen] for name, x in train.items()}
      found = scores(few, test['feature'], num_classes, l2)
      accuracy = float((found.argmax(1) == test['label']).mean())
      rows.append({'shots': count, 'seed': seed, 'accuracy': accuracy})
  numbers = {
    f'accuracy_{count}shot': float(
      np.mean([row['accuracy'] for row in rows if row['shots'] == count])
    )
    for count in shots
  }
  return means.Evaluation(numbers, tables={'few_shot': rows})
