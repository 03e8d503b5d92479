"""Evaluators of `config.evaluators`: cadence, data, devices, resuming."""

import csv
import json
import os
import shutil

import jax
import numpy as np
import pytest
from sklearn import metrics
from sklearn import neighbors

from tests import digits_run
from tests import tiny_run
from tests.parallel import test_processes
from vit_jax import base_config
from vit_jax import data as vit_data
from vit_jax import train
from vit_jax.checkpoint import trained_model
from vit_jax.commands import evaluate
from vit_jax.commands.parsing import config_arguments
from vit_jax.evaluators import named
from vit_jax.evaluators import options
from vit_jax.inference import loaded_model
from vit_jax.parallel import sharding
from vit_jax.run import evaluation
from vit_jax.run import setup
from vit_jax.run.start import named_evaluators

SCRIPT = """
import sys
from tests.run.test_named_evaluators import make_config
from vit_jax import console, train
from vit_jax.parallel import processes

coordinator, count, index, workdir, _ = sys.argv[1:]
processes.start(coordinator, int(count), int(index))
if not processes.is_main():
  console.be_silent()
train.train_and_evaluate(make_config(), workdir)
"""


def make_config(evaluated=True, **settings):
  config = digits_run.make_config(accum_steps=1, **settings)
  if evaluated:
    base_config.add_evaluator(config, 'near', 'knn', k=(5,), every=3)
    base_config.add_evaluator(
      config, 'shots', 'few_shot', shots=(2, 4), seeds=(0,)
    )
    base_config.add_evaluator(
      config, 'other', 'classifier', dataset='digits', every=0
    )
  return config


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory):
  """Returns (workdir, result) of a run with evaluators; do not change it."""
  workdir = str(tmp_path_factory.mktemp('evaluated') / 'run')
  return workdir, train.train_and_evaluate(make_config(), workdir)


def digits():
  """Returns {split: (images for a model, labels)}."""
  return digits_run.arrays()


def test_each_has_its_cadence_and_changes_nothing(run, tmp_path):
  workdir, result = run
  plain = train.train_and_evaluate(make_config(False), str(tmp_path))
  digits_run.assert_equal(result.params, plain.params)
  steps = {
    name: [row['step'] for row in digits_run.rows_of(workdir) if name in row]
    for name in (
      *('accuracy_test', 'accuracy_2shot_shots', 'accuracy_k5_near'),
      'ece_other',
    )
  }
  assert steps == {
    'accuracy_test': [4, 8],
    'accuracy_2shot_shots': [4, 8],
    'accuracy_k5_near': [3, 6, 8],
    'ece_other': [8],
  }
  for name in ('accuracy', 'balanced_accuracy', 'loss'):
    assert result.metrics[f'{name}_other'] == pytest.approx(
      plain.metrics[f'{name}_test'], abs=1e-6
    )


def test_metrics_are_those_of_the_features_of_all_images(run):
  workdir, result = run
  model, data = loaded_model.load(workdir), digits()
  rows = {
    split: (model.features(list(images)), labels)
    for split, (images, labels) in data.items()
  }
  nearest = neighbors.KNeighborsClassifier(
    5, metric='cosine', weights=lambda d: np.exp((1 - d) / 0.07)
  ).fit(*rows['train'])
  assert result.metrics['accuracy_k5_near'] == pytest.approx(
    nearest.score(*rows['test']), abs=1 / 377
  )
  logits = model.logits(list(data['test'][0]))
  assert result.metrics['top_5_other'] == pytest.approx(
    metrics.top_k_accuracy_score(data['test'][1], logits, k=5)
  )
  with open(f'{workdir}/few_shot_shots.csv', encoding='utf-8') as file:
    table = list(csv.DictReader(file))
  assert [(x['shots'], x['seed']) for x in table] == [('2', '0'), ('4', '0')]
  assert float(table[1]['accuracy']) == result.metrics['accuracy_4shot_shots']


@pytest.mark.slow
def test_a_finished_run_measures_a_new_evaluator(run, tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  config = make_config()
  config.evaluators.near.every = 1
  base_config.add_evaluator(config, 'more', 'knn', k=(1,))
  result = train.train_and_evaluate(config, str(workdir))
  assert result.metrics['accuracy_k1_more'] > 0.1
  assert result.metrics.items() >= run[1].metrics.items()
  config.evaluators.near.k = (7,)
  with pytest.raises(ValueError, match=r'(?s)evaluators.near.k=.5.* .*7.* now'):
    train.train_and_evaluate(config, str(workdir))
  train.train_and_evaluate(make_config(False), str(workdir))  # without them


@pytest.mark.slow
def test_a_resumed_run_has_the_same_metrics(run, tmp_path):
  with pytest.raises(digits_run.Interrupted):
    train.train_and_evaluate(
      make_config(), str(tmp_path), hooks=[digits_run.interrupt_at(6)]
    )
  train.train_and_evaluate(make_config(), str(tmp_path))
  ours, expected = (
    digits_run.without_rates(digits_run.rows_of(x)) for x in (tmp_path, run[0])
  )
  assert ours == expected


@pytest.mark.slow
def test_several_processes_have_the_same_metrics(tmp_path):
  (tmp_path / 'several').mkdir()
  started = test_processes.start_all(2, tmp_path / 'several', script=SCRIPT)
  train.train_and_evaluate(make_config(), str(tmp_path / 'alone'))
  test_processes.finish(started)
  test_processes.assert_same_run(
    tmp_path / 'several', tmp_path / 'alone', rtol=1e-4
  )


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 8])
def test_each_image_counts_once_on_all_devices(run, num_devices):
  """377 images are no multiple of the batch."""
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  data = setup.load_data(make_config(False), mesh)
  trained = trained_model.load_model(run[0])
  subject = named.Subject('w', trained.model, trained.class_names)
  found = named.make(
    {
      'near': ('knn', {'k': (5,), 'temperature': 0.07}),
      'all': ('classifier', {}),
    },
    *(subject, trained.params, data, 'test', mesh),
  )
  features, calls = found['near']._features, []
  gather_fn = features._gather_fn
  features._gather_fn = lambda *x: calls.append(0) or gather_fn(*x)
  params = jax.device_put(trained.params, sharding.replicated(mesh))
  numbers = found['near'](params, None).numbers
  expected = run[1].metrics
  assert numbers['accuracy_k5'] == pytest.approx(expected['accuracy_k5_near'])
  assert len(calls) == 12 + 3  # batches of 128 of 1420 and 377 images
  assert found['near'](params, None).numbers == numbers
  assert len(calls) == 15  # the same parameters: nothing is computed again
  rows = found['all'](params, None)
  assert sum(row['images'] for row in rows.tables['classes']) == 377
  assert rows.numbers['ece'] == pytest.approx(expected['ece_other'], abs=1e-5)


# --- the command, and eval_only ----------------------------------------------


def test_evaluate_with(run, tmp_path, capsys):
  args = [run[0], '--with=knn,few_shot,classifier', '--knn.k=5', '--json']
  args += ['--few_shot.shots=2,4', '--few_shot.seeds=0', '--batch=128']
  assert evaluate.main([*args, f'--workdir={tmp_path}']) == 0
  row = json.loads(capsys.readouterr().out)
  expected = run[1].metrics
  for ours, theirs in (
    ('accuracy_k5_knn', 'accuracy_k5_near'),
    ('accuracy_4shot_few_shot', 'accuracy_4shot_shots'),
    ('brier_classifier', 'brier_other'),
  ):
    assert row[ours] == pytest.approx(expected[theirs], abs=1e-5)
  assert row['count'] == 377 and len(row['tables']['few_shot_few_shot']) == 2
  assert os.listdir(tmp_path) == ['evaluations.jsonl']


@pytest.mark.slow
def test_eval_only_measures_them_too(run, tmp_path):
  config = make_config()
  config.pretrained = run[0]
  row = evaluation.evaluate_only(config, str(tmp_path))
  for name in ('accuracy_k5_near', 'accuracy_4shot_shots', 'loss_other'):
    assert row[name] == pytest.approx(run[1].metrics[name], abs=1e-5)


@pytest.mark.slow
def test_a_dataset_with_some_of_the_classes(finished_run, tmp_path, capsys):
  """Only the logits of these classes compete."""
  photos = shutil.copytree(finished_run.photos, tmp_path / 'photos')
  for split in ('train', 'test'):
    shutil.rmtree(photos / split / tiny_run.CLASSES[1])
  args = [finished_run.workdir, f'--dataset={photos}', '--with=classifier']
  assert evaluate.main([*args, '--json', f'--workdir={tmp_path}']) == 0
  shown = capsys.readouterr()
  row = json.loads(shown.out)
  assert 'only its 2 classes compete, of the 3' in shown.err
  model, right = loaded_model.load(finished_run.workdir), []
  for label in (0, 2):
    paths = (photos / 'test' / tiny_run.CLASSES[label]).iterdir()
    logits = model.logits(sorted(map(str, paths)))[:, [0, 2]]
    right += (logits.argmax(1) * 2 == label).tolist()
  assert row['accuracy_classifier'] == pytest.approx(np.mean(right))
  os.rename(photos / 'test/sand', photos / 'test/mud')
  os.rename(photos / 'train/sand', photos / 'train/mud')
  with pytest.raises(SystemExit):
    evaluate.main([*args, f'--workdir={tmp_path}'])
  assert '1 of them are no classes of' in (error := capsys.readouterr().err)
  assert "'mud'" in error


@pytest.mark.parametrize(
  'args, message',
  [
    (['--with=kn'], "there is no evaluator 'kn'; did you mean 'knn'?"),
    (['--with=knn', '--knn.k=0'], '--knn.k=(0,) must be'),
    (['--with=knn', '--few_shot.shots=1'], 'only used with --with=few_shot'),
    (['--with=few_shot'], '--few_shot.shots=25 needs 25 training images'),
    (['--with=knn', '--knn.k=31'], '--knn.k=31 neighbors are more than the 30'),
  ],
)
def test_mistakes_of_the_command(finished_run, tmp_path, capsys, args, message):
  with pytest.raises(SystemExit) as ended:
    evaluate.main([finished_run.workdir, f'--workdir={tmp_path}', *args])
  assert ended.value.code == 2
  assert message in capsys.readouterr().err.splitlines()[-1]
  assert not os.listdir(tmp_path)


# --- settings ----------------------------------------------------------------


def parse(*args):
  parser = config_arguments.Parser('vit_jax.main', 'page')
  return parser.parse_args(['--config=configs/quickstart.py', *args]).config


def test_the_command_line_adds_evaluators():
  config = parse(
    *('--config.evaluators.a.type=few_shot', '--config.evaluators.a.shots=1,5'),
    *('--config.evaluators.b.type', 'knn', '--config.evaluators.b.every=7'),
  )
  assert config.evaluators.a.shots == (1, 5)
  assert (config.evaluators.a.every, config.evaluators.b.every) == (None, 7)
  base_config.validate(config)
  assert base_config.flatten(config)['evaluators.b.temperature'] == 0.07
  with pytest.raises(ValueError, match="a.type: .*'nn'; did you mean 'knn'"):
    parse('--config.evaluators.a.type=nn')
  assert not parse().evaluators


@pytest.mark.parametrize(
  'name, kind, changes, message',
  [
    ('test', 'knn', {}, 'evaluators.test: .* must not be one of train'),
    ('a-b', 'knn', {}, 'evaluators.a-b: the name'),
    ('a', 'knn', {'every': -1}, 'evaluators.a.every=-1 must be at least 0'),
    ('a', 'knn', {'k': (0,)}, r'evaluators.a.k=\(0,\) must be'),
    (
      'a',
      'knn',
      {'train_split': 'x'},
      'only used with config.evaluators.a.dat',
    ),
  ],
)
def test_wrong_settings(name, kind, changes, message):
  config = make_config(False)
  base_config.add_evaluator(config, name, kind, **changes)
  with pytest.raises(ValueError, match=message):
    base_config.validate(config)


def test_the_measured_split(run, monkeypatch):
  """With a validation split, a run does not look at the test split."""
  found = []
  monkeypatch.setattr(named, 'make', lambda *x: found.append(x[-2:]) or {})
  config = make_config(False, validation=0.1)
  base_config.add_evaluator(config, 'a', 'knn')
  trained = trained_model.load_model(run[0])
  with pytest.raises(KeyError):
    named_evaluators.measure_trained(config, run[0], trained)
  with pytest.raises(KeyError):
    train.train_and_evaluate(config, os.path.join(run[0], 'other'))
  config.evaluators.a.test_split = 'test'
  with pytest.raises(KeyError):
    train.train_and_evaluate(config, os.path.join(run[0], 'other'))
  splits = [split for split, _ in found]
  assert splits == ['test', 'validation', 'test']


def test_data_that_an_evaluator_cannot_use():
  mesh = sharding.make_mesh(jax.devices()[:1])
  config = make_config(False, dataset='given arrays')
  images, labels = digits()['train']
  subject = named.Subject('w', None, None, has_classes=False)

  def make(data, kind, split='test'):
    data = setup.load_data(config, mesh, data)
    kinds = {'x': (kind, options.defaults(kind))}
    named.make(kinds, subject, {}, data, split, mesh)

  arrays, soft, floats = (
    vit_data.from_arrays(images, x, test=(images, x), **names)
    for x, names in (
      (labels, {}),
      (np.eye(10, dtype=np.float32)[labels], {'num_classes': 10}),
      (labels.astype(np.float32), {}),
    )
  )
  for data, kind, split, message in (
    (arrays, 'knn', 'validation', "'x' needs a validation split"),
    (arrays, 'classifier', 'test', 'w has no such head. Use the types knn'),
    (floats, 'knn', 'test', 'needs classes, but the dataset given arrays has'),
    (soft, 'knn', 'test', r'needs one class number .* float32 .*\[B, 10\]'),
    (
      vit_data.from_batches(
        lambda step: {'image': images[:32], 'label': labels[:32]},
        test=lambda: iter([{'image': images[:32], 'label': labels[:32]}]),
        num_classes=10,
      ),
      *('knn', 'test', 'batches in an order of their own'),
    ),
  ):
    with pytest.raises(ValueError, match=message):
      make(data, kind, split)
  assert named_evaluators.of_model(None, config, None, None, 'test', mesh) == {}
