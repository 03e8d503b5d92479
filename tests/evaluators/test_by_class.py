import numpy as np
import pytest
from sklearn import metrics

from vit_jax.evaluators import by_class

NAMES = ('cat', 'dog', 'fox', 'owl', 'yak')


@pytest.fixture(name='pair')
def fixture_pair():
  rng = np.random.default_rng(0)
  labels = rng.choice([0, 1, 3], size=200, p=[0.7, 0.2, 0.1])  # no 2 and no 4
  predicted = np.where(
    rng.uniform(size=200) < 0.6, labels, rng.integers(0, 4, 200)
  )
  return labels, predicted


def test_balanced_accuracy_is_that_of_scikit_learn(pair):
  assert by_class.balanced_accuracy(*pair) == pytest.approx(
    metrics.balanced_accuracy_score(*pair)
  )
  labels = np.array([0] * 97 + [1] * 3)
  assert by_class.balanced_accuracy(labels, np.zeros(100, int)) == 0.5


def test_the_table_is_that_of_scikit_learn(pair):
  labels, predicted = pair
  rows = by_class.table(labels, predicted, NAMES)
  precision, recall, _, images = metrics.precision_recall_fscore_support(
    labels, predicted, labels=range(5), zero_division=np.nan
  )
  matrix = metrics.confusion_matrix(labels, predicted, labels=range(5))
  for i, row in enumerate(rows):
    assert (row['class'], row['images']) == (NAMES[i], images[i])
    for name, expected in (('accuracy', recall), ('precision', precision)):
      value = np.nan if row[name] is None else row[name]
      np.testing.assert_allclose(value, expected[i])
    wrong = np.where(np.arange(5) == i, 0, matrix[i])
    expected = NAMES[wrong.argmax()] if wrong.any() else None
    assert row['mostly_confused_with'] == expected
  assert rows[4]['accuracy'] is None and rows[4]['precision'] is None


def test_the_table_of_several_labels_is_that_of_scikit_learn():
  rng = np.random.default_rng(0)
  labels = (rng.uniform(size=(50, 5)) < [0.5, 0.2, 0.1, 0, 0.9]).astype(float)
  scores = rng.normal(size=(50, 5)) + labels
  scores[:, 2] = -1  # never predicted
  rows = by_class.multi_label_table(labels, scores, NAMES)
  precision, recall, _, images = metrics.precision_recall_fscore_support(
    labels, scores > 0, zero_division=np.nan
  )
  expected = metrics.average_precision_score(labels, scores, average=None)
  expected[3] = recall[3] = np.nan  # no examples
  for i, row in enumerate(rows):
    assert (row['class'], row['images']) == (NAMES[i], images[i])
    found = [row[x] for x in ('average_precision', 'precision', 'recall')]
    np.testing.assert_allclose(
      [np.nan if x is None else x for x in found],
      [expected[i], precision[i], recall[i]],
    )
