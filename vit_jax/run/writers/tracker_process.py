"""The process that sends a run to a tracker; `trackers` starts it.

It reads pickles from standard input: the dict of `trackers.Tracker.start`, and
then lists of (step, numbers, pictures). A text in a list is the status at the
end of the run. It answers with JSON lines.

`tracker.json` in the run folder has the id of the run at each tracker, and the
last step that was sent. So a resumed run continues its curve.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import importlib
import json
import os
import pickle
import signal
import sys
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
    self._all = json_files.read_json(
      self._path, {str: {'id': str, 'step': int}}
    )
    self._all = self._all or {}
    self._name, self._run = run['tracker'], run
    self._open_run, self._opened = open_run, None
    # A start at step 0 is another run, even in the same folder.
    known = self._all.get(self._name) if run['first_step'] else None
    self._id = known and known['id']
    self._set_last(known['step'] if known else 0)

  def _set_last(self, step):
    """Sets the last step that earlier starts have sent."""
    self._last = self._sent_before = step
    rows, first_step = self._run['rows'], self._run['first_step']
    self._missing = [row for row in rows if step < row['step'] <= first_step]
    self._sent = {row['step']: row for row in rows if row['step'] <= step}

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
      self._set_last(0)
    self._save()

  def _save(self):
    self._all[self._name] = {'id': self._opened.id, 'step': self._last}
    json_files.write_json(self._path, self._all)

  def send(self, items: Sequence[tuple[int, dict, dict]]) -> None:
    """Sends what was not sent before of (step, numbers, pictures)."""
    self.open()
    rows, drawn = self._missing, []
    self._missing = []
    for step, numbers, pictures in items:
      sent = self._sent.get(step, {})
      numbers = {k: value for k, value in numbers.items() if k not in sent}
      if numbers:
        rows.append({'step': step, **numbers})
      if pictures and step >= self._sent_before:
        drawn.append((step, pictures))
    self._opened.send(rows, drawn)
    steps = [row['step'] for row in rows] + [step for step, _ in drawn]
    self._last = max([self._last, *steps])
    self._save()

  def close(self, status: str) -> None:
    """Sends what is missing, and closes the run at the tracker."""
    if self._missing:
      self.send([])
    if self._opened:
      self._opened.close(status)


def _receive(pipe, sender):
  """Sends everything that comes; returns the status at the end."""
  if sender.has_work:
    sender.open()
  while True:
    try:
      items = pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError):  # the run was killed
      return 'killed'
    status = items.pop() if isinstance(items[-1], str) else None
    if items:
      sender.send(items)
    if status:
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
    pipe = sys.stdin.buffer
    run = pickle.load(pipe)
    module = importlib.import_module(
      f'vit_jax.run.writers.{run["tracker"]}_run'
    )

    def open_run(run, run_id):
      opened = module.Run(run, run_id)
      answer(info=f'tracker: {opened.address}')
      return opened

    sender = Sender(run, open_run)
    sender.close(_receive(pipe, sender))
    answer(done=True)
  except Exception as error:
    text = str(error).strip().partition('\n')[0].rstrip('.')
    answer(
      error=f'{type(error).__name__}: {text}', traceback=traceback.format_exc()
    )
