"""Starts a program; ends it with one line and an exit status on an error."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import errno
import faulthandler
import os
import sys
import tempfile
import traceback
from typing import NoReturn

from vit_jax import console


def start(main: Callable[[], int | None]) -> None:
  """Runs a program: `main` returns its exit status, or None for 0.

  A program that fails ends at once. It does not wait for threads of libraries:
  Orbax's wait minutes for a folder that no process makes.
  """
  _open_missing_streams()
  faulthandler.enable()  # a crash in a library prints where it was called
  # A character that the terminal's encoding lacks is printed as '\\u0142'.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    with exit_on_error():
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

  Otherwise the next file that is opened, such as a checkpoint, gets the file
  descriptor of the stream, and libraries write their messages into it.
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


def exit_with_error(message: object, status: int = 2) -> NoReturn:
  """Ends the program with the line 'error: …' on stderr."""
  console.write(f'error: {message}')
  sys.exit(status)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Discards what libraries print while they load, unless loading fails."""
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
def exit_on_error(
  memory: str = '',
  disk: str = '',
  log_path: str | None = None,
  exit_with: Callable[..., NoReturn] = exit_with_error,
) -> Iterator[None]:
  """Turns an exception into one line on stderr and an exit status.

  The status is 2 for a user's mistake and for a full disk, 130 for an
  interruption, and 1 for anything else. In the last case the traceback is in
  the log, or on stderr if there is no log.

  Args:
    memory: advice for a device that runs out of memory.
    disk: advice for a full disk.
    log_path: the log that `console.start_logging` opened.
    exit_with: the function that ends the program; see `exit_with_error`.
  """
  try:
    yield
  except BrokenPipeError:  # the reader, such as `head`, has ended
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (ValueError, OSError) as error:
    console.log_traceback()
    full = disk and getattr(error, 'errno', None) == errno.ENOSPC
    exit_with(f'{error}: {disk}' if full else _message(error))
  except KeyboardInterrupt:
    console.log_traceback()
    exit_with('interrupted', status=130)
  except MemoryError as error:  # its message contains advice
    console.log_traceback()
    exit_with(error, status=1)
  except Exception as error:
    console.log_traceback()
    message = f'{type(error).__name__}: ' + str(error).partition('\n')[0]
    if memory and 'RESOURCE_EXHAUSTED' in str(error):
      message += f'. {memory}'
    if log_path:
      message += f' (the traceback is in {log_path})'
    else:
      console.write(traceback.format_exc())
    exit_with(message, status=1)


def _message(error):
  """Returns 'path: No such file or directory' for an error of the system."""
  if isinstance(error, OSError) and error.filename and error.strerror:
    return f'{error.filename}: {error.strerror}'
  return error
