"""Starts the process that sends a run to a tracker: W&B or MLflow.

The packages run in a process of their own. So they cannot stop or slow the run,
and they cannot change its exit status, whatever the network and the disk do.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import importlib.util
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.parallel import processes
from vit_jax.run.writers import metric_log

_END_SECONDS = 20  # to wait for the tracker at the end of a complete run
_STOP_SECONDS = 5  # of a stopped run, which may be killed soon
_CODE = 'from vit_jax.run.writers import tracker_process as x; x.main()'


def check(name: str) -> None:
  """Raises ValueError if the packages of a tracker are not installed.

  Args:
    name: value of `config.tracker`.
  """
  needed = {'none': (), 'wandb': ('wandb',), 'mlflow': ('mlflow',)}[name]
  address = os.environ.get('MLFLOW_TRACKING_URI', 'sqlite:')
  if name == 'mlflow' and address.startswith('sqlite:'):
    needed += ('sqlalchemy', 'alembic')
  missing = [module for module in needed if not _is_installed(module)]
  if missing:
    raise ValueError(
      f'config.tracker={name!r} needs packages that are not installed: '
      f"{', '.join(missing)}. Install them: pip install -e '.[{name}]' in a "
      f"clone, or pip install 'vit_jax[{name}]'"
    )


def _is_installed(module):
  """Returns whether a package is installed.

  W&B makes folders with the name wandb. Python takes them for packages without
  a file.
  """
  found = importlib.util.find_spec(module)
  return found is not None and found.origin is not None


@contextlib.contextmanager
def opened(
  name: str, writers: Sequence[Callable] = ()
) -> Iterator[tuple[Callable, ...]]:
  """Yields the writers of a run, with a `Tracker` that is closed at the end.

  Args:
    name: value of `config.tracker`.
    writers: more writers. If one of them is a `Tracker`, it is used.
  """
  if (
    name == 'none'
    or not processes.is_main()
    or any(isinstance(writer, Tracker) for writer in writers)
  ):
    yield tuple(writers)
    return
  tracker, status = Tracker(name), 'failed'
  try:
    yield (*writers, tracker)
    status = 'finished'
  finally:
    tracker.close(status)


def start(writers: Sequence[Callable], workdir: str, **run: Any) -> None:
  """Starts the trackers among the writers of a run.

  Args:
    writers: from `opened`.
    workdir: the run folder, with the metrics of earlier starts.
    **run: `settings`, `first_step` and `total_steps` of the run.
  """
  for writer in writers:
    if isinstance(writer, Tracker):
      writer.start(workdir, run)


class Tracker:
  """A writer that sends everything to a tracker, in another process."""

  def __init__(self, name: str):
    """Creates a writer without a process; `start` starts it.

    Args:
      name: 'wandb' or 'mlflow'.
    """
    self._name = name
    self._queue = queue.SimpleQueue()
    self._process = self._reader = None
    self._has_failed = False

  def start(self, workdir: str, run: Mapping[str, Any]) -> None:
    """Starts the process; an error is only a warning.

    Args:
      workdir: the run folder.
      run: see `start`.
    """
    try:
      rows = metric_log.read(os.path.join(workdir, 'metrics.jsonl'))
      # What the package prints does not disturb the terminal of the run.
      with open(os.path.join(workdir, 'tracker.log'), 'ab') as log:
        self._process = subprocess.Popen(
          [sys.executable, '-P', '-c', _CODE],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=log,
          env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
          start_new_session=True,  # Ctrl-C stops the run, which closes the pipe
        )
    except (OSError, ValueError) as error:
      self._warn(error)
      return
    first = {'tracker': self._name, 'workdir': workdir, 'rows': rows, **run}
    threading.Thread(target=self._feed, args=[first], daemon=True).start()
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def __call__(
    self,
    step: int,
    numbers: Mapping[str, float],
    pictures: Mapping[str, np.ndarray],
  ) -> None:
    """Sends numbers and pictures of a step."""
    if not self._has_failed:
      self._queue.put((step, numbers, pictures))

  def close(self, status: str) -> None:
    """Waits a short time until everything is sent.

    Args:
      status: 'finished', or 'failed' after an error or a signal.
    """
    if self._reader is None:
      return
    self._queue.put(status)
    limit = _END_SECONDS if status == 'finished' else _STOP_SECONDS
    with contextlib.suppress(KeyboardInterrupt):  # the run itself is over
      self._reader.join(limit)
    if self._reader.is_alive():
      self._warn(
        f'not everything was sent within {limit} seconds after the run',
        f'The process {self._process.pid} continues to send',
      )

  def _feed(self, first):
    """Sends what the queue has to the process, until the run ends."""
    with contextlib.suppress(OSError), self._process.stdin as pipe:
      try:
        pickle.dump(first, pipe)
        for items in self._batches():
          pickle.dump(items, pipe)
          pipe.flush()
      except Exception as error:
        if not isinstance(error, OSError):  # the process has ended
          text = str(error).partition('\n')[0]
          self._warn(f'{type(error).__name__}: {text}')

  def _batches(self):
    """Yields what the queue has; the status of the run is the last item."""
    items = [None]
    while not isinstance(items[-1], str):
      items = [self._queue.get()]
      while not self._queue.empty():
        items.append(self._queue.get())
      yield items

  def _read(self):
    """Logs the messages of the process, until it ends."""
    is_done = False
    for line in self._process.stdout:
      answer = json.loads(line)
      is_done = 'done' in answer
      if 'info' in answer:
        console.log_info(answer['info'])
      if 'error' in answer:
        console.log(answer['traceback'])
        self._warn(answer['error'])
    status = self._process.wait()
    if not is_done:
      self._warn(f'its process ended with status {status}')

  def _warn(self, error, effect='The run continues without it'):
    """Logs a warning, once."""
    if not self._has_failed:
      self._has_failed = True
      console.log_info(
        f'warning: config.tracker={self._name!r}: {error}. {effect}. '
        'metrics.jsonl has all metrics, and the next start of the run sends '
        'what is missing'
      )
