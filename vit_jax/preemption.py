"""SIGTERM, by which schedulers announce that a machine is taken away.

Within `watching`, the signal is only noted: the run asks `requested` when a
step is done, saves, and raises `Preempted`. Work that may take long passes its
items through `checked`. Of several processes all stop at the same step: JAX's
own notice (`reached_preemption_sync_point`) makes them agree on it.
"""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM  # 143, as shells report the signal itself


class Preempted(Exception):
  """The run was told to stop, and has saved what is needed to go on."""


_noted = threading.Event()


@contextlib.contextmanager
def watching():
  """Notes SIGTERM instead of dying of it; in the main thread of one process."""
  _noted.clear()
  if (threading.current_thread() is not threading.main_thread()
      or jax.process_count() > 1):
    yield
    return
  before = signal.signal(signal.SIGTERM, lambda *_: _noted.set())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def requested(step):
  """Whether every process has to stop after this step."""
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(step)
  return _noted.is_set()


def checked(items):
  """Passes items on; raises Preempted when the signal comes."""
  for item in items:
    if _noted.is_set():
      raise Preempted
    yield item
