"""Ctrl-C while a command starts or ends: the process ends without a traceback.

Python raises KeyboardInterrupt at Ctrl-C. Until a command can handle it, and
after the command has ended, the process lets the system end it instead.
"""

import signal


def end_at_once() -> None:
  """Lets Ctrl-C end this process at once, as in a program that is not Python.

  A process that a shell script starts with `&` still ignores Ctrl-C. A Ctrl-C
  that `hold` has delayed takes effect.
  """
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  if hasattr(signal, 'pthread_sigmask'):  # not on Windows
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def raise_in_python() -> None:
  """Lets Ctrl-C raise KeyboardInterrupt again."""
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def hold() -> None:
  """Delays Ctrl-C until `end_at_once`, also across a restart of the process."""
  if hasattr(signal, 'pthread_sigmask'):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
