import json

import jax
import numpy as np
from PIL import Image
import pytest
from sklearn import metrics

from tests import digits_run
from tests.tasks import labelled_digits as digits
import vit_jax
from vit_jax import train
from vit_jax.checkpoint import metadata
from vit_jax.commands import export
from vit_jax.commands import predict
from vit_jax.run import evaluation
from vit_jax.run import setup
from vit_jax.run.start import initial_weights
from vit_jax.tasks import losses

NAMES = ('even', 'large', 'light', 'never')


def make_config(**settings):
  return digits.make_config(task='multi_label', **settings)


@pytest.fixture(name='data', scope='module')
def fixture_data():
  return digits.make_data(digits.several_labels(), class_names=NAMES)


@pytest.fixture(name='run', scope='module')
def fixture_run(data, tmp_path_factory):
  """Returns (workdir, result)."""
  workdir = str(tmp_path_factory.mktemp('multi_label') / 'run')
  return workdir, train.train_and_evaluate(make_config(), workdir, data=data)


def test_metrics_are_those_of_scikit_learn(run):
  """Numbers of the run, the loaded model and scikit-learn agree."""
  workdir, (_, found, *_) = run
  labels = digits.several_labels()[800:950]
  values = vit_jax.load(workdir).predict(digits.test_inputs())
  assert not np.allclose(values.sum(1), 1)  # no softmax
  expected = metrics.average_precision_score(labels[:, :3], values[:, :3])
  assert found['average_precision_test'] == pytest.approx(expected, rel=1e-5)
  assert found['skipped_classes_test'] == 1
  assert found['exact_match_test'] == pytest.approx(
    metrics.accuracy_score(labels, values > 0.5), abs=0.01
  )
  assert found['loss_test'] == pytest.approx(
    4 * metrics.log_loss(labels.ravel(), values.ravel().astype(float)), rel=1e-4
  )


def test_evaluation_gives_the_metrics_of_the_run(run, data, capsys):
  workdir, (_, expected, *_) = run
  row = evaluation.evaluate_only(
    make_config(), workdir, data=data, by_class=True
  )
  by_class = [x['average_precision'] for x in row['classes']]
  assert by_class[3] is None
  assert np.mean(by_class[:3]) == pytest.approx(row['average_precision'])
  assert row['loss'] == pytest.approx(expected['loss_test'], rel=1e-6)
  precision = row['average_precision']
  assert precision == pytest.approx(expected['average_precision_test'])
  assert (
    f'average precision {100 * precision:.2f} % (mean over classes; 1 without '
    'examples skipped) on 150 test images, exact match '
  ) in capsys.readouterr().err


def test_prediction_prints_independent_probabilities(run, tmp_path, capsys):
  """The folder has the name of a class, but no accuracy is printed."""
  workdir, out = run[0], str(tmp_path / 'w.npz')
  (tmp_path / 'photos' / 'even').mkdir(parents=True)
  Image.fromarray(digits.digits()[0][800, ..., 0]).save(
    tmp_path / 'photos/even/7.png'
  )
  (values,) = vit_jax.load(workdir).predict(digits.test_inputs()[:1])
  order = np.argsort(-values)[:3]
  assert export.main([workdir, out]) == 0
  capsys.readouterr()
  for weights in (workdir, out):
    arguments = [weights, str(tmp_path / 'photos'), '--top=3', '--json']
    assert predict.main(arguments) == 0
    text = capsys.readouterr()
    top = json.loads(text.out)['top']
    assert [row['name'] for row in top] == [NAMES[i] for i in order]
    assert [row['probability'] for row in top] == pytest.approx(
      values[order], rel=1e-4
    )
    assert 'accuracy' not in text.err
  found = metadata.of_weights(out)
  assert (found.task, found.output, found.class_names) == (
    'multi_label',
    'sigmoid',
    NAMES,
  )


def test_a_head_is_not_kept_for_another_task(run):
  config = digits_run.make_config(
    pretrained=run[0], pretrained_head='keep', task='classification'
  )
  mesh = setup.check(config)
  parts = setup.make_parts(config, mesh, setup.load_data(config, mesh))
  loaded, _ = initial_weights.find(config)
  with pytest.raises(ValueError, match='multi_label .*sigmoid.*classification'):
    initial_weights.fit(loaded, config, parts, {})


def test_the_loss_is_a_sum_over_classes():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((5, 4)).astype(np.float32)
  labels = rng.uniform(size=(5, 4)).astype(np.float32)
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)
  np.testing.assert_allclose(
    losses.sigmoid_cross_entropy(logits, labels), expected, rtol=1e-5
  )
  gradient = jax.grad(lambda x: losses.sigmoid_cross_entropy(x, labels).sum())(
    logits
  )
  np.testing.assert_allclose(gradient, p - labels, atol=1e-6)


def changed(index, value):
  labels = digits.several_labels().astype(np.float32)
  labels[index] = value
  return labels


@pytest.mark.parametrize(
  'labels, options, message',
  [
    (digits.digits()[1], {}, r'int32 and the shape \[B\].*row of 0 and 1'),
    (changed((3, 1), 0.5), {}, None),  # a probability, in training
    (changed((803, 1), 0.5), {}, '1 label.* test split .*0 or 1, .* 0.5'),
    (changed((3, 1), np.nan), {}, '1 label.* train split .*0 and 1, .* nan'),
    (changed((3, 1), 2), {}, '1 label.* train split .*0 and 1, .* 2'),
    (changed(slice(800, 950), 0), {}, 'test split has no example of any'),
  ],
)
def test_mistakes_are_refused_before_training(labels, options, message):
  config = make_config()
  mesh = setup.check(config)
  data = setup.load_data(config, mesh, digits.make_data(labels, **options))
  if message is None:
    setup.make_parts(config, mesh, data)
    return
  with pytest.raises(ValueError, match=message):
    setup.make_parts(config, mesh, data)


def test_a_matrix_of_labels_is_not_for_a_classifier(data):
  config = digits.make_config()
  mesh = setup.check(config)
  parts = setup.make_parts(config, mesh, setup.load_data(config, mesh, data))
  batch = next(parts.data.train())
  with pytest.raises(ValueError, match='classification needs class numbers'):
    parts.task.check_batch(batch)
