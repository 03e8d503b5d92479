r"""Puts one mistake at a time into the code, and says which no test sees.

    pip install -e '.[test]'
    python -m tests.mutate                 # the whole list: mutations.jsonl
    python -m tests.mutate --only 'h\d+'   # those of the list with such ids
    python -m tests.mutate vit_jax/optim/optimizer.py --count 20  # generated

Each mistake is put into a copy of the tree. Of the tests, only those that reach
the changed lines are run, until one fails; slow ones are not. What they reach
is measured first, once for each test file, and again when Python code that it
runs has changed.

Results are kept in the folder --work: the same command goes on where it was
stopped, and runs again where the code or its tests have changed. The table
goes to standard output. The exit status is 1 if a mistake survives, if an entry
of the list no longer applies, or if a test fails without any mistake.
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

# Imported once for all mistakes. None of these starts JAX's backend, which a
# forked process could not use.
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
    _say(f'error: {error}')
    return 2
  except KeyboardInterrupt:
    _say('stopped: the same command goes on from here')
    return 130
  survivors = _summarize(rows, stale)
  for name in reached.failing():
    _say(f'not used, because it fails without any mistake: {name}')
  for name in errors:
    _say(f'error: {name} was not tested. The same command tries it again')
  return int(bool(survivors or stale or errors or reached.failing()))


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m tests.mutate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('modules', nargs='*', help='generate mistakes in these')
  add(
    '--list',
    default='tests/mutations.jsonl',
    help='mistakes written by hand, used if no module is given',
  )
  add('--only', default='', metavar='REGEX', help='what the ids begin with')
  add('--count', type=int, help='size of a random sample')
  add('--seed', type=int, default=0, help='of the sample')
  add(
    '--tests',
    nargs='+',
    default=['tests/**/test_*.py'],
    metavar='PATTERN',
    help='test files to use',
  )
  add('--jobs', type=int, default=1, help='processes at once')
  add(
    '--work',
    default='.pytest_cache/mutate',
    help='folder of what was measured and of the results',
  )
  add(
    '--root',
    default=pathlib.Path(__file__).parent.parent,
    type=pathlib.Path,
    help='of the source tree',
  )
  add('--preload', default=PRELOAD, help='modules to import only once')
  args = parser.parse_args(argv)
  if args.jobs < 1 or args.count is not None and args.count < 1:
    parser.error('--jobs and --count must be 1 or more')
  args.root = args.root.resolve()
  args.work = (args.root / args.work).resolve()
  return args


def _choose(args):
  """(mutants, [(id, reason)] of entries that no longer apply)."""
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
    raise ValueError(f'--only: no id begins with {args.only!r}')
  if args.count is not None and args.count < len(made):
    sample = random.Random(args.seed).sample(range(len(made)), args.count)
    made = [made[index] for index in sorted(sample)]
  return made, stale


def _prepare(work, preload):
  """Sets and imports what all processes share."""
  (work / 'home').mkdir(parents=True, exist_ok=True)
  (work / 'reach').mkdir(exist_ok=True)
  os.environ.update(
    # What a mistake does to the home folder happens in this one.
    HOME=str(work / 'home'),
    JAX_COMPILATION_CACHE_DIR=str(work / 'compiled'),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    JAX_PLATFORMS='cpu',
    # Bytecode is taken for that of any source of the same size and second.
    PYTHONDONTWRITEBYTECODE='1',
    TF_CPP_MIN_LOG_LEVEL='3',
  )
  sys.dont_write_bytecode = True
  forks.preload(filter(None, preload.split(',')))


def _measure(args):
  """What the test files reach, measured where it is not known."""
  files = sorted(
    {
      str(path.relative_to(args.root))
      for pattern in args.tests
      for path in args.root.glob(pattern)
    }
  )
  if not files:
    raise ValueError(f'--tests: no file matches {" ".join(args.tests)}')
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
        f'{name} cannot be measured, with exit status '
        f'{ended.status}:\n{ended.end_of_log()}'
      )
    partial = shutil.move(ended.out, f'{stored[name]}.partial')
    os.replace(partial, stored[name])
    known[name] = json.loads(stored[name].read_text())
    _say(f'measured {number}/{len(tasks)}: {name} ({ended.seconds:.0f} s)')
  return reach.Reach(known)


# --- one mistake --------------------------------------------------------------


class _Chosen:
  """Pytest plugin: runs the given tests in their order, and notes which."""

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
  """Runs tests on a mutant."""

  def run(tree, out):
    pathlib.Path(tree, mutant.path).write_text(mutant.text, encoding='utf-8')
    files = sorted({name.partition('::')[0] for name in tests})
    return pytest.main(
      [*files, '-q', '-x', '-n', '0', '-p', 'no:cacheprovider'],
      plugins=[_Chosen(list(tests), out)],
    )

  return forks.Task(mutant.id, run, limit=60 + 10 * max(tests.values()))


def _outcome(ended, num_tests):
  """(outcome, the test that decided it)."""
  last = {'test': 'import of the package', 'started': 0}
  with contextlib.suppress(OSError), open(ended.out, encoding='utf-8') as file:
    last = json.load(file)
  test, started, status = last['test'], last['started'], ended.status
  if status is None:
    return 'seen', f'{test} (time limit)'
  if status < 0:
    return 'seen', f'{test} (signal {-status})'
  # The status of pytest for a test, a test file and conftest.py that fails; or
  # the process ended within a test.
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
  """Tries what is not known; (rows of results, ids of errors)."""
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
  _say(f'{len(chosen)} mistakes, {len(tasks)} of them to try')
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
    _say(
      f'{number}/{len(tasks)} {name}: {outcome} {by} ({ended.seconds:.0f} s,'
      f' {number / minutes:.1f} a minute, '
      f'{minutes * (len(tasks) / number - 1):.0f} min left)'
    )
  return list(rows.values()), errors


def _read_rows(path):
  rows = []
  if path.exists():
    for line in path.read_text(encoding='utf-8').splitlines():
      with contextlib.suppress(ValueError):  # one whose writing was cut short
        rows.append(json.loads(line))
  return rows


def _summarize(rows, stale):
  """Writes the table; returns the rows of the survivors."""
  print('| id | place | mistake | seen by |\n| --- | --- | --- | --- |')
  survivors = [row for row in rows if row['outcome'] == 'survived']
  for row in rows:
    by = row['by'] if row not in survivors else f'**SURVIVED** ({row["by"]})'
    cells = [row['id'], row['place'], row['what'], by]
    print('|', ' | '.join(cell.replace('|', '\\|') for cell in cells), '|')
  for name, why in stale:
    print(f'| {name} | | | **NO LONGER APPLIES**: {why} |')
  print(
    f'\n{len(rows) - len(survivors)} seen, {len(survivors)} survived, '
    f'{len(stale)} no longer apply'
  )
  return survivors


def _say(text):
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
