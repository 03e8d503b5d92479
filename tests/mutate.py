"""Puts one mistake at a time into the code, and says which no test sees.

    pip install -e '.[test,mutate]'
    python -m tests.mutate                    # the whole list, mutations.jsonl
    python -m tests.mutate --only 'h\\d+'      # entries of the list, by their ids
    python -m tests.mutate vit_jax/optimizer.py --count 20   # generated ones

Each mistake is put into a copy of the tree, and of the tests only those that
reach the changed lines are run. This is measured first: once for each test
file, and again when code that it runs has changed. What is done is kept in the
folder --work: the same command goes on where it was stopped, and runs again
what other code or tests may see differently.

The table of results is written to standard output. The exit status is 1 if a
mistake survives, if an entry of the list no longer applies, or if the tests
fail without any mistake.
"""

import argparse
import collections
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import pytest

from tests import mutants
from tests import reach

# Imported once, before the process forks for each mistake. None of these starts
# JAX's backend, which a forked process could not use.
PRELOAD = ('optax,flax.linen,orbax.checkpoint,tensorflow,tensorflow_datasets,'
           'clu.metric_writers,sklearn.datasets,scipy.ndimage,'
           'matplotlib.pyplot,safetensors.numpy,huggingface_hub')
_FAILED = 70  # exit status of a process in which no test is to blame


# --- processes ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Task:
  """A run of pytest in a process and a tree of its own."""

  run: Callable  # (tree, file for its result) -> exit status
  limit: float = 3600.  # seconds in which no test may end
  mutant: mutants.Mutant | None = None
  tests: dict | None = None
  key: str = ''


def _run(tasks, root, jobs):
  """Yields (task, exit status, folder of its files, seconds), as they end.

  The status is None after the time limit, and negative after a signal.
  """
  waiting, running = collections.deque(tasks), {}
  try:
    while waiting or running:
      while waiting and len(running) < jobs:
        task, folder = waiting.popleft(), tempfile.mkdtemp(prefix='mutant')
        running[_fork(task, root, folder)] = task, folder, time.time()
      time.sleep(0.05)
      for pid, (task, folder, start) in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        late = time.time() - _last_change(folder, start) > task.limit
        if ended or late:
          del running[pid]
          _kill(pid, wait=not ended)
          yield (task, os.waitstatus_to_exitcode(status) if ended else None,
                 folder, time.time() - start)
          shutil.rmtree(folder, ignore_errors=True)
  finally:
    for pid, (_, folder, _) in running.items():
      _kill(pid, wait=True)
      shutil.rmtree(folder, ignore_errors=True)


def _last_change(folder, start):
  """When the process wrote its log: pytest adds a dot for each test."""
  try:
    return os.stat(f'{folder}/log').st_mtime
  except OSError:
    return start


def _kill(pid, wait):
  """Ends a process, unless it has, and all that it started."""
  try:
    os.killpg(pid, signal.SIGKILL)
  except OSError:
    pass
  if wait:
    os.waitpid(pid, 0)


def _fork(task, root, folder):
  """Starts a process; returns its id."""
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid:
    return pid
  status = _FAILED
  try:
    os.setsid()
    log = os.open(f'{folder}/log', os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tree = _copy(root, folder)
    status = task.run(tree, f'{folder}/out')
    foreign = [name for name, path in _own_modules(tree)
               if not path.startswith(tree)]
    if foreign:
      print('imported from elsewhere:', *foreign)
      status = _FAILED
  except BaseException:  # pylint: disable=broad-exception-caught
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status))


def _copy(root, folder):
  """A copy of the source tree, from which this process imports henceforth."""
  ignored = ['.git', '__pycache__', '.pytest_cache']
  if (root / '.gitignore').exists():
    ignored += [line.strip('/') for line in
                (root / '.gitignore').read_text().splitlines()]
  tree = shutil.copytree(root, f'{folder}/tree', symlinks=True,
                         ignore=shutil.ignore_patterns(*ignored))
  for name, _ in _own_modules(tree):
    del sys.modules[name]
  os.chdir(tree)
  os.mkdir(f'{folder}/tmp')
  os.environ.update(PYTHONPATH=tree, TMPDIR=f'{folder}/tmp')
  tempfile.tempdir = None
  sys.path[0] = tree
  return tree


def _own_modules(tree):
  """[(name, path)] of the modules that have the names of a tree's."""
  names = {path.stem for path in pathlib.Path(tree).iterdir()}
  return [(name, module.__file__) for name, module in sys.modules.items()
          if name.partition('.')[0] in names
          and getattr(module, '__file__', None)]


# --- the tests ----------------------------------------------------------------


def _measure(args, work):
  """The `reach.Reach` of the test files, measured where it is not known."""
  files = sorted(str(path.relative_to(args.root)) for pattern in args.tests
                 for path in args.root.glob(pattern))
  folder = work / 'reach'
  folder.mkdir(parents=True, exist_ok=True)
  known, tasks = {}, []
  for name in files:
    path = folder / (name.replace('/', '.') + '.json')
    if path.exists():
      known[name] = json.loads(path.read_text())
      if reach.hash_of(args.root, known[name]['lines']) == known[name]['hash']:
        continue
    tasks.append(_Task(run=lambda tree, out, name=name: reach.measure(
        tree, out, name), key=name))
  if tasks:
    _say(f'measuring what {len(tasks)} test file(s) reach')
  for number, (task, status, made, seconds) in enumerate(
      _run(tasks, args.root, args.jobs), start=1):
    if status:
      raise RuntimeError(f'{task.key} cannot be measured (status {status}):\n'
                         + _end_of_log(made))
    path = folder / (task.key.replace('/', '.') + '.json')
    shutil.move(f'{made}/out', path)
    known[task.key] = json.loads(path.read_text())
    _say(f'{number}/{len(tasks)} {task.key}: {seconds:.0f} s')
  return reach.Reach(known)


class _Chosen:
  """Pytest plugin: runs the given tests in their order, and notes where."""

  def __init__(self, tests, out):
    self._tests = list(tests)
    self._out = out
    self._started = 0

  def _note(self, test):
    with open(self._out, 'w', encoding='utf-8') as file:
      json.dump({'test': test, 'started': self._started}, file)

  @pytest.hookimpl(trylast=True)
  def pytest_collection_modifyitems(self, items):
    by_id = {item.nodeid: item for item in items}
    items[:] = [by_id[name] for name in self._tests if name in by_id]

  def pytest_collectreport(self, report):
    if report.failed:
      self._note(f'import of {report.nodeid}')

  def pytest_runtest_logstart(self, nodeid):
    self._started += 1
    self._note(nodeid)


def _run_tests(tree, out, mutant, tests):
  with open(f'{tree}/{mutant.path}', 'w', encoding='utf-8') as file:
    file.write(mutant.text)
  files = sorted({name.partition('::')[0] for name in tests})
  return pytest.main([*files, '-q', '-x', '-n', '0', '-p', 'no:cacheprovider'],
                     plugins=[_Chosen(tests, out)])


def _outcome(task, status, folder):
  """(outcome, the test that decided it) of a mutant's tests."""
  try:
    with open(f'{folder}/out', encoding='utf-8') as file:
      last = json.load(file)
  except OSError:
    last = {'test': 'import of the package', 'started': 0}
  if status is None:
    return 'seen', f'{last["test"]} (time limit)'
  if status < 0:
    return 'seen', f'{last["test"]} (signal {-status})'
  if status in (1, 2, 4):  # a test, the import of a test file, of conftest.py
    return 'seen', last['test']
  if status == 0 and last['started'] == len(task.tests):
    return 'survived', ''
  return 'error', f'status {status}, {last["started"]} tests were started'


# --- the command --------------------------------------------------------------


def main(argv=None):
  args = _arguments(argv)
  try:
    chosen, stale = _choose(args)
    work = (args.root / args.work).resolve()
    _prepare(work, args.preload)
    reached = _measure(args, work)
    rows, errors = _try(chosen, reached, args, work / 'results.jsonl')
  except (OSError, RuntimeError, ValueError) as error:
    _say(f'error: {error}')
    return 2
  survivors = _summarize([rows[mutant.id] for mutant in chosen
                          if mutant.id in rows], stale)
  for name in reached.failing():
    _say(f'left out, as it fails without any mistake: {name}')
  for id_ in errors:
    _say(f'error: {id_} could not be tested; the same command tries again')
  return int(bool(survivors or stale or errors or reached.failing()))


def _arguments(argv):
  parser = argparse.ArgumentParser(
      prog='python -m tests.mutate', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('modules', nargs='*', help='generate mistakes in these')
  parser.add_argument('--list', default='tests/mutations.jsonl',
                      help='mistakes written by hand, if no module is given')
  parser.add_argument('--only', default='', metavar='REGEX',
                      help='ids of mistakes, matched from their beginning')
  parser.add_argument('--count', type=int, help='a random sample of so many')
  parser.add_argument('--seed', type=int, default=0, help='of the sample')
  parser.add_argument('--tests', nargs='+', default=['tests/test_*.py'],
                      metavar='PATTERN', help='files of tests to run')
  parser.add_argument('--jobs', type=int, default=1, help='processes at once')
  parser.add_argument('--work', default='.pytest_cache/mutate',
                      help='folder of what was measured and of the results')
  parser.add_argument('--root', type=pathlib.Path, help='of the source tree',
                      default=pathlib.Path(__file__).parent.parent)
  parser.add_argument('--preload', default=PRELOAD,
                      help='modules to import only once')
  args = parser.parse_args(argv)
  args.root = args.root.resolve()
  return args


def _choose(args):
  """(mutants, entries of the list that no longer apply)."""
  if args.modules:
    made = [mutant for path in args.modules
            for mutant in mutants.generate(args.root, path)]
    stale = []
  else:
    made, stale = mutants.from_list(args.root, args.root / args.list)
  only = re.compile(args.only)
  made = [mutant for mutant in made if only.match(mutant.id)]
  if args.count is not None and args.count < len(made):
    sample = random.Random(args.seed).sample(range(len(made)), args.count)
    made = [made[index] for index in sorted(sample)]
  return made, [(id_, why) for id_, why in stale if only.match(id_)]


def _prepare(work, preload):
  """Sets what all processes have in common; imports what they share."""
  os.environ.update(
      # A mistake in code that writes to the home folder stays in this one.
      HOME=str(work / 'home'), JAX_COMPILATION_CACHE_DIR=str(work / 'compiled'),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0', JAX_PLATFORMS='cpu',
      # Python trusts bytecode of a source file with equal size and second.
      PYTHONDONTWRITEBYTECODE='1', TF_CPP_MIN_LOG_LEVEL='3')
  sys.dont_write_bytecode = True
  (work / 'home').mkdir(parents=True, exist_ok=True)
  for name in filter(None, preload.split(',')):
    importlib.import_module(name)


def _try(chosen, reached, args, results):
  """Runs the tests of each mutant; ({id: its row}, ids of errors)."""
  known, seen_by = {}, {}
  if results.exists():
    for row in map(json.loads, results.read_text().splitlines()):
      known[row['key']] = row
      seen_by[row['id']] = row['by']
  rows, tasks, errors = {}, [], []
  for mutant in chosen:
    tests = reached.tests_of(mutant)
    if seen_by.get(mutant.id) in tests:  # it will probably see it again
      tests = {seen_by[mutant.id]: tests[seen_by[mutant.id]], **tests}
    key = hashlib.sha256(repr((
        mutant.id, mutant.text, sorted(tests), reached.state_of(tests)
    )).encode()).hexdigest()[:16]
    if key in known:
      rows[mutant.id] = known[key]
    elif not tests:
      rows[mutant.id] = _row(mutant, key, 'survived', 'no test reaches it')
    else:
      tasks.append(_Task(
          run=lambda tree, out, mutant=mutant, tests=tests: _run_tests(
              tree, out, mutant, tests),
          limit=60 + 10 * max(tests.values()), mutant=mutant, tests=tests,
          key=key))
  _say(f'{len(chosen)} mistakes, {len(rows)} of them tried before')
  start = time.time()
  for number, (task, status, folder, seconds) in enumerate(
      _run(tasks, args.root, args.jobs), start=1):
    outcome, by = _outcome(task, status, folder)
    row = _row(task.mutant, task.key, outcome, by, round(seconds, 1))
    if outcome == 'error':
      errors.append(task.mutant.id)
      _say(_end_of_log(folder))
    else:
      rows[task.mutant.id] = row
      with open(results, 'a', encoding='utf-8') as file:
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
    rate = number / (time.time() - start)
    _say(f'{number}/{len(tasks)} {row["id"]}: {outcome} {by} ({seconds:.0f} s; '
         f'{60 * rate:.1f} a minute, '
         f'{(len(tasks) - number) / rate / 60:.0f} min left)')
  return rows, errors


def _row(mutant, key, outcome, by, seconds=0.):
  return {'key': key, 'id': mutant.id, 'place': f'{mutant.path}:{mutant.line}',
          'what': mutant.what, 'outcome': outcome, 'by': by, 'seconds': seconds}


def _summarize(rows, stale):
  """Writes the table; returns the rows of the survivors."""
  print('| id | place | mistake | seen by |\n| --- | --- | --- | --- |')
  survivors = [row for row in rows if row['outcome'] == 'survived']
  for row in rows:
    by = row['by'] if row['outcome'] == 'seen' else (
        '**SURVIVED** ' + row['by']).strip()
    cells = [row['id'], row['place'], row['what'], by]
    print('|', ' | '.join(cell.replace('|', '\\|') for cell in cells), '|')
  for id_, why in stale:
    print(f'| {id_} | | | **NO LONGER APPLIES**: {why} |')
  print(f'\n{len(rows) + len(stale)} mistakes: {len(rows) - len(survivors)} '
        f'seen, {len(survivors)} survived, {len(stale)} no longer apply')
  return survivors


def _end_of_log(folder):
  with open(f'{folder}/log', encoding='utf-8', errors='replace') as file:
    return ''.join(file.readlines()[-30:])


def _say(text):
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
