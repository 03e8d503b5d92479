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
from vit_jax.checkpoint import weights_file
from vit_jax.commands import evaluate
from vit_jax.commands import export
from vit_jax.commands import predict
from vit_jax.run import evaluation
from vit_jax.run import setup
from vit_jax.run.start import initial_weights
from vit_jax.tasks import regression

NAMES, UNITS = ('digit', 'brightness'), ('', 'cd')


def make_config(**settings):
  config = digits.make_config(task='regression', **settings)
  config.targets.names, config.targets.units = NAMES, UNITS
  return config


@pytest.fixture(name='data', scope='module')
def fixture_data():
  return digits.make_data(digits.two_numbers())


@pytest.fixture(name='run', scope='module')
def fixture_run(data, tmp_path_factory):
  """Returns (workdir, result)."""
  workdir = str(tmp_path_factory.mktemp('regression') / 'run')
  return workdir, train.train_and_evaluate(make_config(), workdir, data=data)


def test_metrics_are_those_of_scikit_learn_in_the_units(run):
  """Numbers of the run, the loaded model and scikit-learn agree."""
  workdir, (_, found, *_) = run
  expected = digits.two_numbers()[800:950]
  values = vit_jax.load(workdir).predict(digits.test_inputs())
  assert values.shape == (150, 2)
  assert abs(values[:, 1].mean() - expected[:, 1].mean()) < 100
  r2 = metrics.r2_score(expected, values, multioutput='raw_values')
  mae = metrics.mean_absolute_error(expected, values, multioutput='raw_values')
  mse = metrics.mean_squared_error(expected, values, multioutput='raw_values')
  assert found['r2_test'] == pytest.approx(r2.mean(), abs=1e-4)
  for i, name in enumerate(NAMES):
    assert found[f'r2_{name}_test'] == pytest.approx(r2[i], abs=1e-4)
    assert found[f'mean_absolute_error_{name}_test'] == pytest.approx(
      mae[i], rel=1e-4
    )
    assert found[f'root_mean_squared_error_{name}_test'] == pytest.approx(
      mse[i] ** 0.5, rel=1e-4
    )
  train_targets = digits.two_numbers()[:800].astype(np.float64)
  assert found['loss_test'] == pytest.approx(
    (mse / train_targets.var(0)).mean(), rel=1e-4
  )


def test_the_record_has_the_targets(run):
  train_targets = digits.two_numbers()[:800].astype(np.float64)
  found = metadata.of_run(run[0])
  assert (found.task, found.output) == ('regression', 'identity')
  assert (found.targets.names, found.targets.units) == (NAMES, UNITS)
  np.testing.assert_allclose(found.targets.mean, train_targets.mean(0))
  np.testing.assert_allclose(found.targets.std, train_targets.std(0))


def test_prediction_prints_values_with_units(run, tmp_path, capsys):
  workdir, out = run[0], str(tmp_path / 'w.npz')
  image = digits.digits()[0][800]
  Image.fromarray(image[..., 0]).save(tmp_path / '7.png')
  digit, brightness = vit_jax.load(workdir).predict(digits.test_inputs()[:1])[0]
  assert export.main([workdir, out]) == 0
  capsys.readouterr()
  for weights in (workdir, out):
    assert predict.main([weights, str(tmp_path), '--json']) == 0
    text = capsys.readouterr()
    assert json.loads(text.out)['values'] == [
      {'name': 'digit', 'value': pytest.approx(digit, rel=1e-4), 'unit': ''},
      {
        'name': 'brightness',
        'value': pytest.approx(brightness, rel=1e-4),
        'unit': 'cd',
      },
    ]
    assert 'accuracy' not in text.err
  assert predict.main([workdir, str(tmp_path / '7.png')]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[1:] == [
    f'  digit {digit:.6g}',
    f'  brightness {brightness:.6g} cd',
  ]


def test_an_export_predicts_the_same_values(run, tmp_path, capsys):
  loaded = vit_jax.load(run[0])
  for name in ('w.npz', 'w.safetensors', 'w/'):
    assert export.main([run[0], str(tmp_path / name)]) == 0
    again = vit_jax.load(str(tmp_path / name).rstrip('/'))
    assert again.targets == loaded.targets
    np.testing.assert_array_equal(
      again.predict(digits.test_inputs()), loaded.predict(digits.test_inputs())
    )
  assert 'timm returns standardized values' in capsys.readouterr().err


def test_evaluation_gives_the_metrics_of_the_run(run, data, tmp_path, capsys):
  workdir, (_, expected, *_) = run
  row = evaluation.evaluate_only(make_config(), workdir, data=data)
  for name, value in expected.items():
    if name.endswith('_test'):
      assert row[name.removesuffix('_test')] == pytest.approx(value, rel=1e-6)
  assert row['count'] == 150
  text = capsys.readouterr().err
  assert f'R² {row["r2"]:.4f} on 150 test images' in text
  error = row['mean_absolute_error_brightness']
  assert f'mean absolute error of brightness {error:.4g} cd, ' in text
  assert 'accuracy' not in text


def test_evaluation_on_class_numbers_is_refused(run, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    evaluate.main([run[0], '--dataset=digits', f'--workdir={tmp_path}'])
  assert stop.value.code == 2
  assert 'type int32 and the shape [B], but' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_model_is_not_evaluated_as_another_task(run, data):
  config = digits.make_config()
  with pytest.raises(ValueError, match='task regression, not for .*classif'):
    evaluation.evaluate_only(config, run[0], data=data)
  config = make_config()
  config.targets.units = ('', 'lx')
  with pytest.raises(ValueError, match="targets.units=.*'lx'.*'cd'"):
    evaluation.evaluate_only(config, run[0], data=data)


def test_classes_cannot_be_predicted(run):
  model = vit_jax.load(run[0])
  with pytest.raises(ValueError, match='identity.*`predict`'):
    model.classify(digits.test_inputs())
  with pytest.raises(ValueError, match="class_names .*'regression'"):
    vit_jax.load(run[0], class_names=('a', 'b'))


def test_weights_start_other_runs_with_a_new_head(run, data, tmp_path):
  config = digits_run.make_config(pretrained=run[0], base_lr=1e-9)
  parts, loaded = start(config)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape), parts.abstract_state.params)
  params = initial_weights.fit(loaded, config, parts, zeros)
  weights = weights_file.load(loaded.source)
  np.testing.assert_array_equal(
    params['embedding']['kernel'], weights['embedding']['kernel']
  )
  assert (
    params['head']['bias'].shape == (10,) and not params['head']['bias'].any()
  )


def start(config, data=None):
  """Returns (parts, weights) of a run."""
  mesh = setup.check(config)
  parts = setup.make_parts(config, mesh, setup.load_data(config, mesh, data))
  return parts, initial_weights.find(config)[0]


@pytest.mark.slow
def test_a_head_is_kept_only_for_the_same_targets(run, data):
  keep = dict(pretrained=run[0], pretrained_head='keep')
  config = digits_run.make_config(**keep)
  parts, loaded = start(config)
  with pytest.raises(ValueError, match='regression .*classification.*fresh'):
    initial_weights.fit(loaded, config, parts, {})
  config = make_config(**keep)
  config.targets.mean, config.targets.std = (1.0, 2.0), (3.0, 4.0)
  parts, loaded = start(config, data)
  with pytest.raises(ValueError, match='digit .mean 4.*digit .mean 1,.*fresh'):
    initial_weights.fit(loaded, config, parts, {})
  config = make_config(**keep)
  parts, loaded = start(config, data)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape), parts.abstract_state.params)
  params = initial_weights.fit(loaded, config, parts, zeros)
  assert params['head']['bias'].any()


# --- wrong labels and settings -----------------------------------------------


def changed(index, value):
  labels = digits.two_numbers()
  labels[index] = value
  return labels


@pytest.mark.parametrize(
  'labels, settings, message',
  [
    (digits.digits()[1], {}, r'int32 and the shape \[B\].*float targets'),
    (changed((3, 1), np.nan), {}, '1 of 1600 targets in the train split'),
    (changed((810, 1), np.inf), {}, '1 of 300 targets in the test split.*inf'),
    (changed((slice(800), 0), 5), {}, 'digit is 5 for all 800 .*train'),
    (changed((slice(800, 950), 1), 5), {}, 'brightness is 5 .* 150 .*test'),
    (changed((..., 1), 1e7 + np.arange(1797)), {}, None),
    (changed((slice(None, None, 2), 1), 1e9), {}, None),
    (
      1e9 + 64 * digits.two_numbers(),
      {},
      'mean 1e.09 is too large .*Subtract a constant',
    ),
    (digits.two_numbers(), {'names': ('a',)}, r'units=.* must have 1 value.*a'),
    (
      digits.two_numbers(),
      {'names': ('a', 'b'), 'mean': (1.0, 2.0), 'std': (1.0, 0.0)},
      r'std=\(1.0, 0.0\) must be',
    ),
    (digits.two_numbers(), {'names': ('a b', 'b')}, "'a b', but a name"),
    (digits.two_numbers(), {'names': ('a', 'a')}, "'a'.* unique"),
    (digits.two_numbers(), {'mean': (1.0, 2.0)}, 'set together'),
    (digits.two_numbers(), {'mean': ('x', 2.0)}, 'must be numbers'),
  ],
)
def test_mistakes_are_refused_before_training(labels, settings, message):
  config = make_config()
  config.targets.update(settings)
  if message is None:
    start(config, digits.make_data(labels))
    return
  with pytest.raises(ValueError, match=message):
    start(config, digits.make_data(labels))


def test_settings_of_targets_need_this_task():
  config = digits_run.make_config()
  config.targets.units = ('kg',)
  with pytest.raises(ValueError, match='config.targets .*task=regression'):
    setup.check(config)


def test_one_target_has_short_names():
  targets = metadata.Targets(('mass',), ('kg',), (5.0,), (2.0,))
  labels = np.float32([[1], [4], [7]])
  found = regression.measure(labels, np.float32([[-2], [0], [1]]), targets)
  assert found == pytest.approx(
    {
      'r2': 1 - 1 / 18,
      'mean_absolute_error': 1 / 3,
      'root_mean_squared_error': 3**-0.5,
    }
  )


@pytest.mark.parametrize(
  'metric, direction',
  [
    ('r2_test', 'max'),
    ('r2_digit_test', 'max'),
    ('mean_absolute_error_brightness_test', 'min'),
    ('loss_test', 'min'),
    ('mean_absolute_error_test', None),
    ('accuracy_test', None),
  ],
)
def test_the_task_knows_which_metrics_are_better(data, metric, direction):
  config = make_config(best_metric=metric)
  task = start(config, data)[0].task
  evaluators = {'test': None}
  if direction:
    assert setup.best_direction(config, task, evaluators) == direction
  else:
    with pytest.raises(ValueError, match=f'{metric}.* r2_test, r2_digit'):
      setup.best_direction(config, task, evaluators)


@pytest.mark.slow
def test_a_loss_of_ones_own(data, tmp_path):
  config = make_config(total_steps=1, warmup_steps=0)
  _, found, *_ = train.train_and_evaluate(
    config,
    str(tmp_path),
    data=data,
    loss_fn=lambda outputs, targets: abs(outputs - targets).sum(-1),
  )
  std = metadata.of_run(str(tmp_path)).targets.std
  assert found['loss_test'] == pytest.approx(
    sum(
      found[f'mean_absolute_error_{name}_test'] / s
      for name, s in zip(NAMES, std, strict=True)
    ),
    rel=1e-4,
  )
