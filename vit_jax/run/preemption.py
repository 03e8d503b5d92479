"""SIGTERM and Ctrl-C: a run stops after the step it is in, and saves.

Schedulers send SIGTERM before they take a machine away. Within `watching`, a
process alone only notes the signal; of several, JAX notes SIGTERM in each from
`processes.start` on. The run asks `requested` when a step is done, saves, and
raises `Preempted`. Work that may take long passes its items through `checked`.
Of several processes all stop at the same of these questions, whichever of them
got the signal: JAX's own notice (`reached_preemption_sync_point`) names the
first that none has come to. It wants them numbered 0, 1, 2, …, and all
processes ask the same ones in the same order: after every step, and at every
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

EXIT_STATUS = 128 + signal.SIGTERM  # 143, as shells report the signal itself


class Preempted(Exception):
  """The run stops at a signal, and has saved what is needed to go on."""


_noted = threading.Event()
_interrupted = threading.Event()  # noted, because of Ctrl-C
_question = itertools.count()


def _note(*_):
  _noted.set()


def _note_interrupt(*_):
  """Stops like SIGTERM; the second Ctrl-C stops at once."""
  if _interrupted.is_set():
    raise KeyboardInterrupt
  _interrupted.set()
  with contextlib.suppress(RuntimeError):  # in the middle of another message
    console.log_info(
      'Ctrl-C: stopping when this step is done. Ctrl-C again stops at '
      'once, and saves nothing'
    )
  if jax.process_count() > 1:
    signal.raise_signal(signal.SIGTERM)  # which JAX passes on to all
  else:
    _noted.set()


@contextlib.contextmanager
def watching() -> Iterator[None]:
  """Notes SIGTERM and Ctrl-C instead of ending at once.

  Python lets only the main thread handle signals; in others, nothing changes.

  Raises:
    KeyboardInterrupt: in place of `Preempted`, where Ctrl-C was the cause.
  """
  handlers = {signal.SIGINT: _note_interrupt}
  if jax.process_count() == 1:
    handlers[signal.SIGTERM] = _note
  if threading.current_thread() is not threading.main_thread():
    handlers = {}
  before = {
    number: signal.signal(number, handler)
    for number, handler in handlers.items()
    # Ctrl-C is ignored in what a shell script starts with `&`.
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
  """The signal that was noted, for messages."""
  return 'Ctrl-C' if _interrupted.is_set() else 'SIGTERM'


def requested() -> bool:
  """Whether to stop; of several processes, all must ask, and all get told."""
  if (
    jax.process_count() > 1
    and not _noted.is_set()
    and multihost_utils.reached_preemption_sync_point(next(_question))
  ):
    _noted.set()  # JAX says it once
  return _noted.is_set()


def checked(items: Iterable) -> Iterator:
  """Passes items on; raises Preempted when the signal comes.

  Args:
    items: as many on every process.
  """
  for item in items:
    if requested():
      raise Preempted
    yield item
