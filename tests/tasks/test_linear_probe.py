"""A linear probe: features once, one head per step, and the best one."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from sklearn import linear_model

from tests import digits_run
import vit_jax
from vit_jax import base_config
from vit_jax import train
from vit_jax.commands import evaluate
from vit_jax.cost import dry_run
from vit_jax.data.given import arrays as given_arrays
from vit_jax.evaluators import linear_probe as evaluator
from vit_jax.inference import feature_files
from vit_jax.run import setup
from vit_jax.tasks import linear_probe
from vit_jax.tasks import task

STRENGTHS = (0.1, 1e-5, 1e-3)  # the best is neither the first nor the last


def make_config(**settings):
  config = base_config.for_dataset('digits')
  config.pretrained = 'scratch'  # features of a random model
  config.model.update(
    dict(
      name='testing',
      patch_size=4,
      classifier='gap',
      hidden_size=32,
      num_heads=2,
    )
  )
  config.pp.update(dict(crop=8, min_area=1.0, flip=False))
  config.update(
    dict(
      task='linear_probe',
      freeze='(?!head/).*',
      validation=0.1,
      batch_eval=256,
      l2_strengths=STRENGTHS,
      total_steps=4,
      warmup_steps=0,
      accum_steps=1,
      log_every=1,
      eval_every=1,
      checkpoint_every=1,
      keep=1,
    )
  )
  config.update_from_flattened_dict(settings)
  return config


@dataclasses.dataclass
class Run:
  workdir: str
  heads: list  # of each step
  result: train.Result


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory):
  workdir, heads = str(tmp_path_factory.mktemp('probe')), []

  def keep(step, state, metrics):
    heads.append(jax.device_get(state.params['head']))

  result = train.train_and_evaluate(make_config(), workdir, hooks=[keep])
  return Run(workdir, heads, result)


def test_each_step_fits_a_head_and_the_last_one_is_the_best(run):
  rows = digits_run.rows_of(run.workdir)
  *path, last = rows
  np.testing.assert_allclose([x['l2_validation'] for x in path], STRENGTHS)
  losses = [x['train_loss'] for x in path]  # of the new heads
  assert losses[1] < 0.3 < losses[2] < losses[0]
  assert all(0 < x['iterations'] < 1000 for x in rows)
  best = min(
    path, key=lambda x: (-x['accuracy_validation'], x['loss_validation'])
  )
  for name in ('l2', 'accuracy', 'loss'):
    name = f'{name}_validation'
    assert last[name] == pytest.approx(best[name], rel=1e-6)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
    run.heads[path.index(best)],
    run.heads[-1],
  )
  assert 0.5 < last['accuracy_validation']
  # The test split is measured once.
  assert ['accuracy_test' in row for row in rows] == [False] * 3 + [True]


def test_heads_are_those_of_scikit_learn(run):
  folder = os.path.join(run.workdir, 'features')
  rows = feature_files.read(folder, 'train')
  x, y = rows['feature'].astype(np.float64), rows['label']
  assert len(x) == 1278  # not a multiple of 8 devices: there are padding rows
  for i in (0, 2):
    l2, head = STRENGTHS[i], run.heads[i]
    expected = linear_model.LogisticRegression(
      C=1 / (l2 * len(x)), tol=1e-7, max_iter=3000
    ).fit(x, y)
    scale = np.abs(expected.coef_).max()
    np.testing.assert_allclose(
      head['kernel'] / scale, expected.coef_.T / scale, atol=5e-3
    )
    found = (x @ head['kernel'] + head['bias']).argmax(1)
    assert (found == expected.predict(x)).mean() > 0.999


def test_the_result_is_an_ordinary_classifier(run, capsys):
  assert evaluate.main([run.workdir, '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  last = run.result.metrics
  assert found['accuracy'] == pytest.approx(last['accuracy_test'], abs=1e-9)
  assert found['loss'] == pytest.approx(last['loss_test'], rel=1e-5)
  model = vit_jax.load(run.workdir)
  assert model.task == 'classification'
  images, labels = digits_run.arrays()['test']
  rows = feature_files.read(os.path.join(run.workdir, 'features'), 'test')
  np.testing.assert_array_equal(rows['label'], labels)
  np.testing.assert_allclose(
    rows['feature'][:20], model.features(images[:20]), atol=1e-5
  )
  assert set(model.classify(images[0])) <= set(map(str, range(10)))


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_head(run, tmp_path, capfd):
  workdir = str(tmp_path / 'run')

  def start(stop, **settings):
    hooks = [digits_run.interrupt_at(stop)]
    with pytest.raises(digits_run.Interrupted):
      train.train_and_evaluate(make_config(**settings), workdir, hooks=hooks)
    return capfd.readouterr().err

  start(1, seed=1)  # without a checkpoint
  assert 'because these have changed: the weights\n' in start(3)
  # Lost features are computed again. Others are an error.
  shutil.rmtree(tmp_path / 'run/features')
  result = train.train_and_evaluate(make_config(), workdir)
  log = capfd.readouterr().err
  assert 'resuming from step 2' in log and 'the features of 1797' in log
  digits_run.assert_equal(run.result.state, result.state)
  (path,) = (tmp_path / 'run/features').glob('validation*')
  with np.load(path) as file:
    rows = dict(file)
  rows['feature'] += 1e-3
  np.savez(path, **rows)
  with pytest.raises(ValueError, match='features, have changed'):
    train.train_and_evaluate(make_config(), workdir)
  assert 'using the features in' in capfd.readouterr().err


def test_a_dry_run_of_one_strength_computes_nothing(capfd):
  config = make_config(validation='', l2_strengths=(0.1,), total_steps=1)
  dry_run.show(config)
  log = capfd.readouterr().err
  assert 'a run first computes the features of 1797 images' in log
  assert '1 steps of 1424 images' in log  # 1420, and padding


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'l2_strengths': ()}, 'greater than 0'),
    ({'l2_strengths': (0.1, -1)}, r'\(0.1, -1\) must be .* greater than 0'),
    ({'l2_strengths': (0.1, 0.1)}, 'must be different'),
    ({'total_steps': 5}, 'total_steps=5 must be 4: .* 3 values'),
    ({'l2_strengths': (0.1,)}, 'config.total_steps=1'),
    ({'freeze': ''}, r"only the head.*config.freeze='\(\?!head/\)"),
    ({'pretrained_head': 'keep'}, "config.pretrained_head='fresh'"),
    ({'pp.flip': True}, 'without random changes. Use config.pp.flip=False'),
    ({'pp.min_area': 0.5}, 'config.pp.min_area=1'),
    ({'accum_steps': 2}, 'config.accum_steps=1'),
    ({'model.dtype': 'bfloat16'}, 'config.model.dtype='),
    ({'patience': 3}, 'config.patience=0'),
    ({'mesh.fsdp': 2}, 'config.mesh.fsdp=1'),
    ({'mesh.tensor': 2}, 'config.mesh.tensor=1'),
    ({'model.classifier': 'unpooled'}, 'token, gap or map'),
  ],
)
def test_settings_that_do_not_suit_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    setup.check(make_config(**settings))


def test_several_processes_are_refused(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='runs in one process, not in 2'):
    linear_probe.check(make_config())


def test_weights_that_leave_the_features_random_are_refused(run, tmp_path):
  config = make_config(pretrained=run.workdir)
  config.model.classifier = 'token'
  with pytest.raises(ValueError, match='has no weights for cls, .*classifier'):
    train.train_and_evaluate(config, str(tmp_path))
  assert not (tmp_path / 'features').exists()


def test_padding_does_not_change_the_loss():
  rng = np.random.default_rng(0)
  params = {'head': {'kernel': rng.normal(size=(4, 3)), 'bias': np.ones(3)}}
  batch = {
    'feature': rng.normal(size=(5, 4)),
    'label': np.arange(5) % 3,
    'mask': np.float32([1, 1, 1, 0, 0]),
  }
  context = task.Context(key=None, step=np.int32(0), train=True)
  loss = linear_probe.make_loss((0.5,))
  padded, *_ = loss(params, batch, context)
  only, *_ = loss(params, {k: x[:3] for k, x in batch.items()}, context)
  np.testing.assert_allclose(padded.mean(), only.mean(), rtol=1e-6)
  plain, *_ = loss(params, batch, context.replace(train=False))
  penalty = 0.25 * (params['head']['kernel'] ** 2).sum()
  np.testing.assert_allclose(only - plain[:3], np.full(3, penalty), rtol=1e-5)


def test_data_that_do_not_suit_are_named_before_features_are_computed():
  images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
  mesh = setup.check(make_config())

  def check(labels, **settings):
    given = given_arrays.from_arrays(
      images, labels, **settings.pop('given', {'num_classes': 2})
    )
    config = make_config(**settings)
    data = setup.load_data(config, mesh, given)
    linear_probe.make_encoder(config, data)

  check(labels)
  with pytest.raises(ValueError, match='config.validation=0.1'):
    check(labels, validation='')
  check(labels, validation='', l2_strengths=(0.1,), total_steps=1)
  with pytest.raises(ValueError, match="at least two .*1: 'a'"):
    check(labels * 0, given={'class_names': ('a',)})
  with pytest.raises(ValueError, match="all 18 are of the class '1'"):
    check(labels * 0 + 1)
  with pytest.raises(ValueError, match='label has the dtype float'):
    check(np.full((20, 2), 0.9))
  source = dataclasses.replace(
    setup.load_data(make_config(), mesh).sources['train'],
    batches=iter,
    read=None,
  )
  data = dataclasses.replace(
    setup.load_data(make_config(), mesh), sources={'train': source}
  )
  with pytest.raises(ValueError, match='from_arrays'):
    linear_probe.make_encoder(make_config(), data)
  config = make_config(**{'model.name': 'testing-unpooled'})
  config.model.classifier = None
  with pytest.raises(ValueError, match=r'shape \[1, 4, 32\]'):
    linear_probe.make_encoder(config, setup.load_data(config, mesh))


def test_ties_are_decided_by_the_loss_and_edges_are_named():
  state = {
    'accuracy': np.float32([0.5, 0.75, 0.75]),
    'loss': np.float32([0.1, 0.4, 0.3]),
  }
  assert evaluator.best(state) == 2
  for l2, others, expected in (
    (0.1, (1.0, 0.5), 'add smaller'),
    (0.1, (0.01, 0.05), 'add larger'),
    (0.1, (0.01, 1.0), None),
  ):
    line = linear_probe.describe_choice(state, (*others, l2))
    assert 'of 3 strengths' in line and 'l2=0.1, accuracy 75.00 %' in line
    assert expected in line if expected else 'add' not in line
  for step, index in enumerate((0, 1, 2, 2)):
    found = linear_probe.strength_at(step, state, STRENGTHS)
    assert found == np.float32(STRENGTHS[index])
