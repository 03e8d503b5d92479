"""Starts a program, and turns an error into one line and an exit status."""

import _thread
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import errno
import faulthandler
import os
import re
import sys
import tempfile
import threading
import traceback
from typing import NoReturn

from vit_jax import console
from vit_jax.parallel import allocator
from vit_jax.parallel import interrupts

# A setting such as config.pp.crop, or the name of a Python argument before '='.
# Flags (--config.batch), paths (run/config.json) and URLs do not match.
_NAME = re.compile(r'(?<![-./?&\w])(?:config(?:\.\w+)+|\w+(?==))')

_NO_MEMORY = (
  'the memory of this machine, or the limit of this process (ulimit -v), does '
  'not suffice. Free memory, or raise the limit.'
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, `ulimit -f`


def start(main: Callable[[], int | None]) -> None:
  """Runs `main` and ends the process with the exit status that it returns.

  None means 0. A program that fails ends immediately. It does not wait for
  threads of libraries: after an error, a thread of Orbax can wait for minutes
  for a folder that is never created.
  """
  allocator.restart()
  _open_missing_streams()
  from vit_jax.data.image_files import libjpeg_messages

  libjpeg_messages.hide()
  sys.unraisablehook = _handle_ignored
  faulthandler.enable()  # prints the Python stack if a library crashes
  # Characters that the terminal cannot encode are printed as '\\u0142'.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    with exit_on_error():
      interrupts.raise_in_python()
      status = main()
  except SystemExit as error:
    status = error.code
  except KeyboardInterrupt:  # Ctrl-C again, while the first is handled
    status = 130
  interrupts.end_at_once()
  if status:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(status)


def _handle_ignored(unraisable):
  """Handles an exception that Python ignores, such as in a callback.

  Python would print a traceback, and the program would continue. A Ctrl-C is
  repeated. Any other exception is written to the log: when a checkpoint cannot
  be written, TensorStore raises dozens after the one that ends the run.
  """
  if issubclass(unraisable.exc_type, KeyboardInterrupt):
    # Here, it would be ignored again.
    threading.Timer(0.1, _thread.interrupt_main).start()
  else:
    console.log_ignored(unraisable.exc_value)


def _open_missing_streams():
  """Opens /dev/null for each standard stream that the caller has closed.

  Otherwise the next file that is opened, such as a checkpoint, gets the file
  descriptor of the stream. Libraries would then write messages into that file.
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


def with_flags(message: object, flags: Mapping[str, str]) -> str:
  """Returns a message in which flags replace Python arguments and settings.

  Args:
    message: message of a library, such as 'config.batch_eval=3 is too small'.
    flags: {name: flag}, such as {'config.batch_eval': '--batch', 'model_name':
      '--model'}. A Python argument is replaced only before '='. A name that is
      not in `flags` stays.
  """
  return _NAME.sub(lambda name: flags.get(name[0], name[0]), str(message))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides the output of libraries while they load, unless loading fails."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  sys.stdout.flush()
  sys.stderr.flush()
  descriptors = {1, 2}
  with contextlib.suppress(OSError):  # a notebook's stderr is not a file
    # `libjpeg_messages.hide` separates the stderr of Python from that of C++.
    descriptors.add(sys.stderr.fileno())
  terminal = {descriptor: os.dup(descriptor) for descriptor in descriptors}
  with tempfile.TemporaryFile() as held:
    for descriptor in terminal:
      os.dup2(held.fileno(), descriptor)
    try:
      yield
    except KeyboardInterrupt:
      raise
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
  disk: str = 'Free disk space, and run the command again',
  log_path: str | None = None,
  flags: Mapping[str, str] | None = None,
  exit_with: Callable[..., NoReturn] = exit_with_error,
) -> Iterator[None]:
  """Turns an exception into one line on stderr and an exit status.

  The status is 2 for a user's mistake and for a full disk, 130 for Ctrl-C, and
  1 for any other error. The traceback of any other error is in the log, or on
  stderr if there is no log.

  Args:
    memory: advice if a device is out of memory.
    disk: advice if the disk is full.
    log_path: path of the log that `console.start_logging` opened.
    flags: flags that replace names in the message; see `with_flags`.
    exit_with: function that ends the program; see `exit_with_error`.
  """

  def fail(message, status=2):
    exit_with(with_flags(message, flags or {}), status=status)

  try:
    yield
  except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (ValueError, OSError) as error:
    console.log_traceback()
    fail(_message(error, disk))
  except KeyboardInterrupt:
    console.log_traceback()
    fail('interrupted', status=130)
  except MemoryError as error:  # NumPy's message does not say what to do
    console.log_traceback()
    message = str(error) or _NO_MEMORY  # Python's own error has no text
    is_numpy = message.startswith('Unable to allocate')
    fail(f'{message}. {memory}' if memory and is_numpy else message, status=1)
  except Exception as error:
    console.log_traceback()
    if _is_interrupt(error):
      fail('interrupted', status=130)
    if str(error).startswith('Unable to initialize backend'):  # of JAX
      fail(str(error).partition('\n')[0])
    message = f'{type(error).__name__}: ' + str(error).partition('\n')[0]
    if memory and 'RESOURCE_EXHAUSTED' in str(error):
      message += f'. {memory}'
    if log_path:
      message += f' (the traceback is in {log_path})'
    else:
      console.write(traceback.format_exc())
    fail(message, status=1)


def _is_interrupt(error):
  """Returns whether Ctrl-C is the cause of an error, as in some imports."""
  while error and not isinstance(error, KeyboardInterrupt):
    error = error.__cause__ or error.__context__
  return error is not None


def _message(error, disk):
  """Returns 'PATH: No such file or directory' for an operating system error."""
  if not isinstance(error, OSError) or not error.strerror:
    return error
  if error.errno in _FULL:
    path = error.filename or 'a file, or the output,'
    if error.errno == errno.EFBIG:
      disk = 'Raise the limit of the size of files (ulimit -f)'
    return f'{path} cannot be written: {error.strerror}. {disk}'
  return f'{error.filename}: {error.strerror}' if error.filename else error
