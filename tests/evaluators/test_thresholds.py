import numpy as np
import pytest
from sklearn import metrics

from vit_jax.evaluators import thresholds


def f1_of(labels, predicted):
  return metrics.f1_score(labels, predicted, zero_division=0)


def test_f1_is_the_largest_of_scikit_learn():
  """Also with many equal scores."""
  rng = np.random.default_rng(0)
  labels = (rng.uniform(size=(60, 4)) < [0.1, 0.3, 0.6, 0.9]).astype(int)
  noise = rng.standard_normal(labels.shape)
  for scores in (labels + noise - 1, np.round(labels + noise)):
    chosen = thresholds.choose(labels, scores)
    values = thresholds.probabilities(scores)
    predicted = thresholds.predicted(values, chosen)
    for k in range(4):
      precision, recall, _ = metrics.precision_recall_curve(
        labels[:, k], values[:, k]
      )
      best = np.nanmax(
        2 * precision * recall / np.maximum(precision + recall, 1e-9)
      )
      assert f1_of(labels[:, k], predicted[:, k]) == pytest.approx(best)


@pytest.mark.parametrize(
  'labels, probabilities, expected',
  [
    ([1, 1, 0, 0], [0.75, 0.5, 0.25, 0.125], 0.375),  # middle of the gap
    ([1, 1], [0.75, 0.5], 0.25),  # all are positive
    ([0, 0], [0.75, 0.25], 0.5),  # no positive example
    ([1, 0], [0, 0.25], 0.5),  # probabilities of 0 are never predicted
    # F1 = 2/3 for 1 or 4 predictions: 0.625 is closer to 0.5 than 0.0625.
    ([1, 0, 0, 1], [0.75, 0.5, 0.25, 0.125], 0.625),
    # Equally close to 0.5: the higher one.
    ([1, 0, 0, 1], [0.875, 0.625, 0.5, 0.5], 0.75),
  ],
)
def test_ties_and_classes_without_examples(labels, probabilities, expected):
  found = thresholds.of_class(np.array(labels), np.float32(probabilities))
  assert found == expected


def test_without_thresholds_a_probability_above_half_is_predicted():
  values = thresholds.probabilities(np.array([-800.0, 0, 1e-3, 800]))
  found = thresholds.predicted(values, None)
  assert found.tolist() == [False, False, True, True]
