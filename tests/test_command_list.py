"""`python -m vit_jax` lists commands and starts them, without slow imports."""

import os
import subprocess
import sys

import pytest

from tests import ROOT
from vit_jax import __main__ as vit_jax_main
from vit_jax.commands import predict

COMMANDS = {'evaluate', 'export', 'predict', 'zero_shot'}
SLOW = ('absl', 'jax', 'ml_collections', 'numpy', 'orbax', 'tensorflow')


def test_the_list_imports_no_library():
  code = f"""
import sys
from vit_jax import __main__
assert __main__.main([]) == 0
assert not set({SLOW}) & set(sys.modules)
ours = [name for name in sys.modules if name.startswith('vit_jax.')]
assert len(ours) <= 5, ours"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    text=True,
    capture_output=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert done.stdout.startswith('usage: python -m vit_jax COMMAND')


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h'], ['help']])
def test_each_command_has_a_line(argv, capsys):
  assert vit_jax_main.main(argv) == 0
  shown = capsys.readouterr().out
  for name in COMMANDS:
    (line,) = (row for row in shown.splitlines() if row.split()[:1] == [name])
    assert line.endswith('.') and len(line.split()) > 3
  assert 'python -m vit_jax.main --config=' in shown


def test_commands_are_files_with_a_main():
  found = vit_jax_main.find_commands()
  assert COMMANDS <= set(found)
  assert not {'arguments', 'errors', 'workdir', '__init__'} & set(found)
  for name, line in found.items():
    assert len(f'  {name}  {line}') <= 80


def test_arguments_and_status_are_those_of_the_command(monkeypatch):
  given = []
  monkeypatch.setattr(predict, 'main', lambda argv: given.append(argv) or 1)
  assert vit_jax_main.main(['predict', 'run', '--top=2']) == 1
  assert given == [['run', '--top=2']]


@pytest.mark.parametrize(
  'name, message',
  [
    ('predikt', "there is no command 'predikt'; did you mean 'predict'?"),
    ('xyz', "there is no command 'xyz': the commands are evaluate, export,"),
    ('arguments', "there is no command 'arguments'"),
  ],
)
def test_a_command_that_does_not_exist(name, message, capsys):
  with pytest.raises(SystemExit) as ended:
    vit_jax_main.main([name])
  shown = capsys.readouterr().err
  assert ended.value.code == 2
  assert shown.startswith(f'error: {message}') and shown.count('\n') == 1


@pytest.mark.parametrize('name', sorted(COMMANDS))
def test_help_of_a_command_loads_neither_jax_nor_tensorflow(name):
  code = f"""
import sys
from vit_jax import __main__
try:
  __main__.main([{name!r}, '--help'])
except SystemExit as ended:
  assert ended.code == 0
assert not {{'jax', 'tensorflow'}} & set(sys.modules)"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    text=True,
    capture_output=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert done.stdout.startswith(f'usage: python -m vit_jax {name} ')
  assert f'\n  python -m vit_jax {name} ' in done.stdout  # an example
  assert 'Exit status: 0' in done.stdout
