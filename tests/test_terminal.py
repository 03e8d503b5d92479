"""A run continues without its terminal; a failed program ends immediately."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from tests import compilation
from tests import ROOT

ENVIRONMENT = {**os.environ, 'PYTHONPATH': str(ROOT)}


@pytest.mark.slow
def test_a_run_continues_when_its_terminal_is_closed(tmp_path):
  """The end of an ssh session sends SIGHUP, and writing to stderr fails."""
  terminal, stream = pty.openpty()
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'vit_jax.main',
      f'--config={ROOT}/configs/quickstart.py',
      '--config.total_steps=40',
      '--config.warmup_steps=1',
      '--config.log_every=1',
      '--config.model.num_layers=1',
      '--config.model.hidden_size=16',
      '--config.model.mlp_dim=16',
      '--config.batch=8',
      f'--workdir={tmp_path}',
    ],
    stdin=stream,
    stdout=stream,
    stderr=stream,
    start_new_session=True,
    env={**ENVIRONMENT, 'XLA_FLAGS': compilation.FLAGS},
  )
  os.close(stream)
  output = b''
  while b'first step done' not in output:
    output += os.read(terminal, 1000)
  os.close(terminal)
  process.send_signal(signal.SIGHUP)
  assert process.wait() == 0
  log = (tmp_path / 'log.txt').read_text()
  assert 'done: ' in log and 'step 39/40' in log and 'Error' not in log
  assert os.listdir(tmp_path / 'checkpoints') == ['40']


def run(code, environment=(), **streams):
  return subprocess.run(
    [
      sys.executable,
      '-c',
      'from vit_jax import console\n'
      f'from vit_jax.commands import errors\n{code}',
    ],
    env={**ENVIRONMENT, **dict(environment)},
    cwd=ROOT,
    timeout=60,
    check=False,
    **streams,
  )


def test_a_file_does_not_replace_a_closed_stream(tmp_path):
  done = run(f"""
import os, sys
os.closerange(0, 3)
sys.stdin = sys.stdout = sys.stderr = None
def main():
  with open({str(tmp_path / 'file')!r}, 'w') as file:
    assert file.fileno() > 2
    os.write(2, b'a message of a library')
    console.log_info('a message')
    print('a number')
    with errors.quiet():
      pass
errors.start(main)""")
  assert done.returncode == 0
  assert (tmp_path / 'file').read_text() == ''


def test_a_name_that_the_terminal_cannot_show_is_escaped():
  done = run(
    "errors.start(lambda: print('żółw'))",
    environment={'PYTHONIOENCODING': 'ascii'},
    stdout=subprocess.PIPE,
  )
  assert done.returncode == 0
  assert done.stdout == b'\\u017c\\xf3\\u0142w\n'


def test_a_program_continues_after_its_reader_has_ended(tmp_path):
  """Like `program 2>&1 | head -n 1`, after `head` has ended."""
  reading, writing = os.pipe()
  os.close(reading)
  done = run(
    f"""
def main():
  console.start_logging({str(tmp_path)!r})
  for i in range(3):
    console.log_info(f'message {{i}}')
errors.start(main)""",
    stdout=writing,
    stderr=writing,
  )
  os.close(writing)
  assert done.returncode == 0
  assert (tmp_path / 'log.txt').read_text().count('message') == 3


def test_a_program_with_a_bar_continues_without_a_reader(tmp_path):
  reading, writing = os.pipe()
  os.close(reading)
  done = run(
    f"""
import time
console._QUIET_SECONDS = 0
def main():
  console.start_logging({str(tmp_path)!r})
  for _ in console.counting(range(5), 5, 'evaluating'):
    time.sleep(0.2)
  console.log_info('a message')
errors.start(main)""",
    stdout=writing,
    stderr=writing,
  )
  os.close(writing)
  assert done.returncode == 0
  assert 'a message' in (tmp_path / 'log.txt').read_text()


def test_a_program_that_fails_does_not_wait_for_threads():
  """Threads of Orbax wait for a folder for up to five minutes."""
  done = run(
    """
import threading, time
threading.Thread(target=time.sleep, args=[300]).start()
errors.start(lambda: errors.exit_with_error('no'))""",
    stderr=subprocess.PIPE,
  )
  assert done.returncode == 2 and done.stderr == b'error: no\n'


def test_messages_of_libjpeg_are_hidden_and_others_remain():
  done = run(
    r"""
import os, sys
def main():
  os.write(2, b"Corrupt JPEG data: 3 extraneous bytes\nfirst\n")
  console.log_info('of Python')
  with errors.quiet():
    print('while loading', file=sys.stderr)
    os.write(2, b'of a library, while loading\n')
  os.write(2, b'Premature end of JPEG file\nlast, without an end')
  os.abort()
errors.start(main)""",
    stderr=subprocess.PIPE,
  )
  lines = done.stderr.splitlines()
  assert {b'first', b'of Python'} < set(lines)
  assert done.stderr.count(b'last, without an end') == 1
  assert b'Fatal Python error: Aborted' in done.stderr
  for text in (b'JPEG', b'while loading'):
    assert text not in done.stderr
