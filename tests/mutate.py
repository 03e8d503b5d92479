r"""Puts one mistake at a time into the code; lists those that no test detects.

    pip install -e '.[test]'
    python -m tests.mutate                 # all of the list: mutations.jsonl
    python -m tests.mutate --only 'h\d+'   # only ids that match
    python -m tests.mutate vit_jax/optim/optimizer.py --count 20  # generated

Each mistake is put into a copy of the source tree. Only tests that reach the
changed lines are run, until one fails. Slow tests are not run. The coverage of
each test file is measured first. It is measured again if Python code that the
file runs has changed.

Results are stored in the folder --work. If the program is stopped, the same
command resumes. It runs mistakes again if the code or its tests have changed.
The table is written to standard output. The exit status is 1 if a mistake
survives, if an entry of the list no longer applies, or if a test fails without
a mistake.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import time

import pytest

from tests import forks
from tests import mutants
from tests import reach

# Modules imported once for all mistakes. None of them starts JAX's backend,
# because a forked process could not use it.
PRELOAD = (
  'optax,flax.linen,orbax.checkpoint,tensorflow,tensorflow_datasets,'
  'clu.metric_writers,sklearn.datasets,scipy.ndimage,'
  'matplotlib.pyplot,safetensors.numpy,huggingface_hub'
)


def main(argv=None):
  args = _arguments(argv)
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    chosen, stale = _choose(args)
    _prepare(args.work, args.preload)
    reached = _measure(args)
    rows, errors = _try_all(chosen, reached, args)
  except (OSError, RuntimeError, ValueError, re.error) as error:
    _log(f'error: {error}')
    return 2
  except KeyboardInterrupt:
    _log('stopped. Run the same command again to resume')
    return 130
  survivors = _summarize(rows, stale)
  for name in reached.failing():
    _log(f'test not used, because it fails without a mistake: {name}')
  for name in errors:
    _log(f'error: {name} was not tested. Run the same command again')
  return int(bool(survivors or stale or errors or reached.failing()))


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m tests.mutate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('modules', nargs='*', help='modules to generate mistakes in')
  add(
    '--list',
    default='tests/mutations.jsonl',
    help='file of hand-written mistakes, used if no module is given',
  )
  add('--only', default='', metavar='REGEX', help='pattern for start of ids')
  add('--count', type=int, help='try a random sample of this size')
  add('--seed', type=int, default=0, help='random seed of the sample')
  add(
    '--tests',
    nargs='+',
    default=['tests/**/test_*.py'],
    metavar='PATTERN',
    help='test files to use',
  )
  add('--jobs', type=int, default=1, help='number of parallel processes')
  add(
    '--work',
    default='.pytest_cache/mutate',
    help='folder for the measured coverage and the results',
  )
  add(
    '--root',
    default=pathlib.Path(__file__).parent.parent,
    type=pathlib.Path,
    help='folder of the source tree',
  )
  add('--preload', default=PRELOAD, help='modules that are imported only once')
  args = parser.parse_args(argv)
  if args.jobs < 1 or args.count is not None and args.count < 1:
    parser.error('--jobs and --count must be 1 or more')
  args.root = args.root.resolve()
  args.work = (args.root / args.work).resolve()
  return args


def _choose(args):
  """Returns (mutants, [(id, reason)] of entries that no longer apply)."""
  if args.modules:
    stale, made = (
      [],
      [
        mutant
        for path in args.modules
        for mutant in mutants.generate(args.root, path)
      ],
    )
  else:
    made, stale = mutants.from_list(args.root, args.root / args.list)
  made = [mutant for mutant in made if re.match(args.only, mutant.id)]
  stale = [(name, why) for name, why in stale if re.match(args.only, name)]
  if not made and not stale:
    raise ValueError(
      f'--only={args.only} matches the start of no id: choose another pattern'
    )
  if args.count is not None and args.count < len(made):
    sample = random.Random(args.seed).sample(range(len(made)), args.count)
    made = [made[index] for index in sorted(sample)]
  return made, stale


def _prepare(work, preload):
  """Sets the environment and imports the modules for all processes."""
  (work / 'home').mkdir(parents=True, exist_ok=True)
  (work / 'reach').mkdir(exist_ok=True)
  os.environ.update(
    # A mistake may write to the home folder, so it gets a separate one.
    HOME=str(work / 'home'),
    JAX_COMPILATION_CACHE_DIR=str(work / 'compiled'),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    JAX_PLATFORMS='cpu',
    # Python uses old bytecode if a changed file has the same size and time.
    PYTHONDONTWRITEBYTECODE='1',
    TF_CPP_MIN_LOG_LEVEL='3',
  )
  sys.dont_write_bytecode = True
  forks.preload(filter(None, preload.split(',')))


def _measure(args):
  """Returns the lines that the test files reach; measures unknown files."""
  files = sorted(
    {
      str(path.relative_to(args.root))
      for pattern in args.tests
      for path in args.root.glob(pattern)
    }
  )
  if not files:
    raise ValueError(
      f'--tests={" ".join(args.tests)} matches no file: give test files'
    )
  stored = {
    name: args.work / 'reach' / f'{name.replace("/", ".")}.json'
    for name in files
  }
  known = {
    name: json.loads(path.read_text())
    for name, path in stored.items()
    if path.exists()
  }
  tasks = [
    forks.Task(
      name, lambda tree, out, name=name: reach.measure(tree, out, name)
    )
    for name in files
    if name not in known
    or reach.hash_of(args.root, known[name]['lines']) != known[name]['hash']
  ]
  for number, ended in enumerate(
    forks.run(tasks, args.root, args.jobs), start=1
  ):
    name = ended.task.name
    if ended.status:
      raise RuntimeError(
        f'the coverage of {name} cannot be measured. Its tests ended with exit '
        f'status {ended.status}:\n{ended.end_of_log()}'
      )
    partial = shutil.move(ended.out, f'{stored[name]}.partial')
    os.replace(partial, stored[name])
    known[name] = json.loads(stored[name].read_text())
    _log(f'measured {number}/{len(tasks)}: {name} ({ended.seconds:.0f} s)')
  return reach.Reach(known)


# --- one mistake --------------------------------------------------------------


class _Chosen:
  """Pytest plugin that runs given tests in order and records the last one."""

  def __init__(self, tests, out):
    self._tests = tests
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

  def pytest_sessionfinish(self, exitstatus):
    if not exitstatus:
      self._note('')


def _task(mutant, tests):
  """Returns a task that runs tests on a mutant."""

  def run(tree, out):
    pathlib.Path(tree, mutant.path).write_text(mutant.text, encoding='utf-8')
    files = sorted({name.partition('::')[0] for name in tests})
    return pytest.main(
      [*files, '-q', '-x', '-n', '0', '-p', 'no:cacheprovider'],
      plugins=[_Chosen(list(tests), out)],
    )

  return forks.Task(mutant.id, run, limit=60 + 10 * max(tests.values()))


def _outcome(ended, num_tests):
  """Returns (outcome, test that decided it)."""
  last = {'test': 'import of the package', 'started': 0}
  with contextlib.suppress(OSError), open(ended.out, encoding='utf-8') as file:
    last = json.load(file)
  test, started, status = last['test'], last['started'], ended.status
  if status is None:
    return 'seen', f'{test} (time limit)'
  if status < 0:
    return 'seen', f'{test} (signal {-status})'
  # Pytest returns 1, 2 or 4 if a test, a test file or conftest.py fails.
  # Status 0 with a test means that the process ended within this test.
  if status in (1, 2, 4) or status == 0 and test:
    return 'seen', test
  if status == 0 and started == num_tests:
    return 'survived', f'tests run: {num_tests}'
  return 'error', (
    f'(exit status {status}, {started} of {num_tests} tests '
    f'run):\n{ended.end_of_log()}'
  )


# --- all mistakes -------------------------------------------------------------


def _try_all(chosen, reached, args):
  """Tries new mistakes; returns (rows of results, ids of errors)."""
  earlier = _read_rows(args.work / 'results.jsonl')
  decided = {row['id']: row['by'] for row in earlier}
  rows, tests, tasks = {}, {}, []
  known = {row['key']: row for row in earlier}
  for mutant in chosen:
    found = reached.tests_of(mutant, decided.get(mutant.id))
    key = hashlib.sha256(
      repr(
        (mutant.id, mutant.text, sorted(found), reached.state_of(found))
      ).encode()
    ).hexdigest()
    rows[mutant.id] = {
      'key': key,
      'id': mutant.id,
      'place': f'{mutant.path}:{mutant.line}',
      'what': mutant.what,
      'outcome': 'survived',
      'by': 'no test reaches it',
    }
    if key in known:
      rows[mutant.id] = known[key]
    elif found:
      tests[mutant.id] = found
      tasks.append(_task(mutant, found))
  _log(f'{len(chosen)} mistakes, {len(tasks)} of them to try')
  errors, start = [], time.time()
  for number, ended in enumerate(
    forks.run(tasks, args.root, args.jobs), start=1
  ):
    name = ended.task.name
    outcome, by = _outcome(ended, len(tests[name]))
    if outcome == 'error':
      errors.append(name)
      del rows[name]
    else:
      rows[name].update(outcome=outcome, by=by)
      with open(args.work / 'results.jsonl', 'a', encoding='utf-8') as file:
        file.write(json.dumps(rows[name], ensure_ascii=False) + '\n')
    minutes = (time.time() - start) / 60
    _log(
      f'{number}/{len(tasks)} {name}: {outcome} {by} ({ended.seconds:.0f} s,'
      f' {number / minutes:.1f} per minute, '
      f'{minutes * (len(tasks) / number - 1):.0f} min left)'
    )
  return list(rows.values()), errors


def _read_rows(path):
  rows = []
  if path.exists():
    for line in path.read_text(encoding='utf-8').splitlines():
      with contextlib.suppress(ValueError):  # an incomplete last line
        rows.append(json.loads(line))
  return rows


def _summarize(rows, stale):
  """Prints the table; returns the rows of the mistakes that survived."""
  print('| id | place | mistake | detected by |\n| --- | --- | --- | --- |')
  survivors = [row for row in rows if row['outcome'] == 'survived']
  for row in rows:
    by = row['by'] if row not in survivors else f'**SURVIVED** ({row["by"]})'
    cells = [row['id'], row['place'], row['what'], by]
    print('|', ' | '.join(cell.replace('|', '\\|') for cell in cells), '|')
  for name, why in stale:
    print(f'| {name} | | | **NO LONGER APPLIES**: {why} |')
  print(
    f'\n{len(rows) - len(survivors)} detected, {len(survivors)} survived, '
    f'{len(stale)} no longer apply'
  )
  return survivors


def _log(text):
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
