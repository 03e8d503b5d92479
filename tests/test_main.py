import os
import subprocess
import sys
import time

import pytest

from tests import ROOT
from vit_jax import main

QUICKSTART = f'--config={ROOT}/configs/quickstart.py'


def run(*args, cwd, env=None):
  return subprocess.run(
    [sys.executable, '-m', 'vit_jax.main', *args],
    cwd=cwd,
    text=True,
    capture_output=True,
    check=False,
    env={**os.environ, 'PYTHONPATH': str(ROOT), **(env or {})},
  )


@pytest.mark.parametrize(
  'config, folder',
  [
    ('configs/quickstart.py', 'quickstart'),
    ('/home/me/.pyenv/x.py:a', 'x-a'),
    ('vit.py:b16,/my.py/photos', 'vit-b16-my.py-photos'),
    ('configs/vit.py:s16,cifar100', 'vit-s16-cifar100'),
    ('/a/b/vit.py:ti16,/path/to/photos/', 'vit-ti16-path-to-photos'),
  ],
)
def test_default_workdir(config, folder):
  assert main.default_workdir(config) == os.path.join('workdirs', folder)


def test_help_is_quick(tmp_path):
  start = time.monotonic()
  done = run('--help', cwd=tmp_path)
  assert time.monotonic() - start < 2
  assert 'python -m vit_jax.main --config=' in done.stdout
  assert '--workdir' in done.stdout


@pytest.mark.parametrize(
  'args, message',
  [
    ([], '--config is missing'),
    (['--config=nope.py'], 'nope.py: no such file'),
    (['--config', 'nope.py:x'], 'nope.py:x: no such file'),
    ([QUICKSTART + ':cpu'], 'quickstart.py:cpu: this config takes no argument'),
    (
      [QUICKSTART, '--config.bach=3'],
      "--config.bach=3: there is no setting 'bach'; did you mean 'batch'?",
    ),
    ([QUICKSTART, '--config.pp.cropp=3'], "did you mean 'crop'?"),
    ([QUICKSTART, '--config.batch=x'], 'invalid literal for int() with base'),
    ([QUICKSTART, '--workdr=x'], 'Did you mean: workdir'),
    ([QUICKSTART, 'batch=3'], "unknown argument 'batch=3'"),
    (
      [f'--config={ROOT}/configs/cifar10_scratch.py:tpu'],
      'cifar10_scratch.py:tpu: not one of gpu, cpu',
    ),
  ],
)
def test_a_mistake_is_one_line(args, message, tmp_path):
  done = run(*args, cwd=tmp_path)
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stderr.startswith('error: ')
  assert done.stderr.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_a_mistake_found_by_the_run_is_one_line_with_its_trace_in_the_log(
  tmp_path,
):
  done = run(QUICKSTART, '--config.model.name=b61', cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith("error: no model is named 'b61'")
  assert done.stderr.count('\n') == 1
  log = (tmp_path / 'workdirs/quickstart/log.txt').read_text()
  assert 'Traceback' in log and "'b61'" in log


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  done = run(QUICKSTART, f'--workdir={tmp_path}/file/run', cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr == (
    f'error: --workdir={tmp_path}/file/run cannot be written: Not a directory\n'
  )
