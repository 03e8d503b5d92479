"""Runs that resume after a stop, and run folders that have changed."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests import ROOT
from tests.digits_run import assert_equal
from tests.digits_run import interrupt_at
from tests.digits_run import Interrupted
from tests.digits_run import make_config
from tests.digits_run import rows_of
from tests.digits_run import without_rates
from vit_jax import train
from vit_jax.checkpoint import metadata
from vit_jax.evaluators import predictions
from vit_jax.files import json_files
from vit_jax.parallel import preemption
from vit_jax.run import active_run
from vit_jax.run import run_files


def test_interrupted_equals_uninterrupted_bit_for_bit(finished, tmp_path):
  """The stop is between checkpoints. The rows of steps 6 and 8 are replaced.

  `test_killed_while_saving…` stops before the first checkpoint, and
  `test_sigterm_saves…` stops at the steps of checkpoints.
  """
  _, state, results = finished
  with pytest.raises(Interrupted):
    train.train_and_evaluate(
      make_config(), str(tmp_path), hooks=[interrupt_at(8)]
    )
  assert rows_of(tmp_path)[-1]['step'] == 8
  steps = []
  resumed, resumed_results, *_ = train.train_and_evaluate(
    make_config(), str(tmp_path), hooks=[lambda s, *_: steps.append(s)]
  )
  assert steps == [4, 5, 6, 7, 8]  # 4 is the step of the checkpoint
  assert_equal(resumed, state)
  assert without_rates([resumed_results]) == without_rates([results])
  assert without_rates(rows_of(tmp_path)) == without_rates(rows_of(finished[0]))


def test_a_finished_run_is_not_run_again(finished):
  workdir, state, results = finished
  before = rows_of(workdir)
  again, again_results, *_ = train.train_and_evaluate(
    make_config(), workdir, hooks=[interrupt_at(9)]
  )
  assert_equal(again, state)
  assert again_results == results and rows_of(workdir) == before


def test_other_settings_are_rejected_and_shown(finished):
  workdir = finished[0]
  before = sorted(os.listdir(workdir)), rows_of(workdir)
  with pytest.raises(
    ValueError,
    match=(
      r'(?s)\n  config.base_lr=0.03 in the folder, 0.1 now\n'
      r'  config.pp.flip=True in the folder, False now\n.* workdir='
    ),
  ):
    config = make_config(base_lr=0.1)
    config.pp.flip = False
    train.train_and_evaluate(config, workdir)
  assert (sorted(os.listdir(workdir)), rows_of(workdir)) == before


def test_only_settings_without_effect_on_the_result_may_change(
  finished, tmp_path
):
  stored = metadata.read_config(finished[0])
  may_change = set()
  for name in stored:
    other = 7 if name.startswith('pp.crop') else 'other'
    json_files.write_json(f'{tmp_path}/config.json', {**stored, name: other})
    try:
      run_files.check_config(str(tmp_path), make_config(), 4)
      may_change.add(name)
    except ValueError as error:
      assert f'\n  config.{name}={other!r} in the folder' in str(error)
  assert may_change == {
    'mesh.data',
    'mesh.fsdp',
    'mesh.tensor',
    'batch_eval',
    'checkpoint_every',
    'compilation_cache_dir',
    'device_data_bytes',
    'eval_every',
    'eval_only',
    'keep',
    'log_every',
    'model.attention',
    'model.remat',
    'model.scan',
    'patience',
    'pretrained_dir',
    'tfds_data_dir',
    'tracker',
    'weights_sources',
  }


def test_new_settings_and_settings_without_effect_are_accepted(
  finished, tmp_path
):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  stored = json.loads((workdir / 'config.json').read_text())
  del stored['skip_nonfinite']  # as in a run of an earlier version
  (workdir / 'config.json').write_text(json.dumps(stored))
  train.train_and_evaluate(
    make_config(keep=1, pretrained_dir='elsewhere'), str(workdir)
  )
  with pytest.raises(ValueError, match='skip_nonfinite=0 in the folder, 3'):
    train.train_and_evaluate(make_config(skip_nonfinite=3), str(finished[0]))


@pytest.mark.slow
def test_a_folder_without_checkpoints_may_change_its_settings(tmp_path):
  """A run that failed early does not block a run with corrected settings.

  The second run logs, evaluates and saves only at its end.
  """
  with pytest.raises(Interrupted):
    train.train_and_evaluate(
      make_config(log_every=1), str(tmp_path), hooks=[interrupt_at(3)]
    )
  assert [row['step'] for row in rows_of(tmp_path)] == [1, 2, 3]
  train.train_and_evaluate(
    make_config(total_steps=3, log_every=0, eval_every=0, checkpoint_every=0),
    str(tmp_path),
  )
  assert [row['step'] for row in rows_of(tmp_path)] == [3]
  assert os.listdir(tmp_path / 'checkpoints') == ['3']


def test_a_finished_run_that_lost_its_metrics_is_evaluated(finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  os.remove(workdir / 'metrics.jsonl')
  _, results, *_ = train.train_and_evaluate(make_config(), str(workdir))
  for name in ('step', 'accuracy_test', 'loss_test'):
    assert results[name] == finished[2][name]


def test_a_change_of_classes_is_rejected(finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  (workdir / 'class_names.json').write_text('["0", "1", "zebra"]')
  with pytest.raises(
    ValueError, match='data have changed .*other classes.*zebra'
  ):
    train.train_and_evaluate(make_config(), str(workdir))


def test_a_half_written_line_is_dropped_on_resuming(finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  shutil.rmtree(workdir / 'checkpoints/8')
  with open(workdir / 'metrics.jsonl', 'a', encoding='utf-8') as file:
    file.write('{"step": 1')
  train.train_and_evaluate(make_config(), str(workdir))
  assert without_rates(rows_of(workdir)) == without_rates(rows_of(finished[0]))


def test_a_half_deleted_checkpoint_gives_one_line_on_the_terminal(
  finished, tmp_path, capfd
):
  """The run resumes from the earlier checkpoint; its result is identical."""
  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  shutil.rmtree(workdir / 'checkpoints/8/state/d')
  os.remove(workdir / 'checkpoints/8/state/manifest.ocdbt')
  state, results, *_ = train.train_and_evaluate(make_config(), str(workdir))
  assert_equal(state, finished[1])
  assert without_rates([results]) == without_rates([finished[2]])
  output = capfd.readouterr().err
  warning = output.partition('\n')[0]
  for text in ('step 8', '(d/', f'{workdir}/checkpoints_damaged/8', 'step 4'):
    assert text in warning, (text, warning)
  assert output.count('\n') < 14 and 'Event loop' not in output


@pytest.mark.slow
def test_killed_while_saving_the_run_resumes_bit_for_bit(finished, tmp_path):
  """The process is killed at the start of the checkpoint of step 4."""
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      f"""
import os, signal, time
from tests.digits_run import make_config
from vit_jax import train
from vit_jax.checkpoint import checksums
def kill(folder):
  os.kill(os.getpid(), signal.SIGKILL)
checksums.write_checksums = kill
train.train_and_evaluate(make_config(), {str(tmp_path)!r})""",
    ],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not any(
    name.isdigit() for name in os.listdir(tmp_path / 'checkpoints')
  ) and os.listdir(tmp_path / 'checkpoints')
  resumed, results, *_ = train.train_and_evaluate(make_config(), str(tmp_path))
  assert_equal(resumed, finished[1])
  assert without_rates([results]) == without_rates([finished[2]])
  assert without_rates(rows_of(tmp_path)) == without_rates(rows_of(finished[0]))


def without_luck(rows):
  return without_rates(
    [
      {name: value for name, value in row.items() if name != 'luck_mine'}
      for row in rows
    ]
  )


@pytest.fixture(name='watched')
def fixture_watched():
  """A SIGTERM outside of a run fails the test, not the entire test session."""

  def fail(*_):
    raise AssertionError('SIGTERM outside of a run')

  before = signal.signal(signal.SIGTERM, fail)
  yield fail
  signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_the_step_and_the_run_resumes_bit_for_bit(
  finished, tmp_path, watched, capsys
):
  """An interrupted evaluation is repeated by the resumed run.

  The best evaluation, at step 4, is interrupted. Its checkpoint is kept.
  """

  log = active_run.ActiveRun.log

  def train_until(step=None):
    def terminate(run, now, metrics):
      log(run, now, metrics)
      if now == step:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(active_run.ActiveRun, 'log', terminate)
      return train.train_and_evaluate(
        make_config(keep=1, best_metric='luck_mine', best_direction='max'),
        str(tmp_path),
        evaluators={'mine': lambda state: {'luck': -int(state.step)}},
      )

  for step in (3, 4, 8):  # 4 and 8 are evaluated
    with pytest.raises(preemption.Preempted):
      train_until(step)
    assert str(step) in os.listdir(tmp_path / 'checkpoints')
    last = rows_of(tmp_path)[-1]
    assert last['step'] == step // 2 * 2 and 'accuracy_test' not in last
  assert signal.getsignal(signal.SIGTERM) is watched
  # SIGTERM again, in the repeated evaluation of step 8.
  gather_all = predictions.gather

  def terminated(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return gather_all(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(predictions, 'gather', terminated)
    with pytest.raises(preemption.Preempted):
      train_until()
  resumed, results, _ = train_until()
  assert_equal(resumed, finished[1])
  assert without_luck([results]) == without_rates([finished[2]])
  assert without_luck(rows_of(tmp_path)) == without_rates(rows_of(finished[0]))
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['4', '8']
  assert 'best luck_mine after 4 steps' in capsys.readouterr().err
