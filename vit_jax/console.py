"""Messages, progress and the log file of a run."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import io
import logging
import os
import shutil
import sys
import time
import traceback

import tqdm

_TERMINAL_SECONDS = 10  # between progress lines where none can be redrawn
_QUIET_SECONDS = 2  # what takes no longer shows no progress

_silent = False

_log = logging.getLogger('vit_jax')
_log.setLevel(logging.INFO)
_log.propagate = False  # messages are printed here, not by a root handler
_log.addHandler(logging.NullHandler())


def start_logging(workdir: str | os.PathLike) -> None:
  """Writes messages, and warnings of the libraries, to `workdir`/log.txt."""
  logging.raiseExceptions = False  # a full disk is told once, not at each line
  file = logging.FileHandler(os.path.join(workdir, 'log.txt'), encoding='utf-8')
  file.setFormatter(
    logging.Formatter('%(asctime)s %(levelname)s %(name)s: %(message)s')
  )
  logging.getLogger().handlers = [file]
  logging.getLogger().setLevel(logging.WARNING)
  _log.handlers = [file]


def be_silent() -> None:
  """Makes this process show and log only warnings of the libraries.

  Of several processes, the first one writes the messages.
  """
  global _silent
  _silent = True
  logging.getLogger().handlers = [logging.NullHandler()]


def duration(seconds: float) -> str:
  """Returns '1:02:03' or '2:03'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}'
    if hours
    else (f'{minutes}:{seconds:02}')
  )


def write(text: str, end: str = '\n') -> None:
  """Writes to the terminal; a run goes on if there is none any more."""
  try:
    print(text, end=end, file=sys.stderr, flush=True)
  except BlockingIOError:
    pass  # nobody reads at the moment
  except (OSError, ValueError):  # closed, or its reader has ended
    with contextlib.suppress(OSError, ValueError):
      # Libraries write there too, and Python when it ends.
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, sys.stderr.fileno())
      os.close(nowhere)


def _is_terminal():
  return not sys.stderr.closed and sys.stderr.isatty()


class _StatusLine:
  """A line that is redrawn in a terminal, and elsewhere written every 10 s."""

  def __init__(self):
    self._shown = None

  def show(self, text):
    """Shows `text` in place of the last one."""
    if _silent:
      return
    now = time.monotonic()
    if _is_terminal():
      write(f'\r\033[K{text}', end='')
    elif self._shown is None or now - self._shown >= _TERMINAL_SECONDS:
      write(text)
    else:
      return
    self._shown = now

  def clear(self):
    """Erases the line, so that another one can be written."""
    if self._shown is not None and _is_terminal():
      write('\r\033[K', end='')


_status = _StatusLine()


def log_info(message: str) -> None:
  """Writes a message to the terminal and the log."""
  if _silent:
    return
  _status.clear()
  write(message)
  log(message)


def log(message: str) -> None:
  """Writes a message to the log only."""
  _log.info('%s', message)


def log_traceback() -> None:
  """Writes the exception being handled to the log, where there is one."""
  if _silent and not isinstance(sys.exception(), KeyboardInterrupt):
    write(traceback.format_exc())  # the log is another process's
  _status.clear()
  _log.error('stopped', exc_info=True)


class Bar(tqdm.tqdm):
  """A progress bar of tqdm that is drawn as the status line.

  It appears after `_QUIET_SECONDS` and disappears when it is closed.
  huggingface_hub draws its downloads with it too.
  """

  monitor_interval = 0  # no thread, which `miniters` makes superfluous

  def __init__(self, *args, **settings):
    columns = shutil.get_terminal_size().columns
    settings |= {
      'delay': _QUIET_SECONDS,
      # The status line has room for one of several bars.
      'disable': settings.get('position', 0) > 0,
      'file': io.StringIO(),  # tqdm itself writes nothing to the terminal
      'leave': False,
      'miniters': 1,
      'ncols': columns - 1,  # a line that wraps cannot be redrawn
    }
    super().__init__(*args, **settings)

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Shows the bar; tqdm calls this with '' when it is closed."""
    text = str(self) if msg is None else msg
    if text:
      _status.show(text)
    else:
      _status.clear()


def counting(items: Iterable, total: int, doing: str) -> Iterator:
  """Returns an iterable of the same items that shows progress after 2 s."""
  return Bar(items, total=total, desc=doing)


def file_size(num_bytes: int) -> str:
  """Returns '412.3 MB', or '103 bytes' for a small number."""
  return (
    f'{num_bytes / 1e6:.1f} MB' if num_bytes >= 1e5 else f'{num_bytes} bytes'
  )


class Progress:
  """Measures the rate of a run and shows where it stands."""

  def __init__(self, total_steps, images_per_step):
    self._total_steps = total_steps
    self._images_per_step = images_per_step
    self._measured_steps = 0
    self._measured_seconds = 0.0

  def start_clock(self, step: int) -> None:
    """Starts to measure at `step`, after compiling, evaluating or saving."""
    self._since_step, self._since = step, time.monotonic()

  def measure(self, step: int) -> float | None:
    """Returns images per second up to `step`; None if no step was timed."""
    steps, seconds = step - self._since_step, time.monotonic() - self._since
    if not steps:
      return None
    self.start_clock(step)
    self._measured_steps += steps
    self._measured_seconds += seconds
    return steps * self._images_per_step / seconds

  def show(
    self, step: int, scalars: Mapping[str, float], rate: float | None
  ) -> None:
    """Shows loss, rate and time left."""
    line = (
      f'step {step}/{self._total_steps}  '
      f'loss {scalars["train_loss"]:.4f}  lr {scalars["lr"]:.2e}'
    )
    if rate:
      left = (self._total_steps - step) * (
        self._measured_seconds / self._measured_steps
      )
      line += f'  {rate:.0f} images/s  {duration(left)} left'
    log(line)
    _status.show(line)
