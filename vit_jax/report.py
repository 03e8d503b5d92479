"""What a run tells: the terminal, a log, scalars and a picture."""

import json
import logging
import os
import sys
import time

from clu import metric_writers

_TERMINAL_SECONDS = 10  # between progress lines where none can be redrawn

_log = logging.getLogger('vit_jax')  # to the terminal and to log.txt
_log_file = logging.getLogger('progress')  # to log.txt alone


def start_logging(workdir):
  """Sends this package's messages to the terminal and to log.txt."""
  file = logging.FileHandler(os.path.join(workdir, 'log.txt'))
  file.setFormatter(logging.Formatter(
      '%(asctime)s %(levelname)s %(name)s: %(message)s'))
  logging.getLogger().handlers = [file]
  logging.getLogger().setLevel(logging.WARNING)  # the libraries' messages
  terminal = logging.StreamHandler(sys.stderr)
  terminal.setFormatter(logging.Formatter('%(message)s'))
  _log.handlers = [terminal]
  for ours in (_log, _log_file):
    ours.setLevel(logging.INFO)


def duration(seconds):
  """'1:02:03' or '2:03'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else (
      f'{minutes}:{seconds:02}')


class _StatusLine:
  """A line that is written over itself; where it cannot be, now and then."""

  def __init__(self):
    self._shown = None

  def show(self, text):
    """Shows `text` in place of the last one."""
    now = time.monotonic()
    if sys.stderr.isatty():
      print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)
    elif self._shown is None or now - self._shown >= _TERMINAL_SECONDS:
      print(text, file=sys.stderr, flush=True)
    else:
      return
    self._shown = now

  def clear(self):
    """Makes room for a line that stays."""
    if sys.stderr.isatty() and self._shown is not None:
      print('\r\033[K', end='', file=sys.stderr, flush=True)


_status = _StatusLine()


def say(message, *args):
  """A message to the terminal and the log."""
  _status.clear()
  _log.info(message, *args)


def warn(message, *args):
  """A warning to the terminal and the log."""
  _status.clear()
  _log.warning('warning: ' + message, *args)


def log_traceback():
  """Writes the exception being handled to the log alone."""
  _status.clear()
  _log_file.error('stopped', exc_info=True)


def counting(items, total, doing):
  """Passes items on, showing after a while how many are done and time left."""
  start = time.monotonic()
  for done, item in enumerate(items):
    seconds = time.monotonic() - start
    if done and seconds > 2:
      left = duration(seconds / done * (total - done))
      _status.show(f'{doing}: {done}/{total}  {left} left')
    yield item
  _status.clear()


class Progress:
  """Measures the rate of a run and shows where it stands."""

  def __init__(self, total_steps, images_per_step):
    self._total_steps = total_steps
    self._images_per_step = images_per_step
    self._measured_steps = 0
    self._measured_seconds = 0.0

  def start_clock(self, step):
    """Measures from here: after compiling, evaluating or saving at `step`."""
    self._since_step, self._since = step, time.monotonic()

  def measure(self, step):
    """Images per second up to a finished step; None if no step was timed."""
    steps, seconds = step - self._since_step, time.monotonic() - self._since
    if not steps:
      return None
    self.start_clock(step)
    self._measured_steps += steps
    self._measured_seconds += seconds
    return steps * self._images_per_step / seconds

  def show(self, step, scalars, rate):
    """Shows loss, rate and time left."""
    line = (f'step {step}/{self._total_steps}  '
            f'loss {scalars["train_loss"]:.4f}  lr {scalars["lr"]:.2e}')
    if rate:
      left = (self._total_steps - step) * (
          self._measured_seconds / self._measured_steps)
      line += f'  {rate:.0f} images/s  {duration(left)} left'
    _log_file.info('%s', line)
    _status.show(line)


class Scalars:
  """Numbers by step: `metrics.jsonl`, TensorBoard events and a picture."""

  def __init__(self, workdir, first_step):
    """Opens them, keeping what was written up to `first_step`."""
    self._path = os.path.join(workdir, 'metrics.jsonl')
    self._picture = os.path.join(workdir, 'progress.png')
    self._rows = [row for row in read_scalars(self._path)
                  if row['step'] <= first_step]
    partial = f'{self._path}.partial'
    with open(partial, 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(row) + '\n' for row in self._rows)
    os.replace(partial, self._path)
    self._file = open(self._path, 'a', encoding='utf-8')
    self._writer = metric_writers.SummaryWriter(workdir)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()
    self._writer.close()

  def write(self, step, scalars):
    """Appends a row."""
    self._rows.append({'step': step, **scalars})
    self._file.write(json.dumps(self._rows[-1]) + '\n')
    self._file.flush()
    self._writer.write_scalars(step, scalars)
    self._writer.flush()

  def last(self, name):
    """The last row that holds `name`, or {}."""
    return next((row for row in reversed(self._rows) if name in row), {})

  def draw(self):
    """Writes the picture of loss, accuracy and learning rate over steps."""
    draw(self._rows, self._picture)


def read_scalars(path):
  """The rows of a `metrics.jsonl`, as dicts; a half-written last one is not."""
  if not os.path.exists(path):
    return []
  rows = []
  with open(path, encoding='utf-8') as file:
    for line in file:
      if not line.endswith('\n'):
        break
      rows.append(json.loads(line))
  return rows


def draw(rows, path):
  """A picture of loss, accuracy and learning rate over steps."""
  import matplotlib  # pylint: disable=g-import-not-at-top
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt  # pylint: disable=g-import-not-at-top

  figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout='constrained')
  panels = (('loss', ('train_loss', 'loss_test')),
            ('accuracy', ('accuracy_test',)), ('learning rate', ('lr',)))
  for axis, (title, names) in zip(axes, panels):
    for name in names:
      points = [(row['step'], row[name]) for row in rows if name in row]
      if points:
        axis.plot(*zip(*points), label=name,
                  marker='o' if len(points) < 25 else None, markersize=3)
    axis.set(title=title, xlabel='step')
    axis.grid(alpha=0.3)
  if axes[0].lines:
    axes[0].legend()
  figure.savefig(path, dpi=110)
  plt.close(figure)
