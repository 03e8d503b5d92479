"""Imbalanced classes: the weights of the loss, and numbers by class."""

import csv
import json
import types

import jax
import numpy as np
import pytest
from sklearn.utils import class_weight

from tests.digits_run import arrays
from tests.digits_run import make_config
from vit_jax import base_config
from vit_jax import models
from vit_jax import train
from vit_jax.commands import evaluate
from vit_jax.data import examples
from vit_jax.data.given import arrays as given_arrays
from vit_jax.tasks import classification
from vit_jax.tasks import task

NAMES = ('a', 'b', 'c', 'd')


def datasets(labels):
  source = examples.Source(len(labels), NAMES, labels=labels)
  return types.SimpleNamespace(class_names=NAMES, sources={'train': source})


def test_balanced_weights_are_those_of_scikit_learn():
  labels = np.repeat([0, 1, 3], [10, 1, 5])
  config = base_config.for_dataset('digits')
  config.class_weights = 'balanced'
  found = classification.find_class_weights(config, datasets(labels))
  expected = class_weight.compute_class_weight(
    'balanced', classes=np.array([0, 1, 3]), y=labels
  )
  np.testing.assert_allclose(found[[0, 1, 3]], expected, rtol=1e-6)
  np.testing.assert_allclose(found[labels].mean(), 1, rtol=1e-6)
  config.class_weights = (1, 2, 3)
  with pytest.raises(ValueError, match='3 numbers, but there are 4 classes: a'):
    classification.find_class_weights(config, datasets(labels))


def test_weights_scale_the_training_loss_and_not_the_evaluation():
  model = models.get_model('testing', num_classes=4, hidden_size=8, mlp_dim=8)
  images = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
  params = model.init(jax.random.key(0), images, train=False)['params']
  params['head']['kernel'] += 0.1
  batch = {'image': images, 'label': np.array([0, 3, 3])}
  weights = np.float32([2, 1, 1, 0.5])
  context = task.Context(key=jax.random.key(0), step=0)
  for train_mode, factors in ((True, [2, 0.5, 0.5]), (False, [1, 1, 1])):
    plain, weighted = (
      classification.make_loss(model, class_weights=w)(
        params, batch, context.replace(train=train_mode)
      )[0]
      for w in (None, weights)
    )
    np.testing.assert_allclose(weighted, plain * np.float32(factors), rtol=1e-6)


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(class_weights='equal'), "'equal' must be '', 'balanced' or a tuple"),
    (dict(class_weights=(1, 0)), 'positive number'),
    (dict(class_weights='balanced', task='regression'), 'regression'),
    (dict(class_weights='balanced', sampling='balanced'), 'twice'),
    (dict(sampling='uneven'), "config.sampling='uneven' is not one of uniform"),
  ],
)
def test_wrong_settings_are_rejected(settings, message):
  config = make_config(**settings)
  with pytest.raises(ValueError, match=message):
    base_config.validate(config)


def test_a_run_writes_numbers_by_class(tmp_path, capsys):
  """The classes 3 to 9 are rare: one image of ten is kept."""
  parts = arrays()
  images, labels = parts['train']
  kept = (labels < 3) | (np.arange(len(labels)) % 10 == 0)
  data = given_arrays.from_arrays(
    images[kept], labels[kept], test=parts['test']
  )
  config = make_config(total_steps=4, class_weights='balanced')
  metrics = train.train_and_evaluate(config, str(tmp_path), data=data).metrics
  assert (
    'class weights of the training loss: from 0.' in capsys.readouterr().err
  )
  with open(tmp_path / 'classes_test.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert [row['class'] for row in rows] == list(map(str, range(10)))
  accuracies = [float(row['accuracy']) for row in rows]
  images = np.array([int(row['images']) for row in rows])
  assert images.sum() == 377
  assert metrics['balanced_accuracy_test'] == pytest.approx(np.mean(accuracies))
  assert metrics['accuracy_test'] == pytest.approx(accuracies @ images / 377)

  assert (
    evaluate.main([str(tmp_path), '--dataset=digits', '--by_class', '--json'])
    == 0
  )
  result = json.loads(capsys.readouterr().out)
  assert [row['accuracy'] for row in result['classes']] == accuracies
  assert evaluate.main([str(tmp_path), '--dataset=digits', '--by_class']) == 0
  shown = capsys.readouterr().out.splitlines()
  assert shown[0].split() == list(rows[0]) and len(shown) == 11
