"""Runs that stop: Ctrl-C, faults, or checkpoints that cannot be written."""

import dataclasses
import errno
import os
import signal
import time
import types

import pytest

from tests.digits_run import assert_equal
from tests.digits_run import make_config
from tests.digits_run import without_rates
from vit_jax import train
from vit_jax.checkpoint import checksums
from vit_jax.run import stopping
from vit_jax.tasks import classification


@pytest.fixture(name='handler')
def fixture_handler():
  """Installs SIGINT's handler, which is missing if pytest runs with `&`."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield signal.default_int_handler
  signal.signal(signal.SIGINT, before)


def interrupt(step, times):
  """Returns a hook that presses Ctrl-C."""

  def hook(now, state, metrics):
    for _ in range(times if now == step else 0):
      signal.raise_signal(signal.SIGINT)

  return hook


def test_ctrl_c_saves_the_step_and_a_second_one_stops_at_once(
  finished, tmp_path, capsys, handler
):
  with pytest.raises(KeyboardInterrupt):
    train.train_and_evaluate(
      make_config(), str(tmp_path), hooks=[interrupt(3, times=1)]
    )
  assert os.listdir(tmp_path / 'checkpoints') == ['3']
  output = capsys.readouterr().err
  assert 'second Ctrl-C stops at once' in output
  assert 'resume from step 3' in output and 'the same command' in output
  with pytest.raises(KeyboardInterrupt):
    train.train_and_evaluate(
      make_config(), str(tmp_path), hooks=[interrupt(6, times=2)]
    )
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['3', '4']
  assert 'resume from step 4' in capsys.readouterr().err
  assert signal.getsignal(signal.SIGINT) is handler
  resumed, results, *_ = train.train_and_evaluate(make_config(), str(tmp_path))
  assert_equal(resumed, finished[1])
  assert without_rates([results]) == without_rates([finished[2]])


@pytest.mark.parametrize('is_late', [False, True])
def test_a_save_that_fails_is_reported_by_the_next_step(
  tmp_path, monkeypatch, is_late
):
  """The save fails at once, or after Orbax has written the arrays."""
  steps = []

  def hook(step, state, metrics):
    steps.append(step)
    if step == 1 and not is_late:
      os.rename(tmp_path / 'checkpoints', tmp_path / 'moved')
      (tmp_path / 'checkpoints').touch()
    if step == 3:
      time.sleep(1)

  def seal(folder):
    raise OSError(errno.EDQUOT, 'Disk quota exceeded')

  monkeypatch.setattr(checksums, 'write_checksums', seal)
  with pytest.raises(
    OSError,
    match=(
      'a checkpoint cannot be written to .*checkpoints .*'
      + ('quota' if is_late else 'Not a directory')
    ),
  ):
    train.train_and_evaluate(
      make_config(checkpoint_every=2, eval_every=0), str(tmp_path), hooks=[hook]
    )
  assert steps[-1] == (3 if is_late else 2)


def test_patience_waits_for_a_finite_value():
  log = types.SimpleNamespace(rows=[{'step': 2, 'accuracy_test': 0.3}])
  patience = stopping.Patience('luck_mine', 'max', 1, log)
  patience(2, None, {'luck_mine': float('nan')})
  log.rows += [{'step': i, 'luck_mine': 0.5} for i in (4, 6)]
  with pytest.raises(stopping.Stop, match='luck_mine has not improved in 1'):
    patience(6, None, log.rows[-1])


def test_a_run_stops_at_the_third_logged_step_in_a_row_with_a_fault(tmp_path):
  faults, seen = (2, 4, 8, 10, 12, 14), []

  def find_fault(step, metrics):
    seen.append(step)
    assert metrics['train_loss'] > 0
    return 'the features collapsed' if step in faults else ''

  def make_task(config, data):
    made = classification.make(config, data)
    return dataclasses.replace(made, find_fault=find_fault)

  config = make_config(total_steps=16, accum_steps=1)
  config.update(dict(eval_every=0, checkpoint_every=0))
  with pytest.raises(
    ValueError, match='^at step 12, the features collapsed. The last checkpoint'
  ):
    train.train_and_evaluate(config, str(tmp_path), task=make_task)
  assert seen == [2, 4, 6, 8, 10, 12]
