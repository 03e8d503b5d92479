"""SIGTERM, by which schedulers announce that a machine is taken away.

Within `watching`, a process alone only notes the signal; of several, each does
from `processes.start` on, and looks at it there. The run asks `requested` when
a step is done, saves, and raises `Preempted`. Work that may take long passes
its items through `checked`. Of several processes all stop at the same of these
questions, whichever of them got the signal: JAX's own notice
(`reached_preemption_sync_point`) names the first that none has come to. It
wants them numbered 0, 1, 2, …, and all processes ask the same ones in the same
order: after every step, and at every batch of an evaluation.
"""

import contextlib
import itertools
import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM  # 143, as shells report the signal itself


class Preempted(Exception):
  """The run was told to stop, and has saved what is needed to go on."""


_noted = threading.Event()
_question = itertools.count()


@contextlib.contextmanager
def watching():
  """Notes SIGTERM instead of dying of it; in the main thread of one process."""
  handled = (threading.current_thread() is threading.main_thread()
             and jax.process_count() == 1)
  before = handled and signal.signal(signal.SIGTERM, lambda *_: _noted.set())
  try:
    yield
  finally:
    if handled:
      signal.signal(signal.SIGTERM, before)
    _noted.clear()


def requested():
  """Whether to stop; of several processes, all must ask, and all get told."""
  if (jax.process_count() > 1 and not _noted.is_set()
      and multihost_utils.reached_preemption_sync_point(next(_question))):
    _noted.set()  # JAX says it once
  return _noted.is_set()


def checked(items):
  """Passes items on; raises Preempted when the signal comes.

  Args:
    items: as many on every process.
  """
  for item in items:
    if requested():
      raise Preempted
    yield item
