"""Tests of `tests.mutate` on a small package with a few mistakes."""

import json
import subprocess
import sys

import pytest

from tests import mutants
from tests import ROOT

CODE = '''
"""A package."""
import functools
LIMIT = 3


def double(x):
  return x + x


@functools.cache
def capped(x):
  if x > LIMIT:
    return LIMIT
  return x


def program():
  print(double(4))


if __name__ == '__main__':
  program()
'''
TESTS = """
import subprocess, sys
import pytest
from pkg import code

@pytest.fixture(scope='module')
def six():
  return code.double(3)

def test_above(six):
  assert code.capped(2 * six) == 3

def test_six(six):
  assert six == 6

def test_child():
  assert subprocess.check_output([sys.executable, '-m', 'pkg.code']) == b'8\\n'
"""
MISTAKES = [
  ('in_fixture', 'pkg/code.py', 'x + x', 'x * 3'),
  ('survives', 'pkg/code.py', 'x > LIMIT', 'x >= LIMIT'),
  ('constant', 'pkg/elsewhere.py', 'LIMIT = 3', 'LIMIT = 4'),
  ('in_child', 'pkg/code.py', 'double(4)', 'double(5)'),
  ('exits', 'pkg/code.py', 'return LIMIT', 'import os; os.kill(0, 9)'),
  ('stale', 'pkg/code.py', 'x > BOUND', 'x >= BOUND'),
  ('ambiguous', 'pkg/code.py', 'return', 'return 1 +'),
]


@pytest.fixture(name='package')
def fixture_package(tmp_path):
  (tmp_path / 'pkg').mkdir()
  (tmp_path / 'tests').mkdir()
  (tmp_path / 'pkg/code.py').write_text(CODE)
  (tmp_path / 'tests/test_code.py').write_text(TESTS)
  (tmp_path / 'tests/mutations.jsonl').write_text(
    ''.join(
      json.dumps(
        {'id': name, 'file': file, 'what': name, 'old': old, 'new': new}
      )
      + '\n'
      for name, file, old, new in MISTAKES
    )
  )
  return tmp_path


def mutate(package, *args):
  """Returns (exit status, {id: last cell of its row}, progress messages)."""
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'tests.mutate',
      f'--root={package}',
      '--preload=',
      *args,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  rows = [
    line.split(' | ')
    for line in done.stdout.splitlines()[2:]
    if line.startswith('|')
  ]
  cells = {row[0][2:]: row[-1][:-2] for row in rows}
  return done.returncode, cells, done.stderr


@pytest.mark.slow
def test_mistakes_are_tried_once_and_undetected_ones_are_reported(package):
  before = (package / 'pkg/code.py').read_text()
  status, found, progress = mutate(package)
  test = 'tests/test_code.py::test_'
  assert found == {
    'in_fixture': f'{test}six',
    'constant': f'{test}above',
    'in_child': f'{test}child',
    'exits': f'{test}above (signal 9)',
    'survives': '**SURVIVED** (tests run: 1)',
    'stale': '**NO LONGER APPLIES**: `old` is not in pkg/code.py, and '
    'in 0 other files of its package',
    'ambiguous': '**NO LONGER APPLIES**: `old` occurs 3 times in pkg/code.py',
  }, progress
  assert status == 1
  assert '5 mistakes, 5 of them to try' in progress
  assert (package / 'pkg/code.py').read_text() == before

  status, again, progress = mutate(package)
  assert (status, again) == (1, found)
  assert '5 mistakes, 0 of them to try' in progress and (
    'measured' not in progress
  )

  with (package / 'tests/test_code.py').open('a') as file:
    file.write('\ndef test_limit():\n  assert type(code.capped(3.0)) is float')
  status, seen, _ = mutate(package, '--only', 'survives|constant')
  assert seen == {'survives': f'{test}limit', 'constant': f'{test}above'}
  assert status == 0
  assert mutate(package, '--only', 'stale')[0] == 1


def test_generated_mistakes(package):
  made = mutants.generate(package, 'pkg/code.py')
  texts = {mutant.text for mutant in made}
  assert len(texts) == len(made) == len({mutant.id for mutant in made})
  for old, new in [
    ('LIMIT = 3', 'LIMIT = (4)'),
    ('x + x', '(x - x)'),
    ('return x + x', 'return None'),
    ('x > LIMIT', '(x >= LIMIT)'),
    ('if x > LIMIT:\n    return LIMIT', 'pass'),
    ('return LIMIT', 'return None'),
    ('double(4)', 'double((5))'),
    ('print(double(4))', 'pass'),
  ]:
    assert CODE.replace(old, new) in texts, (old, new)
  assert [m.id for m in made] == [
    m.id for m in mutants.generate(package, './pkg/code.py')
  ]
