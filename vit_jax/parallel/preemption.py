"""SIGTERM and Ctrl-C: a run finishes its step, saves its state and stops.

Schedulers send SIGTERM before they take a machine away. A single process
records the signal within `watching`. With several processes, JAX records
SIGTERM in each process after `processes.start`. After each step, the run calls
`requested`. If it returns True, the run saves and raises `Preempted`. Loops
inside a step, such as an evaluation, iterate over `checked(items)`.

All processes must stop at the same call of `requested`, even if only one
process got the signal. JAX's `reached_preemption_sync_point` chooses the first
call that no process has reached. It needs calls numbered 0, 1, 2, …. All
processes must make the calls in the same order: after every step, and at every
batch of an evaluation.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import itertools
import signal
import threading

import jax
from jax.experimental import multihost_utils

from vit_jax import console

EXIT_STATUS = 128 + signal.SIGTERM  # 143, the status of SIGTERM in shells


class Preempted(Exception):
  """A signal stops a run or an evaluation. The run can resume later."""


_noted = threading.Event()
_interrupted = threading.Event()  # the signal was Ctrl-C
_question = itertools.count()


def _note(*_):
  _noted.set()


def _note_interrupt(*_):
  """Requests a stop, as SIGTERM does; a second Ctrl-C stops at once."""
  if _interrupted.is_set():
    raise KeyboardInterrupt
  _interrupted.set()
  with contextlib.suppress(RuntimeError):  # another message is being written
    console.log_info(
      'Ctrl-C: stopping after this step. A second Ctrl-C stops at once, '
      'without saving'
    )
  if jax.process_count() > 1:
    signal.raise_signal(signal.SIGTERM)  # JAX notifies all processes
  else:
    _noted.set()


@contextlib.contextmanager
def watching() -> Iterator[None]:
  """Records SIGTERM and Ctrl-C instead of ending the process at once.

  Only Python's main thread can handle signals. In other threads, nothing
  changes.

  Raises:
    KeyboardInterrupt: replaces `Preempted` if the signal was Ctrl-C.
  """
  handlers = {signal.SIGINT: _note_interrupt}
  if jax.process_count() == 1:
    handlers[signal.SIGTERM] = _note
  if threading.current_thread() is not threading.main_thread():
    handlers = {}
  before = {
    number: signal.signal(number, handler)
    for number, handler in handlers.items()
    # A process that a shell script starts with `&` must ignore Ctrl-C.
    if signal.getsignal(number) != signal.SIG_IGN
  }
  try:
    yield
  except Preempted:
    if _interrupted.is_set():
      raise KeyboardInterrupt from None
    raise
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _noted.clear()
    _interrupted.clear()


def cause() -> str:
  """Returns the name of the recorded signal, for messages."""
  return 'Ctrl-C' if _interrupted.is_set() else 'SIGTERM'


def requested() -> bool:
  """Returns whether to stop; equal on all processes, which must all call it."""
  if (
    jax.process_count() > 1
    and not _noted.is_set()
    and multihost_utils.reached_preemption_sync_point(next(_question))
  ):
    _noted.set()  # JAX returns True only once
  return _noted.is_set()


def checked(items: Iterable) -> Iterator:
  """Yields the items; raises Preempted when the signal arrives.

  Args:
    items: their number must be equal on all processes.
  """
  for item in items:
    if requested():
      raise Preempted
    yield item
