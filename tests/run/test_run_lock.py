"""Only one run at a time uses a folder; a removed folder stays removed."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from tests.digits_run import make_config
from vit_jax import train
from vit_jax.run import run_lock


@pytest.fixture(autouse=True)
def fixture_quick_beats(monkeypatch):
  monkeypatch.setattr(run_lock, '_BEAT_SECONDS', 0.05)
  monkeypatch.setattr(run_lock, '_PATIENCE_SECONDS', 0.5)


def locks(folder):
  return sorted(name for name in os.listdir(folder) if 'lock' in name)


def leave_lock(folder, **owner):
  """Writes the lock file of a run that was killed."""
  (folder / '.lock-7').write_text(json.dumps({'id': 'x', 'beat': 3, **owner}))


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(json, 'dumps', fail)
  with pytest.raises(OSError, match='No space'):
    run_lock.RunLock(str(tmp_path)).acquire()
  assert locks(tmp_path) == []


def test_a_folder_that_became_read_only_does_not_hide_the_error(
  tmp_path, monkeypatch
):
  def refuse(path):
    raise PermissionError(13, 'Permission denied', path)

  lock = run_lock.RunLock(str(tmp_path))
  lock.acquire()
  monkeypatch.setattr(os, 'remove', refuse)
  with pytest.raises(KeyError), lock:
    raise KeyError('the error of the run')


def ended_process():
  """Returns (pid, start time) of a process of this machine that has ended."""
  process = subprocess.Popen(
    [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE
  )
  started = run_lock._process(process.pid)[1]
  assert started
  process.communicate()
  return process.pid, started


def test_a_second_run_is_rejected_until_the_first_has_ended(tmp_path):
  with run_lock.RunLock(tmp_path) as lock:
    lock.acquire()
    with pytest.raises(
      ValueError,
      match=(
        f'another run writes into {tmp_path}: process {os.getpid()} on .*'
        ' workdir='
      ),
    ):
      run_lock.RunLock(tmp_path).acquire()
    lock.check()
    assert locks(tmp_path) == ['.lock-1']
  assert not locks(tmp_path)
  with run_lock.RunLock(tmp_path) as lock:
    lock.acquire()


def test_a_killed_run_does_not_block_another_run(tmp_path, monkeypatch):
  """The killed run's process id may now belong to another process."""
  monkeypatch.setattr(run_lock, '_PATIENCE_SECONDS', 60)
  pid, started = ended_process()
  for owner in (
    {'pid': pid, 'started': started},
    {'pid': os.getpid(), 'started': '1'},
  ):
    leave_lock(tmp_path, machine=run_lock._machine(), **owner)
    start = time.monotonic()
    with run_lock.RunLock(tmp_path) as lock:
      lock.acquire()
      assert locks(tmp_path) == ['.lock-8']
    assert time.monotonic() - start < 5


@pytest.mark.parametrize('content', ['', '{"id": "y", "machine": "other"}'])
def test_a_run_waits_for_the_lock_of_another_machine(tmp_path, content):
  """It is taken over only if its content does not change."""
  path = tmp_path / '.lock-3'
  path.write_text(content)
  start = time.monotonic()
  with run_lock.RunLock(tmp_path) as lock:
    lock.acquire()
  assert time.monotonic() - start > 0.4
  path.write_text(content)
  timer = threading.Timer(0.2, lambda: path.write_text(content + ' '))
  timer.start()
  with pytest.raises(ValueError, match='another run writes into'):
    run_lock.RunLock(tmp_path).acquire()
  timer.join()


def test_a_stopped_process_keeps_its_lock(tmp_path):
  """It may continue at any time, for example with Ctrl-Z and fg."""
  process = subprocess.Popen(['sleep', '60'])
  leave_lock(
    tmp_path,
    machine=run_lock._machine(),
    pid=process.pid,
    started=run_lock._process(process.pid)[1],
  )
  try:
    process.send_signal(19)  # SIGSTOP
    while run_lock._process(process.pid)[0] != 'T':
      time.sleep(0.01)
    with pytest.raises(ValueError, match=f'process {process.pid}'):
      run_lock.RunLock(tmp_path).acquire()
  finally:
    process.kill()
    process.wait()


def test_only_one_of_many_runs_takes_over_a_lock(tmp_path):
  for attempt in range(5):
    leave_lock(tmp_path, machine=run_lock._machine(), pid=1, started='1')
    barrier, won, refused = threading.Barrier(8), [], []

    def race(barrier=barrier, won=won, refused=refused):
      lock = run_lock.RunLock(tmp_path)
      barrier.wait()
      try:
        lock.acquire()
      except ValueError:
        refused.append(lock)
      else:
        won.append(lock)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert (len(won), len(refused)) == (1, 7), attempt
    assert len(locks(tmp_path)) == 1
    won[0].check()
    won[0].release()
    assert not locks(tmp_path)


def test_a_run_that_lost_its_lock_ends(tmp_path):
  first, second = run_lock.RunLock(tmp_path), run_lock.RunLock(tmp_path)
  first.acquire()
  first._released.set()  # like a frozen machine: the lock is not renewed
  second.acquire()
  with pytest.raises(OSError, match=f'another run has taken over {tmp_path}'):
    first.check()
  first.release()
  second.check()
  second.release()


def remove(folder):
  shutil.rmtree(folder)


def rename(folder):
  os.rename(folder, f'{folder}-2')


@pytest.mark.parametrize('change', [remove, rename])
def test_a_run_whose_folder_is_gone_ends(tmp_path, change):
  steps = []

  def hook(step, state, metrics):
    steps.append(step)
    if step == 2:
      change(tmp_path / 'run')

  with pytest.raises(OSError, match=f'{tmp_path}/run was removed or renamed'):
    train.train_and_evaluate(
      make_config(checkpoint_every=1, eval_every=0),
      str(tmp_path / 'run'),
      hooks=[hook],
    )
  assert steps == [1, 2]


def test_a_folder_is_free_again_after_a_run_that_failed(tmp_path):
  def fail(step, state, metrics):
    with pytest.raises(ValueError, match='another run writes into'):
      train.train_and_evaluate(make_config(), str(tmp_path))
    raise KeyError(step)

  with pytest.raises(KeyError):
    train.train_and_evaluate(make_config(), str(tmp_path), hooks=[fail])
  assert not locks(tmp_path)
