"""Metrics of a classifier against scikit-learn, and their properties."""

import jax
import numpy as np
import pytest
from sklearn import metrics

from vit_jax.evaluators import classifier
from vit_jax.evaluators.metrics import calibration

NAMES = tuple('abcdefgh')


def measure(logits, labels, names=NAMES):
  rows = jax.device_get(classifier.of_rows(np.float32(logits), labels))
  return classifier.measure(rows, names)


def test_metrics_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(300, 8))
  labels = rng.integers(0, 8, 300)
  logits[np.arange(300), labels] += 4
  found = measure(logits, labels)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  classes = range(8)
  expected = {
    'accuracy': metrics.accuracy_score(labels, p.argmax(1)),
    'top_5': metrics.top_k_accuracy_score(labels, p, k=5),
    'balanced_accuracy': metrics.balanced_accuracy_score(labels, p.argmax(1)),
    'loss': metrics.log_loss(labels, p, labels=classes),
    'brier': ((p - np.eye(8)[labels]) ** 2).sum(1).mean(),
    'ece': calibration.expected_calibration_error(
      p.max(1), p.argmax(1) == labels
    ),
  }
  assert found.numbers == pytest.approx(expected, abs=1e-5)
  assert 0 < found.numbers['ece'] < 0.5 < found.numbers['accuracy'] < 1
  recalls = [row['accuracy'] for row in found.tables['classes']]
  np.testing.assert_allclose(
    recalls, metrics.recall_score(labels, p.argmax(1), average=None)
  )
  few = measure(logits[:, :4], labels % 4, NAMES[:4])
  assert 'top_5' not in few.numbers


def test_calibration_error():
  """It is compared with a loop over the bins, and with known values."""
  rng = np.random.default_rng(0)
  confidences = rng.uniform(size=200)
  right = rng.uniform(size=200) < confidences
  expected = 0
  for b in range(15):
    rows = (confidences > b / 15) & (confidences <= (b + 1) / 15)
    expected += abs(right[rows].mean() - confidences[rows].mean()) * rows.mean()
  error = calibration.expected_calibration_error(confidences, right)
  assert error == pytest.approx(expected)
  certain = calibration.expected_calibration_error(np.ones(200), right)
  assert certain == pytest.approx(1 - right.mean())
  drawn = rng.uniform(size=200_000)
  honest = rng.uniform(size=200_000) < drawn
  assert calibration.expected_calibration_error(drawn, honest) < 0.01
