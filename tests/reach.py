"""Measures with coverage which lines the tests of a file reach.

A test that uses a shared fixture counts as reaching the lines of the fixture.
All tests of a file count as reaching the lines that run during its import. The
caches of JAX and functools are cleared before each test. Otherwise only the
first caller of a cached function would reach its lines.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
import types

import coverage
import pytest

# Written to sitecustomize.py, which Python imports first in each subprocess.
_IN_CHILDREN = """
import os
if 'REACH_DATA' in os.environ:
  import coverage
  coverage.Coverage(
      os.environ['REACH_DATA'], data_suffix=True, auto_data=True,
      config_file=False, include=os.environ['REACH_INCLUDE'],
      context=os.environ['REACH_CONTEXT']).start()
"""
_AUTOGRAPH = 'tensorflow.python.autograph.impl.api'
_IMPORT = 'import'  # the context outside of tests and fixtures


class _Watcher:
  """Pytest plugin that sets coverage's context and measures durations."""

  def __init__(self, measured, root):
    self._measured = measured
    self._root = root
    self._outer = []
    self.tests = {}  # id -> {'seconds', 'passed', 'fixtures'}
    self.fixtures = {}  # name -> seconds
    self.converted = []  # (context, code) of functions
    self._enter(_IMPORT)

  def _enter(self, context):
    self._outer.append(context)
    os.environ['REACH_CONTEXT'] = context
    self._measured.switch_context(context)

  def _leave(self):
    self._outer.pop()
    self._enter(self._outer.pop())

  def watch_autograph(self):
    """Records each function that AutoGraph runs as a copy of its source."""
    api = sys.modules[_AUTOGRAPH]
    convert = api._convert_actual

    def watched(entity, context):
      self.converted.append((self._outer[-1], entity.__code__))
      return convert(entity, context)

    api._convert_actual = watched

  @pytest.hookimpl(hookwrapper=True)
  def pytest_runtest_protocol(self, item):
    _empty_caches(self._root)
    self._enter(item.nodeid)
    self.tests[item.nodeid] = {
      'seconds': 0,
      'passed': True,
      'fixtures': list(item.fixturenames),
    }
    yield
    self._leave()

  @pytest.hookimpl(hookwrapper=True)
  def pytest_fixture_setup(self, fixturedef):
    if fixturedef.scope == 'function':
      yield
      return
    start = time.time()
    self._enter(f'fixture {fixturedef.argname}')
    yield
    self._leave()
    seconds = self.fixtures[fixturedef.argname] = time.time() - start
    if self._outer[-1] in self.tests:  # the first test that uses the fixture
      self.tests[self._outer[-1]]['seconds'] -= seconds

  def pytest_runtest_logreport(self, report):
    test = self.tests[report.nodeid]
    test['seconds'] += report.duration
    test['passed'] &= not report.failed


def _empty_caches(root):
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
  for module in list(sys.modules.values()):
    if str(getattr(module, '__file__', None)).startswith(root):
      for value in list(vars(module).values()):
        with contextlib.suppress(AttributeError, TypeError):
          value.cache_clear()


def measure(tree, out, test_file):
  """Runs a test file of a tree; writes the lines that it reaches as JSON."""
  data, include = f'{out}.coverage', os.path.join(tree, '*')
  with open(f'{tree}/sitecustomize.py', 'w', encoding='utf-8') as file:
    file.write(_IN_CHILDREN)
  os.environ.update(REACH_DATA=data, REACH_INCLUDE=include)
  measured = coverage.Coverage(data, config_file=False, include=include)
  measured.start()
  watcher = _Watcher(measured, tree)
  preloaded = _AUTOGRAPH in sys.modules
  if preloaded:
    watcher.watch_autograph()
  status = pytest.main(
    [test_file, '-q', '-n', '0', '-p', 'no:cacheprovider'], plugins=[watcher]
  )
  if _AUTOGRAPH in sys.modules and not preloaded:
    raise ValueError(
      f'{test_file} imports tensorflow, which is not preloaded: add it to '
      '--preload'
    )
  measured.stop()
  measured.save()
  measured.combine()
  found = measured.get_data()
  for context, code in watcher.converted:
    if code.co_filename.startswith(tree):
      found.set_context(context)
      found.add_lines({code.co_filename: set(_lines_of(code))})
  lines = {
    os.path.relpath(path, tree): _by_context(found, path)
    for path in found.measured_files()
  }
  lines.pop('sitecustomize.py', None)
  with open(out, 'w', encoding='utf-8') as file:
    json.dump(
      {
        'hash': hash_of(tree, lines),
        'lines': lines,
        'tests': watcher.tests,
        'fixtures': watcher.fixtures,
      },
      file,
    )
  # Pytest returns 5 if no test is left because all are slow.
  return 0 if status in (0, 1, 5) else status


def _lines_of(code):
  """Yields the lines of a function and of its nested functions."""
  yield from (line for *_, line in code.co_lines() if line)
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _lines_of(constant)


def _by_context(data, path):
  """Returns {context: lines} of a measured file."""
  lines = collections.defaultdict(list)
  for line, contexts in data.contexts_by_lineno(path).items():
    for context in contexts:
      lines[context].append(line)
  return lines


def hash_of(root, paths):
  """Returns a hash of the files' contents, or '' if a file is missing."""
  digest = hashlib.sha256()
  for path in sorted(paths):
    try:
      with open(os.path.join(root, path), 'rb') as file:
        digest.update(path.encode() + hashlib.sha256(file.read()).digest())
    except OSError:
      return ''
  return digest.hexdigest()[:16]


@dataclasses.dataclass
class Reach:
  """The lines that the tests reach: {test file: output of `measure`}."""

  files: dict

  def failing(self):
    """Returns tests that fail without a mistake, so they cannot detect one."""
    return sorted(
      name
      for reached in self.files.values()
      for name, test in reached['tests'].items()
      if not test['passed']
    )

  def tests_of(self, mutant, first=None):
    """Returns {test: seconds} of tests that may detect a mutant.

    The test `first` comes first, then the fastest tests.
    """
    found = {}
    for lines in mutant.places:
      for reached in self.files.values():
        found.update(_reaching(reached, mutant.path, set(lines)))
      if found:
        break
    if not mutant.places:  # the line runs when the module is imported
      found = {
        name: _seconds(reached, test)
        for reached in self.files.values()
        if mutant.path in reached['lines']
        for name, test in reached['tests'].items()
      }
    failing = set(self.failing())
    order = sorted(found, key=lambda name: (name != first, found[name]))
    return {name: found[name] for name in order if name not in failing}

  def state_of(self, tests):
    """Returns a hash of all code that the tests run."""
    used = {name.partition('::')[0] for name in tests}
    return ' '.join(self.files[name]['hash'] for name in sorted(used))


def _reaching(reached, path, lines):
  """Returns {test: seconds} of one file's tests that reach lines of a path."""
  contexts = {
    context
    for context, reached_lines in reached['lines'].get(path, {}).items()
    if not lines.isdisjoint(reached_lines)
  }
  return {
    name: _seconds(reached, test)
    for name, test in reached['tests'].items()
    if contexts
    & {name, _IMPORT, *(f'fixture {fixture}' for fixture in test['fixtures'])}
  }


def _seconds(reached, test):
  return test['seconds'] + sum(
    reached['fixtures'].get(name, 0) for name in test['fixtures']
  )
