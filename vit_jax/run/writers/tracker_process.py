"""The process that sends a run to a tracker; `trackers` starts it.

It reads pickles from standard input: the dict of `trackers.Tracker.start`, and
then lists of (step, numbers, pictures). A text in a list is the status at the
end of the run. It answers with JSON lines.

`tracker.json` in the run folder has the id of the run at each tracker, and the
steps and names of the last numbers that were sent. So a resumed run continues
its curve.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import importlib
import json
import os
import pickle
import queue
import signal
import threading
import traceback
from typing import Any

from vit_jax.files import json_files


class Sender:
  """Sends each number of a run once, also those of earlier starts."""

  def __init__(self, run: Mapping[str, Any], open_run: Callable):
    """Reads which part of the run was sent before.

    Args:
      run: the dict of `trackers.Tracker.start`.
      open_run: (run, id or None) -> the run at the tracker: `id`, `send(rows,
        pictures)` and `close(status)`.
    """
    self._path = os.path.join(run['workdir'], 'tracker.json')
    sent = [{'step': int, 'names': [str]}]
    self._all = json_files.read_json(
      self._path, {str: {'id': str, 'sent': sent}}
    )
    self._all = self._all or {}
    self._name, self._run = run['tracker'], run
    self._open_run, self._opened = open_run, None
    # A start at step 0 is another run, even in the same folder.
    known = self._all.get(self._name) if run['first_step'] else None
    self._id = known and known['id']
    self._set_sent(known['sent'] if known else [])

  def _set_sent(self, sent):
    """Sets which numbers earlier starts have sent.

    Args:
      sent: `step` and `names` of numbers that were sent. Before the first of
        these steps, everything was sent.
    """
    rows, first_step = self._run['rows'], self._run['first_step']
    self._sent = {item['step']: set(item['names']) for item in sent}
    first = min(self._sent, default=0)
    self._last_before = max(self._sent, default=0)
    self._sent |= {row['step']: set(row) for row in rows if row['step'] < first}
    self._from = min(first, first_step)  # before it, everything was sent
    self._sent.setdefault(self._from, set())
    self._missing = [
      (row['step'], {k: x for k, x in row.items() if k != 'step'}, {})
      for row in rows
      if first <= row['step'] <= first_step
    ]
    self._missing = [item for item in self._missing if self._new(*item[:2])]

  def _new(self, step, numbers):
    """Returns the numbers that were not sent."""
    sent = self._sent.get(step, ())
    return {name: value for name, value in numbers.items() if name not in sent}

  @property
  def has_work(self) -> bool:
    """Whether the run will have more steps, or rows were not sent yet."""
    is_complete = self._run['first_step'] >= self._run['total_steps']
    return not is_complete or bool(self._missing)

  def open(self) -> None:
    """Opens the run at the tracker, if it is not open."""
    if self._opened:
      return
    self._opened = self._open_run(self._run, self._id)
    if self._opened.id != self._id:  # the tracker no longer has the old run
      self._set_sent([])
    self._save()

  def _save(self):
    self._sent = {k: x for k, x in self._sent.items() if k >= self._from}
    sent = [{'step': k, 'names': sorted(x)} for k, x in self._sent.items()]
    self._all[self._name] = {'id': self._opened.id, 'sent': sent}
    json_files.write_json(self._path, self._all)

  def send(self, items: Sequence[tuple[int, dict, dict]]) -> None:
    """Sends what was not sent before of (step, numbers, pictures)."""
    self.open()
    rows, drawn = [], []
    for step, numbers, pictures in (*self._missing, *items):
      if numbers:
        self._from = step
        numbers = self._new(step, numbers)
        self._sent.setdefault(step, set()).update(numbers)
      if numbers:
        rows.append({'step': step, **numbers})
      if pictures and step >= self._last_before:
        drawn.append((step, pictures))
    self._missing = []
    self._opened.send(rows, drawn)
    self._save()

  def close(self, status: str) -> None:
    """Sends what is missing, and closes the run at the tracker."""
    if self._missing:
      self.send([])
    if self._opened:
      self._opened.close(status)


def _read(pipe, received):
  """Puts everything that comes into a queue, so the run can always write."""
  status = None
  while not status:
    try:
      items = pickle.load(pipe)
    except Exception:  # the run was killed; the last pickle may be damaged
      items = ['killed']
    status = items.pop() if isinstance(items[-1], str) else None
    received.put((items, status))


def _send(received, sender):
  """Sends everything that comes; returns the status at the end."""
  if sender.has_work:
    sender.open()
  status = None
  while not status:
    items, status = received.get()
    if items:
      sender.send(items)
  return status


def main() -> None:
  """Sends a run to its tracker, until the run ends."""
  # The run stops first, and closes the pipe.
  for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
    if hasattr(signal, name):  # Windows has no SIGHUP
      signal.signal(getattr(signal, name), signal.SIG_IGN)
  answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)  # what the packages print

  def answer(**texts):
    with contextlib.suppress(OSError):  # the run was killed
      print(json.dumps(texts), file=answers, flush=True)

  try:
    # Python cannot end while a thread reads `sys.stdin`.
    pipe, received = os.fdopen(os.dup(0), 'rb'), queue.SimpleQueue()
    run = pickle.load(pipe)
    threading.Thread(target=_read, args=[pipe, received], daemon=True).start()
    import filelock  # a small installation has no filelock

    lock = filelock.FileLock(os.path.join(run['workdir'], 'tracker.lock'))
    try:
      lock.acquire(timeout=1)
    except filelock.Timeout:
      answer(info='tracker: waiting for the process of an earlier start')
    with lock:
      module = importlib.import_module(
        f'vit_jax.run.writers.{run["tracker"]}_run'
      )

      def open_run(run, run_id):
        opened = module.Run(run, run_id)
        answer(info=f'tracker: {opened.address}')
        return opened

      sender = Sender(run, open_run)
      sender.close(_send(received, sender))
    answer(done=True)
  except Exception as error:
    text = str(error).strip().partition('\n')[0].rstrip('.')
    answer(
      error=f'{type(error).__name__}: {text}', traceback=traceback.format_exc()
    )
