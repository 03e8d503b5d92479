"""Runs functions in forked processes, each in a copy of the source tree.

Processes share all modules that were imported earlier, except modules of the
source tree. Each process imports these modules from its copy.
"""

import collections
from collections.abc import Callable
import contextlib
import dataclasses
import importlib
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback

FAILED = 70  # exit status of a process that did not finish its task


@dataclasses.dataclass(frozen=True)
class Task:
  """A function that one process runs in a copy of the tree."""

  name: str
  run: Callable  # (tree, path for its result) -> exit status
  limit: float = 3600.0  # maximum seconds without output


@dataclasses.dataclass(frozen=True)
class Ended:
  """The result of a task."""

  task: Task
  status: int | None  # negative: a signal; None: the time limit
  folder: str  # of its files; deleted when the caller requests the next result
  seconds: float

  @property
  def out(self):
    """The path of the task's output file."""
    return f'{self.folder}/out'

  def end_of_log(self):
    with open(f'{self.folder}/log', encoding='utf-8', errors='replace') as file:
      return ''.join(file.readlines()[-30:])


def run(tasks, root, jobs):
  """Runs up to `jobs` tasks at a time; yields an `Ended` when a task ends."""
  waiting, running = collections.deque(enumerate(tasks)), {}
  with tempfile.TemporaryDirectory(
    prefix='mutate', ignore_cleanup_errors=True
  ) as top:
    try:
      while waiting or running:
        while waiting and len(running) < jobs:
          number, task = waiting.popleft()
          folder = f'{top}/{number}'
          os.mkdir(folder)
          running[_fork(task, root, folder)] = task, folder, time.time()
        time.sleep(0.05)
        yield from _ended(running)
    finally:
      for pid in running:
        _kill(pid, wait=True)


def _ended(running):
  """Yields an `Ended` for each process that has ended or reached its limit."""
  for pid, (task, folder, start) in list(running.items()):
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended or time.time() - _last_change(folder, start) > task.limit:
      del running[pid]
      _kill(pid, wait=not ended)
      yield Ended(
        task,
        os.waitstatus_to_exitcode(status) if ended else None,
        folder,
        time.time() - start,
      )
      shutil.rmtree(folder, ignore_errors=True)


def _last_change(folder, start):
  """Returns the time of the last output: pytest writes a dot for each test."""
  try:
    return os.stat(f'{folder}/log').st_mtime
  except OSError:
    return start


def _kill(pid, wait):
  """Kills a process and all processes that it started."""
  with contextlib.suppress(OSError):
    os.killpg(pid, signal.SIGKILL)
  if wait:
    os.waitpid(pid, 0)


def _fork(task, root, folder):
  """Starts a process; returns its id."""
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid:
    return pid
  status = FAILED
  try:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(f'{folder}/log', os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tree = _copy(root, folder)
    status = task.run(tree, f'{folder}/out')
    foreign = [
      name for name, path in _own_modules(tree) if not path.startswith(tree)
    ]
    if foreign:
      print('imported from elsewhere:', *foreign)
      status = FAILED
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status))


def _copy(root, folder):
  """Copies the source tree, and makes this process import from the copy."""
  ignored = ['.git', '__pycache__', '.pytest_cache']
  if (root / '.gitignore').exists():
    ignored += [
      line.strip('/') for line in (root / '.gitignore').read_text().splitlines()
    ]
  tree = shutil.copytree(
    root,
    f'{folder}/tree',
    symlinks=True,
    ignore=shutil.ignore_patterns(*ignored),
  )
  for name, _ in _own_modules(tree):
    del sys.modules[name]
  os.chdir(tree)
  os.mkdir(f'{folder}/tmp')
  os.environ.update(PYTHONPATH=tree, TMPDIR=f'{folder}/tmp')
  tempfile.tempdir = None
  sys.path[0] = tree
  return tree


def _own_modules(tree):
  """Returns [(name, path)] of imported modules whose names are in the tree."""
  names = {path.stem for path in pathlib.Path(tree).iterdir()}
  return [
    (name, module.__file__)
    for name, module in sys.modules.items()
    if name.partition('.')[0] in names and getattr(module, '__file__', None)
  ]


def preload(names):
  """Imports modules, and suppresses their messages about devices."""
  sys.stderr.flush()
  stderr = os.dup(2)
  with open(os.devnull, 'w', encoding='utf-8') as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    for name in names:
      importlib.import_module(name)
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)
