"""The numbers of a report, as functions of arrays.

Shapes:  N examples of the test split · K classes · T targets
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from vit_jax.evaluators import by_class
from vit_jax.evaluators.metrics import calibration

LARGEST_MATRIX = 40  # classes
NUM_CONFUSIONS = 30
NUM_IMAGES = 24
_Z = 1.959963984540054  # normal quantile of a 95 % interval


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
  """Returns the 95 % interval of a fraction (Wilson 1927, score interval)."""
  mean, z2 = hits / count, _Z**2
  center = mean + z2 / (2 * count)
  spread = _Z * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count**2))
  scale = 1 + z2 / count
  return max(0, (center - spread) / scale), min(1, (center + spread) / scale)


def reliability(
  confidences: np.ndarray, right: np.ndarray
) -> list[dict[str, Any]]:
  """Returns a row for each bin of `expected_calibration_error`.

  Args:
    confidences: probabilities of the predicted classes [N].
    right: whether the predictions are correct [N].
  """
  count = calibration.NUM_BINS
  confidences = np.asarray(confidences, np.float64)
  bins = calibration.bins_of(confidences, count)
  rows = []
  for i in range(count):
    inside = bins == i
    any_inside = inside.any()
    rows.append(
      {
        'from': i / count,
        'to': (i + 1) / count,
        'images': int(inside.sum()),
        'confidence': float(confidences[inside].mean()) if any_inside else None,
        'accuracy': float(right[inside].mean()) if any_inside else None,
      }
    )
  return rows


def of_classes(
  outputs: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, Any]:
  """Returns all numbers of a classifier.

  Args:
    outputs: arrays [N]: `labels` and `predicted`, class numbers;
      `probability` of the predicted and `label_probability` of the true class.
    class_names: names of the K classes.

  Returns:
    A dict for JSON: `count`, `accuracy`, `interval`, `classes` (the worst
    first), `confusion` (`matrix` [true][predicted] of at most LARGEST_MATRIX
    classes, else `pairs`, the most frequent first), `calibration`, `mistakes`
    (the highest loss first) and `least_sure` (correct predictions with the
    lowest probability).
  """
  labels, predicted = outputs['labels'], outputs['predicted']
  right = labels == predicted
  count = len(labels)
  rows = by_class.table(labels, predicted, class_names)
  rows = [row for row in rows if row['images']]
  rows.sort(key=lambda row: (row['accuracy'], -row['images'], row['class']))
  confidences = outputs['probability']

  def images(order):
    return [
      {
        'index': int(i),
        'true': class_names[labels[i]],
        'predicted': class_names[predicted[i]],
        'probability': float(confidences[i]),
        'true_probability': float(outputs['label_probability'][i]),
      }
      for i in order[:NUM_IMAGES]
    ]

  wrong = np.flatnonzero(~right)
  order = np.argsort(outputs['label_probability'][wrong], kind='stable')
  correct = np.flatnonzero(right)
  unsure = np.argsort(confidences[correct], kind='stable')
  return {
    'count': count,
    'correct': int(right.sum()),
    'accuracy': float(right.mean()),
    'interval': wilson_interval(int(right.sum()), count),
    'balanced_accuracy': by_class.balanced_accuracy(labels, predicted),
    'classes': rows,
    'confusion': _confusion(labels, predicted, class_names),
    'calibration': {
      'error': calibration.expected_calibration_error(confidences, right),
      'bins': reliability(confidences, right),
    },
    'mistakes': images(wrong[order]),
    'least_sure': images(correct[unsure]),
  }


def _confusion(labels, predicted, class_names):
  count = len(class_names)
  if count <= LARGEST_MATRIX:
    flat = np.bincount(labels * count + predicted, minlength=count**2)
    return {'matrix': flat.reshape(count, count).tolist()}
  wrong = np.flatnonzero(labels != predicted)
  pairs, counts = np.unique(
    np.stack([labels[wrong], predicted[wrong]], 1), axis=0, return_counts=True
  )
  order = np.argsort(-counts, kind='stable')[:NUM_CONFUSIONS]
  found = []
  for i in order:
    true, said = pairs[i]
    same = wrong[(labels[wrong] == true) & (predicted[wrong] == said)]
    found.append(
      {
        'true': class_names[true],
        'predicted': class_names[said],
        'images': int(counts[i]),
        'indices': same[:2].tolist(),
      }
    )
  return {'pairs': found}


def of_targets(
  labels: np.ndarray,
  predicted: np.ndarray,
  names: Sequence[str],
  units: Sequence[str],
) -> dict[str, Any]:
  """Returns the numbers of a regression.

  Args:
    labels: [N, T] in their units.
    predicted: [N, T] in their units.
    names: names of the T targets.
    units: their units, such as 'kg'; '' without a unit.
  """
  errors = np.asarray(predicted, np.float64) - labels
  scale = np.asarray(labels, np.float64).std(0)
  size = np.square(errors / np.where(scale > 0, scale, 1)).mean(1)
  order = np.argsort(-size, kind='stable')[:NUM_IMAGES]
  return {
    'count': len(labels),
    'targets': [
      {
        'target': name,
        'unit': units[i],
        'mean_absolute_error': float(np.abs(errors[:, i]).mean()),
        'root_mean_squared_error': float(np.sqrt((errors[:, i] ** 2).mean())),
        'mean_error': float(errors[:, i].mean()),
      }
      for i, name in enumerate(names)
    ],
    'mistakes': [
      {
        'index': int(i),
        'true': labels[i].astype(float).tolist(),
        'predicted': predicted[i].astype(float).tolist(),
        'units': list(units),
      }
      for i in order
    ],
  }


def with_units(values: Sequence[float], units: Sequence[str]) -> str:
  """Returns '1.25 kg, 3' for two values, the second without a unit."""
  return ', '.join(
    f'{value:.4g} {unit}'.rstrip()
    for value, unit in zip(values, units, strict=True)
  )


def of_label_sets(
  labels: np.ndarray,
  scores: np.ndarray,
  class_names: Sequence[str],
  thresholds: Sequence[float] | None,
) -> dict[str, Any]:
  """Returns the numbers of a model with several labels per image.

  Args:
    labels: 0 or 1 [N, K].
    scores: logits [N, K].
    class_names: names of the K classes.
    thresholds: see `by_class.multi_label_table`.
  """
  rows = by_class.multi_label_table(labels, scores, class_names, thresholds)
  rows = [row for row in rows if row['images']]
  rows.sort(key=lambda row: (row['average_precision'], row['class']))
  mean = np.mean([row['average_precision'] for row in rows]) if rows else 0
  return {
    'count': len(labels),
    'average_precision': float(mean),
    'classes': rows,
  }


def parameters_by_module(params: Any, path: str = '') -> list[dict[str, Any]]:
  """Returns a row for each module, and for each block of an encoder.

  Args:
    params: nested dict of arrays.
    path: path of `params` in the tree.
  """
  rows = []
  for name, value in params.items():
    own = f'{path}{name}'
    if isinstance(value, Mapping) and not path and 'ransformer' in name:
      rows += parameters_by_module(value, f'{own}/')
      continue
    leaves = _leaves(value)
    rows.append(
      {
        'module': own,
        'arrays': len(leaves),
        'parameters': sum(int(np.size(x)) for x in leaves),
      }
    )
  return rows


def _leaves(value):
  if not isinstance(value, Mapping):
    return [value]
  return [leaf for x in value.values() for leaf in _leaves(x)]
