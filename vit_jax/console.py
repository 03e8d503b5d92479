"""Messages, progress bars and the log file of a run."""

from collections.abc import Callable
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

try:
  import tqdm
except ModuleNotFoundError:  # a small installation has no progress bars
  tqdm = None

_TERMINAL_SECONDS = 10  # between progress lines that cannot be redrawn
_QUIET_SECONDS = 2  # shorter work shows no progress

_silent = False

_log = logging.getLogger('vit_jax')
_log.setLevel(logging.INFO)
_log.propagate = False  # this module prints messages, not the root handler
_log.addHandler(logging.NullHandler())


def start_logging(workdir: str | os.PathLike) -> None:
  """Writes messages and warnings of libraries to `workdir`/log.txt."""
  logging.raiseExceptions = False  # no traceback per line on a full disk
  file = logging.FileHandler(os.path.join(workdir, 'log.txt'), encoding='utf-8')
  file.setFormatter(
    logging.Formatter('%(asctime)s %(levelname)s %(name)s: %(message)s')
  )
  logging.getLogger().handlers = [file]
  logging.getLogger().setLevel(logging.WARNING)
  _log.handlers = [file]


def be_silent() -> None:
  """Stops the messages of this process and discards warnings of libraries.

  In a run of several processes, only process 0 writes messages. Every process
  can still write errors.
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


# {character: escape} of characters that control a terminal, or the direction of
# the text. A class or a file can have such a name.
_ESCAPES = {
  code: f'\\x{code:02x}' if code < 256 else f'\\u{code:04x}'
  for code in (
    *range(0x20),
    *range(0x7F, 0xA0),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
  )
}
_ESCAPES_OF_LINES = {k: x for k, x in _ESCAPES.items() if chr(k) not in '\n\t'}


def printable(text: object, lines: bool = False) -> str:
  """Returns a text in which control characters are escaped, such as '\\x1b'.

  Args:
    text: the text, or an object that becomes one.
    lines: whether line ends and tabs stay.
  """
  return str(text).translate(_ESCAPES_OF_LINES if lines else _ESCAPES)


def show(line: object = '') -> None:
  """Prints a line of a result to stdout, without control characters."""
  print(printable(line))


def write(text: str) -> None:
  """Writes lines to the terminal; does nothing if the terminal is closed."""
  _write(printable(text, lines=True) + '\n')


def _write(text):
  """Writes to the terminal, with control characters.

  A notebook shows stderr in red, as errors, so messages go to its stdout.
  """
  in_notebook = type(sys.stderr).__module__.startswith('ipykernel.')
  try:
    file = sys.stdout if in_notebook else sys.stderr
    print(text, end='', file=file, flush=True)
  except BlockingIOError:
    pass  # the reader is too slow, and the pipe is full
  except (OSError, ValueError):  # stderr is closed, or its reader has ended
    with contextlib.suppress(OSError, ValueError):
      # Libraries also write to stderr, and so does Python when it exits.
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, sys.stderr.fileno())
      os.close(null)


def _is_terminal():
  return not sys.stderr.closed and sys.stderr.isatty()


class _StatusLine:
  """A line that a terminal redraws; other streams get a line every 10 s."""

  def __init__(self):
    self._last_time = None  # seconds, of the last line

  def show(self, text):
    """Replaces the line with `text`."""
    if _silent:
      return
    now = time.monotonic()
    if _is_terminal():
      _write(f'\r\033[K{printable(text)}')
    elif self._last_time is None or now - self._last_time >= _TERMINAL_SECONDS:
      write(text)
    else:
      return
    self._last_time = now

  def clear(self):
    """Erases the line before another message is written."""
    if self._last_time is not None and _is_terminal():
      _write('\r\033[K')


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
  _log.info('%s', printable(message, lines=True))


def log_traceback() -> None:
  """Writes the current exception to the log, if there is a log."""
  if _silent and not isinstance(sys.exception(), KeyboardInterrupt):
    write(traceback.format_exc())  # the log belongs to process 0
  _status.clear()
  _log.error('stopped', exc_info=True)


def log_ignored(error: BaseException | None) -> None:
  """Writes an exception that Python ignores to the log, if there is a log."""
  _log.error('ignored', exc_info=error)


class _NoBar:
  """Replaces a progress bar where tqdm is not installed: it shows nothing."""

  def __init__(self, iterable: Iterable = (), **settings):
    del settings
    self._iterable = iterable

  def __iter__(self):
    return iter(self._iterable)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    return None

  def update(self, n: int = 1) -> None:
    """Counts n more."""


class Bar(tqdm.tqdm if tqdm else _NoBar):
  """A tqdm progress bar that is shown as the status line.

  Without tqdm, nothing is shown. The bar appears after `_QUIET_SECONDS` and
  disappears when it is closed. huggingface_hub uses this class for downloads.
  """

  monitor_interval = 0  # `miniters` is fixed, so no monitor thread is needed

  def __init__(self, *args, **settings):
    columns = shutil.get_terminal_size().columns
    settings |= {
      'delay': _QUIET_SECONDS,
      # The status line can show only one of several bars.
      'disable': settings.get('position', 0) > 0,
      'file': io.StringIO(),  # tqdm must not write to the terminal
      'leave': False,
      'miniters': 1,
      'ncols': columns - 1,  # a line that wraps could not be redrawn
    }
    super().__init__(*args, **settings)

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Shows the bar; tqdm calls this with '' to close the bar."""
    text = str(self) if msg is None else msg
    if text:
      _status.show(text)
    else:
      _status.clear()


def counting(items: Iterable, total: int, doing: str) -> Iterable:
  """Returns `items` as an iterable that shows progress after 2 s."""
  return Bar(items, total=total, desc=doing)


@contextlib.contextmanager
def counter(
  total: int, first: int, doing: str, unit: str
) -> Iterator[Callable[[int], None]]:
  """Yields a function that counts n more, and shows rate and time left.

  Args:
    total: number of all items.
    first: number of items that are already done.
    doing: text before the bar.
    unit: what is counted, such as ' images'.
  """
  with Bar(total=total, initial=first, desc=doing, unit=unit) as bar:
    yield bar.update


def file_size(num_bytes: int) -> str:
  """Returns '412.3 MB', or '103 bytes' for a small number."""
  return (
    f'{num_bytes / 1e6:.1f} MB' if num_bytes >= 1e5 else f'{num_bytes} bytes'
  )


class Progress:
  """Measures the speed of a run and shows its progress."""

  def __init__(self, total_steps, images_per_step):
    self._total_steps = total_steps
    self._images_per_step = images_per_step
    self._measured_steps = 0
    self._measured_seconds = 0.0

  def start_clock(self, step: int) -> None:
    """Starts to measure at `step`, after compilation, evaluation or saving."""
    self._since_step, self._since = step, time.monotonic()

  def measure(self, step: int) -> float | None:
    """Returns images per second since the clock started; None without steps."""
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
    """Shows loss, learning rate, images per second and remaining time.

    An optimizer of one's own may have no learning rate, and a first step has no
    images per second.
    """
    line = f'step {step}/{self._total_steps}  loss {scalars["train_loss"]:.4f}'
    if 'lr' in scalars:
      line += f'  lr {scalars["lr"]:.2e}'
    if rate:
      left = (self._total_steps - step) * (
        self._measured_seconds / self._measured_steps
      )
      line += f'  {rate:.0f} images/s  {duration(left)} left'
    log(line)
    _status.show(line)
