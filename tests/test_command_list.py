"""`python -m vit_jax` lists commands and starts them, without slow imports."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests import ROOT
from vit_jax import __main__ as vit_jax_main
from vit_jax import main as training
from vit_jax.commands import predict

COMMANDS = sorted(vit_jax_main.find_commands())
SLOW = ('absl', 'jax', 'ml_collections', 'numpy', 'orbax', 'tensorflow')


def module_of(command):
  """Returns the module of a command; '' is training."""
  if not command:
    return training
  return importlib.import_module(f'vit_jax.commands.{command}')


def page_of(command):
  return module_of(command).make_parser().format_help()


def examples_in(page):
  """Returns [(description, command line)] of a help page."""
  section = re.search(r'^Examples:\n((?:  .*\n)+)', page, re.MULTILINE)
  text = section[1].replace('\\\n', '')
  return re.findall(r'^  (\S.*):\n    (python -m .*)$', text, re.MULTILINE)


def parse(line):
  """Parses an example with the parser of its command."""
  line = re.sub(r' > \S+$', '', line)
  name, *argv = shlex.split(line)[2:]
  if name == 'vit_jax.main':
    return training.parse_arguments(argv)
  assert name == 'vit_jax'
  return module_of(argv[0]).make_parser().parse_intermixed_args(argv[1:])


def test_the_list_imports_no_library():
  code = f"""
import sys
from vit_jax import __main__
assert __main__.main([]) == 0
assert not set({SLOW}) & set(sys.modules)
ours = [name for name in sys.modules if name.startswith('vit_jax.')]
assert len(ours) <= 7, ours"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    text=True,
    capture_output=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert done.stdout.startswith('Usage: python -m vit_jax COMMAND')


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h'], ['help']])
def test_each_command_has_a_line(argv, capsys, monkeypatch):
  assert vit_jax_main.main(argv) == 0
  shown = capsys.readouterr().out
  for name in COMMANDS:
    (line,) = (row for row in shown.splitlines() if row.split()[:1] == [name])
    assert line.endswith('.') and len(line.split()) > 3
  assert max(map(len, shown.splitlines())) <= 80
  assert 'Training:\n  python -m vit_jax.main --config=' in shown
  assert 'python -m vit_jax COMMAND --help' in shown
  examples = examples_in(shown)
  assert len(examples) == 3
  monkeypatch.chdir(ROOT)
  for _, line in examples:
    parse(line)


def test_commands_are_files_with_a_main():
  assert {'evaluate', 'export', 'predict', 'zero_shot'} <= set(COMMANDS)
  assert not {'arguments', 'errors', 'workdir', '__init__'} & set(COMMANDS)


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_help_has_three_examples_that_parse(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  examples = examples_in(page_of(command))
  assert len(examples) == 3
  for description, line in examples:
    assert len(description.split()) > 3
    assert f'{line} '.startswith(
      f'python -m vit_jax {command} ' if command else 'python -m vit_jax.main '
    )
    parse(line)
  assert len({line for _, line in examples}) == 3


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_help_is_a_page_of_80_columns(command, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  page = page_of(command)
  assert page.startswith('Usage: python -m vit_jax')
  assert max(map(len, page.splitlines())) <= 80
  purpose = page.split('\n\n')[1]
  assert purpose.endswith('.') and '\n' not in purpose
  status = page[page.index('\nExit status:') :].splitlines()[2:]
  assert len(status) >= 2 and all(re.match(r'  \d+ +\w', x) for x in status)


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_options_are_in_groups(command):
  parser = module_of(command).make_parser()
  page = parser.format_help()
  assert not re.search('^(options|positional arguments):', page, re.MULTILINE)
  for action in parser._actions:
    if action.help != argparse.SUPPRESS:
      # An option takes a short value, and its help does not repeat the name.
      assert action.nargs == 0 or len(action.metavar) <= 9, action
      assert len(action.help.split()) > 2, action
  hidden = {
    a.option_strings[-1].removeprefix('--no')
    for a in parser._actions
    if a.help == argparse.SUPPRESS
  }
  of_models = {x for x in hidden if x.startswith('--config.model.')}
  assert hidden - of_models <= {'--help', 'dry_run', 'report'}
  assert not of_models or '--config.model.SETTING=VALUE' in page


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_flags_in_messages_exist(command):
  parser = module_of(command).make_parser()
  known = {name for a in parser._actions for name in a.option_strings}
  known |= {a.metavar for a in parser._actions if not a.option_strings}
  assert parser.flags
  for name, flag in parser.flags.items():
    assert flag in known or not command and flag.startswith('--config.'), name


def test_arguments_and_status_are_those_of_the_command(monkeypatch):
  given = []
  monkeypatch.setattr(predict, 'main', lambda argv: given.append(argv) or 1)
  assert vit_jax_main.main(['predict', 'run', '--top=2']) == 1
  assert given == [['run', '--top=2']]


@pytest.mark.parametrize(
  'name, message',
  [
    ('predikt', "there is no command 'predikt'; did you mean 'predict'?"),
    ('xyz', "there is no command 'xyz': the commands are check, embed,"),
    ('arguments', "there is no command 'arguments'"),
  ],
)
def test_a_command_that_does_not_exist(name, message, capsys):
  with pytest.raises(SystemExit) as ended:
    vit_jax_main.main([name])
  shown = capsys.readouterr().err
  assert ended.value.code == 2
  assert shown.startswith(f'error: {message}') and shown.count('\n') == 1


@pytest.mark.parametrize('name', COMMANDS)
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
  assert done.stdout.startswith(f'Usage: python -m vit_jax {name} ')
