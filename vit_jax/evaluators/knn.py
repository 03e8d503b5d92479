"""Classification by the nearest training features (DINO, arXiv 2104.14294).

Section 4.1 and appendix of the paper, and the code of its authors: features
have norm 1, and the k nearest training features vote for their classes with the
weight exp(cosine / temperature).

Shapes:  N test images · M training images · D width · K classes
"""

from collections.abc import Sequence

import numpy as np

from vit_jax.evaluators import means
from vit_jax.inference import feature_files
from vit_jax.inference import nearest


def votes(
  cosines: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float
) -> np.ndarray:
  """Returns the sums of the weights of each class [N, K], float64.

  The weights are relative to that of the nearest neighbor.

  Args:
    cosines: of the neighbors [N, k], in descending order.
    labels: class numbers of the neighbors [N, k].
    num_classes: K.
    temperature: divides the cosines.
  """
  weights = np.exp((cosines - cosines[:, :1]).astype(np.float64) / temperature)
  found = np.zeros((len(labels), num_classes))
  np.add.at(found, (np.arange(len(labels))[:, None], labels), weights)
  return found


def measure(
  train: feature_files.Arrays,
  test: feature_files.Arrays,
  num_classes: int,
  *,
  k: Sequence[int],
  temperature: float,
) -> means.Evaluation:
  """Returns `accuracy_kN` for each number N of neighbors in `k`.

  With more than five classes, `top_5_kN` counts an image as correct if its
  class has one of the five largest sums.

  Args:
    train: {'feature': [M, D], 'label': class numbers [M]}.
    test: the same with N images.
    num_classes: K.
    k: numbers of neighbors.
    temperature: see `votes`.

  Raises:
    ValueError: there are fewer training images than neighbors.
  """
  if max(k) > len(train['label']):
    raise ValueError(
      f'k={max(k)} neighbors are more than the {len(train["label"])} training '
      'images. Use a smaller k'
    )
  indices, cosines = nearest.nearest(
    nearest.normalized(test['feature']),
    nearest.normalized(train['feature']),
    max(k),
  )
  labels, numbers = train['label'][indices], {}
  for count in k:
    found = votes(
      cosines[:, :count], labels[:, :count], num_classes, temperature
    )
    order = np.argsort(-found, axis=1, kind='stable')
    right = order == test['label'][:, None]
    numbers[f'accuracy_k{count}'] = float(right[:, 0].mean())
    if num_classes > 5:
      numbers[f'top_5_k{count}'] = float(right[:, :5].any(1).mean())
  return means.Evaluation(numbers)
