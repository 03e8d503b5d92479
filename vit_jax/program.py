"""What the programs share: arguments, quiet loading, leaving with one line."""

import argparse
import contextlib
import os
import sys
import tempfile
import traceback

from vit_jax import report


def leave(message, status=2):
  """Ends the program with one line on stderr."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(status)


@contextlib.contextmanager
def quiet():
  """Holds back what libraries write to the terminal while they load."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  sys.stderr.flush()
  terminal = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(terminal, held.read())
      raise
    finally:
      sys.stderr.flush()
      os.dup2(terminal, 2)
      os.close(terminal)


@contextlib.contextmanager
def mistakes_leave(hint='', log_path=None):
  """Turns exceptions into one line and an exit status.

  A user's mistake, or a full disk, gives 2; an interruption 130; anything
  else 1, with its trace in the log, or on stderr where there is no log.

  Args:
    hint: what to say where memory ran out.
    log_path: of the log that `report.start_logging` opened.
  """
  try:
    yield
  except BrokenPipeError:  # the reader, such as `head`, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (ValueError, OSError) as error:
    report.log_traceback()
    leave(error)
  except KeyboardInterrupt:
    report.log_traceback()
    leave('interrupted', status=130)
  except Exception as error:  # pylint: disable=broad-exception-caught
    report.log_traceback()
    first_line = str(error).partition('\n')[0]
    if 'RESOURCE_EXHAUSTED' in str(error):
      first_line += hint
    if log_path:
      first_line += f' (the trace is in {log_path})'
    else:
      traceback.print_exc()
    leave(f'{type(error).__name__}: {first_line}', status=1)


class Parser(argparse.ArgumentParser):
  """Arguments of a program whose module docstring is its help."""

  def __init__(self, name, docstring):
    super().__init__(
        prog=f'python -m {name}', description=docstring, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)

  def error(self, message):
    leave(f'{message}; see {self.prog} --help')


def positive(text):
  """A number of 1 or more, from an argument."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
  return int(text)
