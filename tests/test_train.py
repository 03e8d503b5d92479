import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tests.test_image_folder import write_images
from vit_jax import base_config
from vit_jax import checkpoint
from vit_jax import evaluate
from vit_jax import models
from vit_jax import preemption
from vit_jax import scalars
from vit_jax import train


ROOT = pathlib.Path(__file__).parent.parent


def make_config(**settings):
  """A run of seconds on the digits."""
  config = base_config.for_dataset('digits')
  config.pretrained = 'scratch'
  config.model.name = 'testing'
  config.model.patch_size = 4
  config.pp.update(dict(crop=8, min_area=0.5))
  config.update(dict(
      batch=32, batch_eval=128, accum_steps=2, total_steps=8, warmup_steps=2,
      log_every=2, eval_every=4, checkpoint_every=4))
  config.update(settings)
  return config


def rows_of(workdir):
  return scalars.read(os.path.join(workdir, 'metrics.jsonl'))


def without_rates(rows):
  return [{k: v for k, v in row.items() if not k.startswith('images_per')}
          for row in rows]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(name='finished', scope='module')
def fixture_finished(tmp_path_factory):
  """(workdir, state, results) of an undisturbed run."""
  workdir = str(tmp_path_factory.mktemp('finished'))
  return workdir, *train.train_and_evaluate(make_config(), workdir)


def test_what_a_run_leaves(finished):
  workdir, state, results = finished
  assert int(state.step) == 8
  assert sorted(os.listdir(f'{workdir}/checkpoints')) == ['4', '8']
  files = os.listdir(workdir)
  assert {'config.json', 'class_names.json', 'metrics.jsonl',
          'progress.png'} <= set(files)
  assert any('tfevents' in name for name in files)
  with open(f'{workdir}/class_names.json', encoding='utf-8') as file:
    assert json.load(file) == list('0123456789')
  with open(f'{workdir}/progress.png', 'rb') as file:
    assert file.read(8) == b'\x89PNG\r\n\x1a\n'
  rows = rows_of(workdir)
  assert [row['step'] for row in rows] == [2, 4, 6, 8]
  assert set(rows[-1]) == {
      'step', 'train_loss', 'lr', 'grad_norm', 'images_per_second_per_device',
      'accuracy_test', 'loss_test'}
  assert rows[-1] == results
  assert 'accuracy_test' not in rows[0]
  # The rate of update 1 is 0, of update 3 the base: logged is the applied one.
  assert rows[0]['lr'] == pytest.approx(0.015)


def test_scalars_are_in_tensorboard_too(finished):
  from tensorboard.backend.event_processing import event_accumulator
  events = event_accumulator.EventAccumulator(finished[0])
  events.Reload()
  tags = events.Tags()['tensors']
  assert {'train_loss', 'lr', 'accuracy_test', 'loss_test',
          'images_per_second_per_device'} <= set(tags)
  assert [e.step for e in events.Tensors('train_loss')] == [2, 4, 6, 8]


class Interrupted(Exception):
  """Ends a run in the middle."""


def interrupt_at(step):
  def hook(now, state, metrics):
    if now == step:
      raise Interrupted
  return hook


def test_interrupted_equals_uninterrupted_bit_for_bit(finished, tmp_path):
  """Between checkpoints, with a row to drop: of step 6, after that of 4.

  Before the first checkpoint is `test_killed_while_saving…`, at the steps of
  checkpoints `test_sigterm_saves…`.
  """
  _, state, results = finished
  with pytest.raises(Interrupted):
    train.train_and_evaluate(
        make_config(), str(tmp_path), hooks=[interrupt_at(8)])
  assert rows_of(tmp_path)[-1]['step'] == 6
  steps = []
  resumed, resumed_results = train.train_and_evaluate(
      make_config(), str(tmp_path), hooks=[lambda s, *_: steps.append(s)])
  assert steps == [5, 6, 7, 8]
  assert_equal(resumed, state)
  assert without_rates([resumed_results]) == without_rates([results])
  assert without_rates(rows_of(tmp_path)) == without_rates(
      rows_of(finished[0]))


def test_a_finished_run_is_not_run_again(finished):
  workdir, state, results = finished
  before = rows_of(workdir)
  again, again_results = train.train_and_evaluate(
      make_config(), workdir, hooks=[interrupt_at(9)])
  assert_equal(again, state)
  assert again_results == results and rows_of(workdir) == before


def test_other_settings_are_refused_and_shown(finished):
  workdir = finished[0]
  before = sorted(os.listdir(workdir)), rows_of(workdir)
  with pytest.raises(ValueError, match=(
      r'other settings:\n  config.base_lr: 0.03 in the folder, 0.1 now\n'
      r'  config.pp.flip: True in the folder, False now\n.*--workdir')):
    config = make_config(base_lr=0.1)
    config.pp.flip = False
    train.train_and_evaluate(config, workdir)
  assert (sorted(os.listdir(workdir)), rows_of(workdir)) == before


def test_settings_that_are_new_or_leave_the_result_do_not_refuse(
    finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  stored = json.loads((workdir / 'config.json').read_text())
  del stored['skip_nonfinite']  # as if this version had added it
  (workdir / 'config.json').write_text(json.dumps(stored))
  train.train_and_evaluate(
      make_config(keep=1, pretrained_dir='elsewhere'), str(workdir))
  with pytest.raises(ValueError, match='skip_nonfinite: 0 in the folder, 3'):
    train.train_and_evaluate(make_config(skip_nonfinite=3), str(finished[0]))


def test_a_folder_without_checkpoints_may_change_its_settings(tmp_path):
  """A run that failed early does not stand in the way of the mended one.

  This one is also never to report but at its end.
  """
  with pytest.raises(Interrupted):
    train.train_and_evaluate(
        make_config(log_every=1), str(tmp_path), hooks=[interrupt_at(3)])
  assert [row['step'] for row in rows_of(tmp_path)] == [1, 2]
  train.train_and_evaluate(
      make_config(total_steps=3, log_every=0, eval_every=0, checkpoint_every=0),
      str(tmp_path))
  assert [row['step'] for row in rows_of(tmp_path)] == [3]
  assert os.listdir(tmp_path / 'checkpoints') == ['3']


def test_a_finished_run_that_lost_its_numbers_is_evaluated(finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  os.remove(workdir / 'metrics.jsonl')
  _, results = train.train_and_evaluate(make_config(), str(workdir))
  for name in ('step', 'accuracy_test', 'loss_test'):
    assert results[name] == finished[2][name]


def test_a_change_of_classes_is_refused(finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  (workdir / 'class_names.json').write_text('["0", "1", "zebra"]')
  with pytest.raises(
      ValueError, match='data have changed .*other classes.*zebra'):
    train.train_and_evaluate(make_config(), str(workdir))


def test_a_half_written_line_is_dropped_on_resuming(finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  shutil.rmtree(workdir / 'checkpoints/8')
  with open(workdir / 'metrics.jsonl', 'a', encoding='utf-8') as file:
    file.write('{"step": 1')
  train.train_and_evaluate(make_config(), str(workdir))
  assert without_rates(rows_of(workdir)) == without_rates(rows_of(finished[0]))


def test_a_half_deleted_checkpoint_is_one_line_on_the_terminal(
    finished, tmp_path, capfd):
  """The run goes on from the one before and ends in the same bits."""
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  shutil.rmtree(workdir / 'checkpoints/8/state/d')
  os.remove(workdir / 'checkpoints/8/state/manifest.ocdbt')
  state, results = train.train_and_evaluate(make_config(), str(workdir))
  assert_equal(state, finished[1])
  assert without_rates([results]) == without_rates([finished[2]])
  said = capfd.readouterr().err
  assert said.startswith('warning: the checkpoint of step 8 is damaged and now '
                         f'in {workdir}/checkpoints_damaged/8: d/')
  assert said.count('\n') < 12 and 'Event loop' not in said


def test_seams(tmp_path):
  """The loss, the evaluators and the hooks of a caller are used."""
  calls = []
  _, results = train.train_and_evaluate(
      make_config(total_steps=4), str(tmp_path),
      loss_fn=lambda logits, labels: 3.0 + 0 * logits[:, 0],
      evaluators={'mine': lambda state: {'steps': state.step}},
      hooks=[lambda step, state, metrics: calls.append(step)])
  assert calls == [1, 2, 3, 4]
  assert results['steps_mine'] == 4.0
  assert results['train_loss'] == results['loss_test'] == 3.0
  with pytest.raises(ValueError, match="'test' is taken"):
    train.train_and_evaluate(make_config(), str(tmp_path), evaluators={
        'test': lambda state: {}})


def test_no_accumulation_and_one_step(tmp_path):
  train.train_and_evaluate(
      make_config(total_steps=1, warmup_steps=0, accum_steps=1, log_every=1),
      str(tmp_path))
  row, = rows_of(tmp_path)
  assert 'images_per_second_per_device' not in row  # it would be compilation


def test_fine_tunes_a_file_on_a_folder_of_wide_images(tmp_path):
  for name, color in (('dark', 0), ('bright', 200)):
    write_images(tmp_path / 'photos' / name,
                 [f'{i}.png' for i in range(30)], color)
  config = make_config(total_steps=4, dataset=str(tmp_path / 'photos'),
                       pretrained='model', pretrained_dir=str(tmp_path))
  config.model.patch_size = 16
  config.pp.update(dict(crop=32, crop_width=64))
  config.base_lr = 1e-9  # the file's values stay

  with pytest.raises(ValueError, match='(?s)testing.npz.*pretrained=scratch'):
    train.train_and_evaluate(config, str(tmp_path / 'run'))

  shapes = jax.eval_shape(lambda: models.get_model(
      'testing', num_classes=5).init(
          jax.random.key(0), np.zeros((1, 64, 64, 3)), train=False))
  params = reference.params_like(shapes['params'])
  checkpoint.save(tmp_path / 'testing.npz', params)
  state, _ = train.train_and_evaluate(config, str(tmp_path / 'run'))
  found = jax.device_get(state.params)
  np.testing.assert_allclose(found['embedding']['kernel'],
                             params['embedding']['kernel'], atol=1e-6)
  positions = found['Transformer']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 1 + 2 * 4, 10)
  assert found['head']['kernel'].shape == (10, 2)

  # The photos may move, and may not become others.
  os.rename(tmp_path / 'photos', tmp_path / 'moved')
  config.dataset = str(tmp_path / 'moved')
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  next((tmp_path / 'moved/dark').glob('*.png')).unlink()
  with pytest.raises(ValueError, match=r'data have changed .*\(.* images then'):
    train.train_and_evaluate(config, str(tmp_path / 'run'))


def test_killed_while_saving_it_ends_in_the_same_bits(finished, tmp_path):
  """A process of its own dies as soon as the checkpoint of step 4 is begun."""
  done = subprocess.run([sys.executable, '-c', f"""
import os, signal, time
from tests.test_train import make_config
from vit_jax import integrity, train
def kill(folder):
  os.kill(os.getpid(), signal.SIGKILL)
integrity.seal = kill
train.train_and_evaluate(make_config(), {str(tmp_path)!r})"""],
      cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
      capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not any(name.isdigit() for name in os.listdir(
      tmp_path / 'checkpoints')) and os.listdir(tmp_path / 'checkpoints')
  resumed, results = train.train_and_evaluate(make_config(), str(tmp_path))
  assert_equal(resumed, finished[1])
  assert without_rates([results]) == without_rates([finished[2]])
  assert without_rates(rows_of(tmp_path)) == without_rates(
      rows_of(finished[0]))


def test_sigterm_saves_the_step_and_the_resumed_run_ends_in_the_same_bits(
    finished, tmp_path):
  """Also in the middle of an evaluation, which the resumed run makes up for."""
  def terminate_at(step):
    def hook(now, state, metrics):
      if now == step:
        os.kill(os.getpid(), signal.SIGTERM)
    return hook

  before = signal.getsignal(signal.SIGTERM)
  for step in (3, 4, 8):  # 4 and 8 are evaluated
    with pytest.raises(preemption.Preempted):
      train.train_and_evaluate(
          make_config(), str(tmp_path), hooks=[terminate_at(step)])
    assert str(step) in os.listdir(tmp_path / 'checkpoints')
    last = rows_of(tmp_path)[-1]
    assert last['step'] == step // 2 * 2 and 'accuracy_test' not in last
  assert signal.getsignal(signal.SIGTERM) is before
  # Again, in the evaluation that makes up for the one at step 8.
  evaluate_all = evaluate.evaluate
  def terminated(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluate_all(*args)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluate, 'evaluate', terminated)
    with pytest.raises(preemption.Preempted):
      train.train_and_evaluate(make_config(), str(tmp_path))
  resumed, results = train.train_and_evaluate(make_config(), str(tmp_path))
  assert_equal(resumed, finished[1])
  assert without_rates([results]) == without_rates([finished[2]])
  assert without_rates(rows_of(tmp_path)) == without_rates(
      rows_of(finished[0]))


def test_the_best_by_a_metric_is_saved_at_its_evaluation(tmp_path, capsys):
  values = iter([0.1, 0.9, 0.3, 0.2])
  train.train_and_evaluate(
      make_config(eval_every=2, checkpoint_every=8, keep=1,
                  best_metric='luck_mine'), str(tmp_path),
      evaluators={'mine': lambda state: {'luck': next(values)}})
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['4', '8']
  assert f'best luck_mine after 4 steps: {tmp_path}/checkpoints/4' in (
      capsys.readouterr().err)
  with pytest.raises(ValueError, match="config.best_metric='accuracy'.*"
                     'accuracy_test, loss_test'):
    train.train_and_evaluate(make_config(best_metric='accuracy'),
                             str(tmp_path / 'other'))


def not_finite(steps):
  """A loss that is NaN in these steps of a run, counted from 1."""
  count = iter(range(1, 100))
  def loss_fn(logits, labels):
    del labels
    step = jax.experimental.io_callback(
        lambda: np.int32(next(count)), jax.ShapeDtypeStruct((), np.int32),
        ordered=False)
    bad = jnp.isin(step, jnp.array(steps))
    return jnp.where(bad, jnp.nan, 1.0) * jnp.sum((logits - 1)**2, -1)
  return loss_fn


def test_a_loss_that_is_not_finite_stops_the_run_at_once(tmp_path):
  with pytest.raises(ValueError, match=(
      r'loss is nan at step 5 \(learning rate .*base_lr.*skip_nonfinite.*'
      'last checkpoint is that of step 4')):
    train.train_and_evaluate(
        make_config(accum_steps=1, log_every=8, eval_every=0), str(tmp_path),
        loss_fn=not_finite([5]))
  assert os.listdir(tmp_path / 'checkpoints') == ['4']


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path):
  """Two in a row, and later one too many."""
  states = []
  settings = dict(accum_steps=1, log_every=1, eval_every=0, checkpoint_every=0,
                  skip_nonfinite=2)
  with pytest.raises(ValueError, match='at step 8 .* 3 in a row'):
    train.train_and_evaluate(
        make_config(**settings), str(tmp_path),
        loss_fn=not_finite([3, 4, 6, 7, 8]),
        hooks=[lambda _, s, m: states.append(jax.device_get(s.params))])
  assert_equal(states[1], states[3])
  assert not np.array_equal(states[3]['head']['kernel'],
                            states[4]['head']['kernel'])
  rows = rows_of(tmp_path)
  assert [row['skipped_updates'] for row in rows] == [0, 0, 1, 2, 2, 3, 4]
  assert ['train_loss' in row for row in rows] == [
      True, True, False, False, True, False, False]


@pytest.mark.parametrize('settings, message', [
    ({'total_steps': 0}, 'config.total_steps=0 must be greater than 0'),
    ({'warmup_steps': 8}, 'warmup_steps 8 must be less than total_steps 8'),
    ({'batch': 33}, 'config.batch=33 is not divisible .*=32'),
    ({'batch_eval': 20}, 'config.batch_eval=20 is not divisible by 8 dev'),
    ({'momentum': 1.0}, 'config.momentum=1.0 must be from 0 to below 1'),
    ({'pp.min_area': 0.0}, 'config.pp.min_area=0.0 must be greater than 0'),
    ({'model.patch_size': 0}, 'patch_size 0 must be 1 or more'),
    ({'model.dropout_rate': 1.0}, 'dropout_rate 1.0 must be'),
    ({'eval_every': -1}, 'config.eval_every=-1 must be at least 0'),
    ({'momentum_dtype': 'fp8'}, "config.momentum_dtype='fp8' is not one of"),
    ({'model.dtype': 'half'}, "config.model.dtype='half' is not one of"),
    ({'model.name': 'c16'}, "no model is named 'c16'"),
    ({'model.classifier': 'unpooled'}, 'needs one answer an image'),
    ({'pp.crop': 9}, 'height 9 is not a multiple of the patch size 4'),
    ({'pretrained': 'model'}, '(?s)no weights found .*pretrained=scratch'),
    ({'decay_type': 'none'}, "decay_type 'none' is not one of"),
    ({'optimizer': 'lamb'}, "optimizer 'lamb' is not one of")])
def test_mistakes_stop_the_run_before_it_begins(tmp_path, settings, message):
  config = make_config()
  config.update_from_flattened_dict(settings)
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(config, str(tmp_path))
  assert not (tmp_path / 'config.json').exists()
  assert rows_of(tmp_path) == []
