"""Starting a command, and ending it with one line and an exit status."""

import contextlib
import errno
import os
import sys
import tempfile
import traceback

from vit_jax import console


def start(main):
  """Runs a program: `main` returns its exit status, or None for 0.

  A program that fails ends at once: threads of libraries, such as Orbax's that
  wait minutes for a folder that nobody makes, do not hold it.
  """
  _open_missing_streams()
  # A name that the terminal's encoding lacks is shown as '\\u0142'.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    status = main()
  except SystemExit as error:
    status = error.code
  if status:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(status)


def _open_missing_streams():
  """Opens /dev/null in place of standard streams that the caller closed.

  Otherwise the next file that is opened, such as a checkpoint, gets the number
  of the stream, and messages of libraries are written into it.
  """
  for number, name, mode in (
    (0, 'stdin', 'r'),
    (1, 'stdout', 'w'),
    (2, 'stderr', 'w'),
  ):
    try:
      os.fstat(number)
    except OSError:
      nowhere = os.open(os.devnull, os.O_RDWR)
      if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, mode, encoding='utf-8', closefd=False))


def exit_with_error(message, status=2):
  """Ends the program with one line on stderr."""
  console.write(f'error: {message}')
  sys.exit(status)


@contextlib.contextmanager
def quiet():
  """Holds back what libraries write to the terminal while they load."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  sys.stdout.flush()
  sys.stderr.flush()
  terminal = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
  with tempfile.TemporaryFile() as held:
    for descriptor in terminal:
      os.dup2(held.fileno(), descriptor)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(terminal[2], held.read())
      raise
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      for descriptor, copy in terminal.items():
        os.dup2(copy, descriptor)
        os.close(copy)


@contextlib.contextmanager
def mistakes_leave(
  memory='', disk='', log_path=None, leave_with=exit_with_error
):
  """Turns exceptions into one line and an exit status.

  A user's mistake, or a full disk, gives 2; an interruption 130; anything
  else 1, with its trace in the log, or on stderr where there is no log.

  Args:
    memory: what to do where it ran out.
    disk: what to do where it is full.
    log_path: of the log that `console.start_logging` opened.
    leave_with: what ends the program, as `leave` does.
  """
  try:
    yield
  except BrokenPipeError:  # the reader, such as `head`, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (ValueError, OSError) as error:
    console.log_traceback()
    full = disk and getattr(error, 'errno', None) == errno.ENOSPC
    leave_with(f'{error}: {disk}' if full else error)
  except KeyboardInterrupt:
    console.log_traceback()
    leave_with('interrupted', status=130)
  except MemoryError as error:  # it says what would help
    console.log_traceback()
    leave_with(error, status=1)
  except Exception as error:
    console.log_traceback()
    said = f'{type(error).__name__}: ' + str(error).partition('\n')[0]
    if memory and 'RESOURCE_EXHAUSTED' in str(error):
      said += f'. {memory}'
    if log_path:
      said += f' (the trace is in {log_path})'
    else:
      console.write(traceback.format_exc())
    leave_with(said, status=1)
