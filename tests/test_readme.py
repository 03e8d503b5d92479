"""README's commands: the first is run, the others name configs that load."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests import ROOT
from vit_jax import __main__
from vit_jax import base_config
from vit_jax import main

README = (ROOT / 'README.md').read_text()


def commands(text):
  return re.findall(r'^python -m vit_jax\.main .*$', text, re.MULTILINE)


def block(name):
  """The command block that follows a mark."""
  return re.search(
    rf'<!-- {name} -->\n```bash\n(.*?)```', README, re.DOTALL
  ).group(1)


@pytest.mark.parametrize(
  'overrides, least',
  [
    (['--config.total_steps=150'], 50),
    pytest.param([], 97, marks=pytest.mark.slow),
  ],
)
def test_the_first_command_trains(overrides, least, tmp_path):
  (command,) = commands(block('quickstart'))
  done = subprocess.run(
    [
      sys.executable,
      *shlex.split(command)[1:],
      *overrides,
      f'--workdir={tmp_path}',
    ],
    cwd=ROOT,
    text=True,
    capture_output=True,
    check=True,
    env={**os.environ, 'XLA_FLAGS': ''},
  )  # as a newcomer has it
  accuracy = re.search(r'done: ([\d.]+) % of 377 test images', done.stderr)
  assert float(accuracy.group(1)) >= least
  for said in (
    'left',
    f'written to {tmp_path}',
    'tensorboard --logdir',
    '--config=configs/vit.py:',
  ):
    assert said in done.stderr
  assert done.stderr.count('\n') < 40 and not done.stdout


@pytest.mark.parametrize(
  'command',
  [
    *commands(README),
    *(
      c
      for path in sorted((ROOT / 'configs').glob('*.py'))
      for c in commands(path.read_text().replace('\n  python', '\npython'))
    ),
  ],
)
def test_commands_name_configs_and_settings_that_exist(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  command = command.replace('--process_id=I', '--process_id=1')
  arguments = shlex.split(command, comments=True)[3:]
  base_config.validate(main.parse_arguments(arguments).config)


def test_commands_exist():
  named = set(re.findall(r'python -m vit_jax (\w+)', README))
  assert named and named <= set(__main__.find_commands())


def test_the_test_command_is_what_ci_calls():
  assert 'python -m pytest -q tests' in block('tests')
  ci = (ROOT / '.ci/run').read_text()
  assert '<!-- tests -->' in ci and 'pytest' not in ci


def test_the_map_names_every_module():
  code_map = (ROOT / 'docs/code_map.md').read_text()
  for path in (ROOT / 'vit_jax').rglob('*.py'):
    if path.name != '__init__.py':
      assert re.search(rf'[`/]{path.name}`', code_map), path
  for path in (ROOT / 'configs').glob('*.py'):
    assert f'`{path.name}' in README, path.name
