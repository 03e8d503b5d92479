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


def error_of(args, capsys):
  """Returns the line that `main` prints for a wrong command line."""
  with pytest.raises(SystemExit) as ended:
    main.main(args)
  shown = capsys.readouterr()
  assert ended.value.code == 2 and not shown.out
  assert shown.err.startswith('error: ') and shown.err.count('\n') == 1
  return shown.err


@pytest.mark.parametrize(
  'args, message',
  [
    ([], '--config is missing'),
    (['--config=nope.py'], 'error: --config=nope.py: no such file'),
    (['--config', 'nope.py:x'], 'nope.py:x: no such file'),
    (['--config'], 'argument --config: expected one argument'),
    ([QUICKSTART + ':cpu'], 'this config takes no argument. Use --config='),
    (
      [QUICKSTART, '--config.bach=3'],
      "--config.bach=3: there is no setting 'bach'; did you mean 'batch'?",
    ),
    (
      ['--config.bach', '3', QUICKSTART],
      "--config.bach: there is no setting 'bach'; did you mean 'batch'?",
    ),
    (
      [QUICKSTART, '--config.pp.cropp=3'],
      "there is no setting 'pp.cropp'; did you mean 'pp.crop'?",
    ),
    ([QUICKSTART, '--config.crop=3'], "did you mean 'pp.crop'?"),
    (
      [QUICKSTART, '--config.xyzzy=3'],
      "no setting 'xyzzy'. All settings are in vit_jax/base_config.py",
    ),
    (
      [QUICKSTART, '--config.batch=x'],
      "argument --config.batch: 'x' is not an integer",
    ),
    (
      [QUICKSTART, '--config.base_lr', 'fast'],
      "argument --config.base_lr: 'fast' is not a number",
    ),
    (
      [QUICKSTART, '--config.pp.flip=maybe'],
      "argument --config.pp.flip: 'maybe' is neither true nor false",
    ),
    (
      [QUICKSTART, '--workdr=x'],
      "unrecognized argument '--workdr=x' (did you mean --workdir?)",
    ),
    ([QUICKSTART, '--dry_run=perhaps'], "'perhaps' is neither true nor false"),
    ([QUICKSTART, '--num_processes=0'], "'0' is not an integer of 1 or more"),
    ([QUICKSTART, '--process_id=-1'], "'-1' is not an integer of 0 or more"),
    ([QUICKSTART, 'batch=3'], "unknown argument 'batch=3'"),
    (
      [f'--config={ROOT}/configs/cifar10_scratch.py:tpu'],
      'cifar10_scratch.py:tpu: the argument must be gpu, gpu,EPOCHS, cpu ',
    ),
  ],
)
def test_a_mistake_is_one_line(args, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert message in error_of(args, capsys)
  assert not list(tmp_path.iterdir())


def test_a_mistake_ends_the_process_with_one_line(tmp_path):
  done = run(QUICKSTART, '--config.bach=3', cwd=tmp_path)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr == (
    "error: --config.bach=3: there is no setting 'bach'; "
    "did you mean 'batch'?\n"
  )
  assert not list(tmp_path.iterdir())


def test_help_lists_the_settings_of_the_config(capsys):
  with pytest.raises(SystemExit) as ended:
    main.main([QUICKSTART, '--help'])
  assert ended.value.code == 0
  shown = capsys.readouterr().out
  assert '--config.pp.crop INT' in shown and '--config.total_steps' in shown
  assert "'ViT-Ti_16'" in shown  # a value of this config
  assert len(shown[: shown.index('Trains')].splitlines()) < 4  # the usage
  # Help shows the comments of base_config and the values of this config.
  assert 'Schedule (in steps' in shown
  assert 'Learning rate after warm-up. (default: 0.002)' in shown
  assert max(map(len, shown.splitlines())) <= 80


def test_a_message_of_the_library_names_a_flag(tmp_path):
  """tests/commands/test_errors.py has the rules."""
  done = run(QUICKSTART, '--config.momentum=2', '--dry_run', cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith('error: --config.momentum=2.0 must be')


def test_the_arguments_of_a_run():
  args = main.parse_arguments(
    [
      *('--config', f'{ROOT}/configs/vit.py:b16,cifar100'),
      *('--workdir=w', '--dry_run', '--config.pp.crop=224'),
      *('--coordinator', 'host:80', '--num_processes=2', '--process_id=0'),
    ]
  )
  assert args.config.pp.crop == 224 and args.config.dataset == 'cifar100'
  assert args.config_name == f'{ROOT}/configs/vit.py:b16,cifar100'
  assert args.workdir == 'w' and args.dry_run is True
  assert args.coordinator == 'host:80'
  assert (args.num_processes, args.process_id) == (2, 0)
  args = main.parse_arguments([QUICKSTART])
  assert args.workdir is None and args.dry_run is False
  assert args.coordinator is args.num_processes is args.process_id is None
  assert not main.parse_arguments([QUICKSTART, '--dry_run=false']).dry_run
  assert not main.parse_arguments([QUICKSTART, '--nodry_run']).dry_run


def test_a_mistake_found_by_the_run_is_one_line_with_its_trace_in_the_log(
  tmp_path,
):
  done = run(QUICKSTART, '--config.model.name=b61', cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.startswith('error: ') and "'b61'" in done.stderr
  assert done.stderr.count('\n') == 1
  log = (tmp_path / 'workdirs/quickstart/log.txt').read_text()
  assert 'Traceback' in log and "'b61'" in log


def test_a_folder_that_cannot_be_created(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  assert error_of([QUICKSTART, f'--workdir={tmp_path}/file/run'], capsys) == (
    f'error: --workdir={tmp_path}/file/run cannot be written: Not a directory. '
    'Choose another folder.\n'
  )
