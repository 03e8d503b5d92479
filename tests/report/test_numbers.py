"""Numbers of a report, against counts and known intervals."""

import numpy as np
import pytest

from vit_jax.evaluators.metrics import calibration
from vit_jax.report import numbers
from vit_jax.report import sections
from vit_jax.report import writer_pictures


def outputs_of(labels, probabilities):
  rows = np.arange(len(labels))
  predicted = probabilities.argmax(-1)
  return {
    'labels': labels,
    'predicted': predicted,
    'probability': probabilities[rows, predicted],
    'label_probability': probabilities[rows, labels],
  }


def random_outputs(count, num_classes, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(count, num_classes)) * 2
  labels = rng.integers(num_classes, size=count)
  logits[np.arange(count), labels] += 2
  x = np.exp(logits)
  return outputs_of(labels, x / x.sum(-1, keepdims=True))


def test_wilson_interval():
  """Values of statsmodels' proportion_confint(…, method='wilson')."""
  low, high = numbers.wilson_interval(8, 10)
  assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
  assert numbers.wilson_interval(0, 10) == pytest.approx((0, 0.2775328))
  assert numbers.wilson_interval(10, 10) == pytest.approx((0.7224672, 1))


def test_numbers_of_classes():
  outputs = random_outputs(500, 7)
  found = numbers.of_classes(outputs, 'abcdefg')
  matrix = np.array(found['confusion']['matrix'])
  for (i, j), count in np.ndenumerate(matrix):
    is_counted = (outputs['labels'] == i) & (outputs['predicted'] == j)
    assert count == is_counted.sum()
  assert matrix.sum() == found['count'] == 500
  assert np.trace(matrix) == found['correct']
  assert found['accuracy'] == found['correct'] / 500
  accuracies = [row['accuracy'] for row in found['classes']]
  assert accuracies == sorted(accuracies)
  assert sum(row['images'] for row in found['classes']) == 500
  shown = [row['true_probability'] for row in found['mistakes']]
  wrong = outputs['labels'] != outputs['predicted']
  expected = np.sort(outputs['label_probability'][wrong])[:24]
  np.testing.assert_array_equal(shown, expected)
  for row in found['least_sure']:
    assert row['true'] == row['predicted']


def test_bins_have_the_calibration_error():
  outputs = random_outputs(300, 4)
  right = outputs['labels'] == outputs['predicted']
  bins = numbers.reliability(outputs['probability'], right)
  gaps = [
    row['images'] * abs(row['accuracy'] - row['confidence'])
    for row in bins
    if row['images']
  ]
  assert sum(row['images'] for row in bins) == 300
  assert sum(gaps) / 300 == pytest.approx(
    calibration.expected_calibration_error(outputs['probability'], right)
  )


def test_most_frequent_confusions_of_many_classes():
  outputs = random_outputs(3000, 50)
  found = numbers.of_classes(outputs, [f'c{i}' for i in range(50)])
  pairs = found['confusion']['pairs']
  counts = [pair['images'] for pair in pairs]
  assert len(pairs) == 30 and counts == sorted(counts, reverse=True)
  for pair in pairs:
    same = [
      i
      for i in range(3000)
      if (outputs['labels'][i], outputs['predicted'][i])
      == (int(pair['true'][1:]), int(pair['predicted'][1:]))
    ]
    assert len(same) == pair['images'] and same[:2] == pair['indices']


def test_numbers_of_targets():
  labels = np.array([[1.0, 10], [2, 20], [3, 60]])
  found = numbers.of_targets(
    labels, labels + [[0, 0], [1, 0], [0, 9]], 'xy', ('kg', '')
  )
  first, second = found['targets']
  assert first['mean_absolute_error'] == pytest.approx(1 / 3)
  assert second['root_mean_squared_error'] == pytest.approx(27**0.5)
  # 1 / 0.816 is a larger error than 9 / 21.6.
  assert [row['index'] for row in found['mistakes']] == [1, 2, 0]
  assert [row['unit'] for row in found['targets']] == ['kg', '']
  images = {i: np.zeros((4, 4, 3), np.float32) for i in range(3)}
  page = sections.examples('Title', found['mistakes'], images, {})
  assert '1: true 2 kg, 20, predicted 3 kg, 20' in page
  drawn = writer_pictures.draw(found, (), images)
  assert list(drawn) == ['worst_mistakes']


def test_parameters_by_module():
  x = np.zeros((2, 3))
  block = {'MlpBlock_0': {'kernel': x, 'bias': x}}
  params = {
    'Transformer': {'encoderblock_0': block},
    'cls': x,
    'head': {'k': x},
  }
  found = {
    row['module']: (row['arrays'], row['parameters'])
    for row in numbers.parameters_by_module(params)
  }
  assert found == {
    'Transformer/encoderblock_0': (2, 12),
    'cls': (1, 6),
    'head': (1, 6),
  }
