import json
import os
import shutil
import types

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tests.data.test_image_folder import write_images
from tests.digits_run import assert_equal
from tests.digits_run import make_config
from tests.digits_run import rows_of
from vit_jax import console
from vit_jax import models
from vit_jax import train
from vit_jax.checkpoint import weights_file
from vit_jax.parallel import sharding
from vit_jax.run import checkpointing
from vit_jax.run import setup


def test_files_of_a_run(finished):
  workdir, state, results = finished
  assert int(state.step) == 8
  assert sorted(os.listdir(f'{workdir}/checkpoints')) == ['4', '8']
  files = os.listdir(workdir)
  assert {
    'config.json',
    'class_names.json',
    'metrics.jsonl',
    'progress.png',
  } <= set(files)
  assert 'augmented.png' not in files  # without config.augment
  assert any('tfevents' in name for name in files)
  with open(f'{workdir}/class_names.json', encoding='utf-8') as file:
    assert json.load(file) == list('0123456789')
  with open(f'{workdir}/progress.png', 'rb') as file:
    assert file.read(8) == b'\x89PNG\r\n\x1a\n'
  rows = rows_of(workdir)
  assert [row['step'] for row in rows] == [2, 4, 6, 8]
  assert set(rows[-1]) == {
    'step',
    'train_loss',
    'lr',
    'grad_norm',
    'images_per_second_per_device',
    'accuracy_test',
    'balanced_accuracy_test',
    'loss_test',
  }
  assert rows[-1] == results
  assert 'accuracy_test' not in rows[0]
  # Update 1 has rate 0 and update 3 the base rate. The applied rate is logged.
  assert rows[0]['lr'] == pytest.approx(0.015)


def test_scalars_are_in_tensorboard_too(finished):
  from tensorboard.backend.event_processing import event_accumulator

  events = event_accumulator.EventAccumulator(finished[0])
  events.Reload()
  tags = events.Tags()['tensors']
  assert {
    'train_loss',
    'lr',
    'accuracy_test',
    'balanced_accuracy_test',
    'loss_test',
    'images_per_second_per_device',
  } <= set(tags)
  assert [e.step for e in events.Tensors('train_loss')] == [2, 4, 6, 8]


def test_loss_evaluators_and_hooks_of_the_caller(tmp_path, monkeypatch):
  """The loss, the evaluators and the hooks of a caller are used.

  The images per second count only the steps. The test's clock makes
  compilation, evaluation and saving slow.
  """
  calls, now = [], [0.0]
  monkeypatch.setattr(
    console, 'time', types.SimpleNamespace(monotonic=lambda: now[0])
  )
  save = checkpointing.Checkpoints.save

  def slow_save(*args):
    now[0] += 300
    save(*args)

  def evaluate(state):
    now[0] += 300
    return {'steps': state.step}

  put_batch = sharding.put_batch

  def slow_put_batch(*args):
    now[0] += 2 if calls else 300
    return put_batch(*args)

  monkeypatch.setattr(sharding, 'put_batch', slow_put_batch)
  monkeypatch.setattr(checkpointing.Checkpoints, 'save', slow_save)
  _, results, *_ = train.train_and_evaluate(
    make_config(total_steps=6, eval_every=2, checkpoint_every=3),
    str(tmp_path),
    loss_fn=lambda logits, labels: 3.0 + 0 * logits[:, 0],
    evaluators={'mine': evaluate},
    hooks=[lambda step, *_: calls.append(step)],
  )
  assert calls == [1, 2, 3, 4, 5, 6]
  assert results['steps_mine'] == 6.0
  assert results['train_loss'] == results['loss_test'] == 3.0
  rates = [row['images_per_second_per_device'] for row in rows_of(tmp_path)]
  assert rates == [pytest.approx(32 / 2 / jax.device_count())] * 3
  with pytest.raises(
    ValueError, match="the names 'test' and 'validation' .*another name"
  ):
    train.train_and_evaluate(
      make_config(), str(tmp_path), evaluators={'test': lambda state: {}}
    )


@pytest.mark.parametrize(
  'loss_fn, shape',
  [
    (lambda logits, labels: jnp.mean(logits), r'\[\]'),
    (lambda logits, labels: jnp.sum(logits, -1, keepdims=True), r'\[16, 1\]'),
    (lambda logits, labels: logits, r'\[16, 10\]'),
  ],
)
def test_a_loss_without_one_value_per_example_is_rejected(
  tmp_path, loss_fn, shape
):
  steps = []
  with pytest.raises(
    ValueError,
    match=f'the loss has the shape {shape} for 16 examples.* \\[16\\]',
  ):
    train.train_and_evaluate(
      make_config(),
      str(tmp_path),
      loss_fn=loss_fn,
      hooks=[lambda step, *_: steps.append(step)],
    )
  assert not steps


def test_a_full_disk_is_an_error_before_the_first_step(tmp_path, monkeypatch):
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0)
  )
  with pytest.raises(OSError, match='0.0 MB are free'):
    train.train_and_evaluate(
      make_config(), str(tmp_path), hooks=[lambda step, *_: 1 / 0]
    )


def make_parts(config):
  return setup.make_parts(
    config, setup.check(config), setup.get_datasets(config)
  )


@pytest.mark.slow
def test_the_seed_determines_the_first_step(tmp_path):
  """The seed determines parameters, batch and dropout (no micro-batches)."""
  settings = dict(
    total_steps=1, warmup_steps=0, accum_steps=1, log_every=1, base_lr=1e-9
  )
  config = make_config(**settings, seed=1)
  state, *_ = train.train_and_evaluate(config, str(tmp_path))
  (row,) = rows_of(tmp_path)
  assert 'images_per_second_per_device' not in row  # the first step compiles

  batch = next(setup.get_datasets(config).train(0))
  parts = make_parts(config)
  for seed, is_same in ((1, True), (0, False)):
    other = make_parts(make_config(**settings, seed=seed))
    first = other.init_fn(other.keys.init)
    assert is_same == np.allclose(
      first.params['embedding']['kernel'],
      state.params['embedding']['kernel'],
      atol=1e-7,
    )
    # Only dropout uses this seed. Parameters and batch are those of the run.
    _, metrics = other.make_update(1)(
      parts.init_fn(parts.keys.init),
      sharding.put_batch(batch, sharding.make_mesh()),
      None,
    )
    assert is_same == (float(metrics['grad_norm']) == row['grad_norm'])


@pytest.mark.slow
def test_fine_tunes_a_file_on_a_folder_of_wide_images(tmp_path):
  for name, color in (('dark', 0), ('bright', 200)):
    write_images(
      tmp_path / 'photos' / name, [f'{i}.png' for i in range(30)], color
    )
  config = make_config(
    total_steps=4,
    dataset=str(tmp_path / 'photos'),
    pretrained='model',
    pretrained_dir=str(tmp_path),
  )
  config.model.patch_size = 16
  config.pp.update(dict(crop=32, crop_width=64))
  config.base_lr = 1e-9  # almost keeps the values of the file

  with pytest.raises(ValueError, match='(?s)testing.npz.*pretrained=scratch'):
    train.train_and_evaluate(config, str(tmp_path / 'run'))

  shapes = jax.eval_shape(
    lambda: models.get_model('testing', num_classes=5).init(
      jax.random.key(0), np.zeros((1, 64, 64, 3)), train=False
    )
  )
  params = reference.params_like(shapes['params'])
  weights_file.save(tmp_path / 'testing.npz', params)
  state, *_ = train.train_and_evaluate(config, str(tmp_path / 'run'))
  trained = jax.device_get(state.params)
  np.testing.assert_allclose(
    trained['embedding']['kernel'], params['embedding']['kernel'], atol=1e-6
  )
  positions = trained['Transformer']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 1 + 2 * 4, 10)
  assert trained['head']['kernel'].shape == (10, 2)

  found = json.loads((tmp_path / 'run/data_check.json').read_text())
  assert sum(found['images'].values()) == 60 and found['kinds'] == {'PNG': 60}
  assert found['equal_files_in_two_splits'] == []

  # The photos may be moved, but not changed.
  os.rename(tmp_path / 'photos', tmp_path / 'moved')
  config.dataset = str(tmp_path / 'moved')
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  next((tmp_path / 'moved/dark').glob('*.png')).unlink()
  with pytest.raises(ValueError, match=r'data have changed .*\(.* images then'):
    train.train_and_evaluate(config, str(tmp_path / 'run'))


@pytest.mark.slow
def test_the_best_by_a_metric_is_saved_at_its_evaluation(tmp_path, capsys):
  values = iter([0.1, 0.9, 0.3, 0.2])
  _, results, *_ = train.train_and_evaluate(
    make_config(
      eval_every=2,
      checkpoint_every=8,
      keep=1,
      best_metric='luck_mine',
      best_direction='max',
    ),
    str(tmp_path),
    evaluators={'mine': lambda state: {'luck': next(values)}},
  )
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['4', '8']
  output = capsys.readouterr().err
  accuracy, loss = results['accuracy_test'], results['loss_test']
  balanced = results['balanced_accuracy_test']
  for text in (
    'digits: 1420 training and 377 test images in 10 classes\n',
    'starting from random weights: 8 steps of 32 images, 0.2 epochs\n',
    f'step 8/8  accuracy_test {accuracy:.4f}  balanced_accuracy_test '
    f'{balanced:.4f}  loss_test {loss:.4f}  luck_min',
    f'done: accuracy {100 * accuracy:.2f} % on 377 test images, balanced '
    f'accuracy {100 * balanced:.2f} %, loss {loss:.4f}, after 8 steps\n',
    f'best luck_mine after 4 steps: {tmp_path}/checkpoints/4\n',
  ):
    assert text in output, (text, output)
  with pytest.raises(
    ValueError, match="config.best_metric='accuracy'.*accuracy_test, loss_test"
  ):
    train.train_and_evaluate(
      make_config(best_metric='accuracy'), str(tmp_path / 'other')
    )
  with pytest.raises(ValueError, match="'luck_mine'.*best_direction=max or"):
    train.train_and_evaluate(
      make_config(best_metric='luck_mine'),
      str(tmp_path / 'other'),
      evaluators={'mine': lambda state: {'luck': 0}},
    )


def not_finite(steps):
  """Returns a loss that is NaN in these steps, counted from 1."""
  count = iter(range(1, 100))

  def loss_fn(logits, labels):
    del labels
    step = jax.experimental.io_callback(
      lambda: np.int32(next(count)),
      jax.ShapeDtypeStruct((), np.int32),
      ordered=False,
    )
    bad = jnp.isin(step, jnp.array(steps))
    return jnp.where(bad, jnp.nan, 1.0) * jnp.sum((logits - 1) ** 2, -1)

  return loss_fn


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'mae': {'mask_ratio': 0.5}}, 'config.mae.mask_ratio=0.5 .*task=mae, not'),
    ({'l2_strengths': (1.0,)}, r'config.l2_strengths=\(1.0,\) .*linear_probe'),
    ({'pretrained_head': 'keep'}, 'config.pretrained=scratch uses none'),
    (
      {'best_direction': 'max'},
      "config.best_direction='max' is only used with",
    ),
  ],
)
def test_settings_that_nothing_reads_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    setup.check(make_config(**settings))


def test_a_loss_that_is_not_finite_stops_the_run_at_once(tmp_path):
  with pytest.raises(
    ValueError,
    match=(
      r'loss is nan at step 5 \(learning rate .*config.base_lr.*'
      r'config.skip_nonfinite.*last checkpoint .*step 4'
    ),
  ):
    train.train_and_evaluate(
      make_config(accum_steps=1, log_every=8, eval_every=0),
      str(tmp_path),
      loss_fn=not_finite([5]),
    )
  assert os.listdir(tmp_path / 'checkpoints') == ['4']


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path):
  """Two bad updates in a row are skipped. Three in a row stop the run."""
  states = []
  settings = dict(
    accum_steps=1,
    log_every=1,
    eval_every=0,
    checkpoint_every=0,
    skip_nonfinite=2,
  )
  with pytest.raises(ValueError, match='at step 8 .* 3 .*in a row'):
    train.train_and_evaluate(
      make_config(**settings),
      str(tmp_path),
      loss_fn=not_finite([3, 4, 6, 7, 8]),
      hooks=[lambda _, s, m: states.append(jax.device_get(s.params))],
    )
  assert_equal(states[1], states[3])
  assert not np.array_equal(
    states[3]['head']['kernel'], states[4]['head']['kernel']
  )
  rows = rows_of(tmp_path)
  assert [row['skipped_updates'] for row in rows] == [0, 0, 1, 2, 2, 3, 4]
  assert ['train_loss' in row for row in rows] == [
    True,
    True,
    False,
    False,
    True,
    False,
    False,
  ]


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'total_steps': 0}, 'config.total_steps=0 must be greater than 0'),
    ({'warmup_steps': 8}, 'config.warmup_steps=8 .*total_steps=8'),
    ({'batch': 33}, 'config.batch=33 .* 8 device.*batch=32'),
    ({'batch_eval': 20}, 'config.batch_eval=20 .* by 8 dev'),
    ({'seed': -1}, 'config.seed=-1 must be at least 0'),
    ({'seed': 2**32}, 'config.seed=4294967296 must be less than 4294967296'),
    ({'seed': 2**70}, 'config.seed=.* must be less than 4294967296'),
    ({'momentum': 0.99}, 'config.momentum=0.99 .*momentum_dtype=float32'),
    ({'momentum': 1.0}, 'config.momentum=1.0 must be at least 0 and below 1'),
    ({'pp.min_area': 0.0}, 'config.pp.min_area=0.0 must be greater than 0'),
    ({'model.patch_size': 0}, 'patch_size=0 must be 1 or more'),
    ({'model.dropout_rate': 1.0}, 'dropout_rate=1.0 must be .* below 1'),
    ({'eval_every': -1}, 'config.eval_every=-1 must be at least 0'),
    ({'patience': 3, 'eval_every': 0}, 'patience=3 counts evaluations'),
    ({'momentum_dtype': 'fp8'}, "config.momentum_dtype='fp8' is not one of"),
    ({'model.dtype': 'half'}, "config.model.dtype='half' is not one of"),
    ({'model.name': 'c16'}, "'c16'.*ViT-"),
    ({'model.classifier': 'unpooled'}, "'unpooled' .*token, gap or map"),
    ({'pp.crop': 9}, 'height 9 .*patch size 4.* 8 or 12'),
    ({'pretrained': 'model'}, '(?s)no weights found .*pretrained=scratch'),
    ({'decay_type': 'none'}, "config.decay_type='none' .*cosine"),
    ({'optimizer': 'lamp'}, "config.optimizer='lamp' .*sgd"),
  ],
)
def test_mistakes_stop_the_run_before_it_begins(tmp_path, settings, message):
  config = make_config()
  config.update_from_flattened_dict(settings)
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(config, str(tmp_path))
  assert not (tmp_path / 'config.json').exists()
  assert rows_of(tmp_path) == []
