"""Writes the metrics of a run: JSON lines, TensorBoard events, plot, tables."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import glob
import importlib.util
import json
import math
import os
from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.files import json_files
from vit_jax.files import regular_files

_OF_EVENTS = ('clu', 'tensorboard', 'tensorflow')


class MetricLog:
  """Metrics by step: `metrics.jsonl`, TensorBoard events, `progress.png`."""

  def __init__(self, workdir, first_step, writes=True, main_metric='accuracy'):
    """Opens the files, and removes metrics of steps after `first_step`.

    Args:
      workdir: the run folder.
      first_step: number of completed updates.
      writes: whether to write files. Only one of several processes writes.
      main_metric: metric to plot next to the loss.
    """
    self._folder = workdir
    self._path = os.path.join(workdir, 'metrics.jsonl')
    self._plot = os.path.join(workdir, 'progress.png')
    self._rows = [row for row in read(self._path) if row['step'] <= first_step]
    self._file = None
    self._writes = writes
    self._main_metric = main_metric
    if not writes:
      return
    self._rewrite()
    self._writer = None
    if _are_installed(_OF_EVENTS, 'files for TensorBoard'):
      _drop_events_after(first_step, workdir)
      self._writer = _open_events(workdir)
    self._draws = _are_installed(('matplotlib',), 'progress.png')

  def _rewrite(self):
    """Writes all rows to a new file, and opens the file to append rows."""
    partial = f'{self._path}.partial'
    with open(partial, 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(row) + '\n' for row in self._rows)
    if self._file:
      self._file.close()  # Windows cannot replace a file that is open
    os.replace(partial, self._path)
    self._file = open(self._path, 'a', encoding='utf-8')

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if not self._writes:
      return
    self._file.close()
    if self._writer:
      self._writer.close()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends a row, or extends the row of `step`; skips non-finite values."""
    scalars = {
      name: value for name, value in scalars.items() if math.isfinite(value)
    }
    same_step = bool(self._rows) and self._rows[-1]['step'] == step
    if same_step:
      self._rows[-1].update(scalars)
    else:
      self._rows.append({'step': step, **scalars})
    if not self._writes:
      return
    if same_step:
      self._rewrite()
    else:
      self._file.write(json.dumps(self._rows[-1]) + '\n')
      self._file.flush()
    if self._writer:
      self._writer.write_scalars(step, scalars)
      self._writer.flush()

  def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Writes NAME.png, and an image for TensorBoard.

    Args:
      step: step of the image in TensorBoard.
      name: name of the file and of the image.
      picture: uint8 [height, width, 3].
    """
    if not self._writes:
      return
    from PIL import Image

    Image.fromarray(picture).save(os.path.join(self._folder, f'{name}.png'))
    if self._writer:
      self._writer.write_images(step, {name: picture[None]})
      self._writer.flush()

  @property
  def rows(self) -> list[dict[str, Any]]:
    """Rows in order of steps: dicts with a `step`."""
    return self._rows

  def at(self, step: int) -> dict[str, Any]:
    """Returns the last row if it is the row of `step`, or {}."""
    return (
      self._rows[-1]
      if self._rows[-1:] and self._rows[-1]['step'] == step
      else {}
    )

  def draw(self) -> None:
    """Plots loss, main metric and learning rate over steps to a file."""
    if self._writes and self._draws:
      draw(self._rows, self._plot, self._main_metric)


def read(path: str) -> list[dict[str, Any]]:
  """Returns the rows of a `metrics.jsonl`, without an incomplete last line."""
  if not os.path.exists(path):
    return []
  regular_files.check(path)
  rows = []
  with open(path, encoding='utf-8', errors='replace') as file:
    for line in file:
      if not line.endswith('\n'):
        break
      try:
        row = json_files.loads(line)
        json_files.check(row, {'step': int, str: float}, path)
      except ValueError as error:
        raise ValueError(
          f'{path}: line {len(rows) + 1} is damaged: {line.strip()[:60]!r}. '
          'Remove this line'
        ) from error
      rows.append(row)
  return rows


def write_table(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows with equal keys to a CSV file, which replaces an older one."""
  partial = f'{path}.partial'
  with open(partial, 'w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  os.replace(partial, path)


def _are_installed(modules, files):
  """Returns whether modules are installed; logs which files are missing."""
  missing = [x for x in modules if importlib.util.find_spec(x) is None]
  if missing:
    console.log_info(
      f'without {" and ".join(missing)}, the run writes no {files}. '
      'metrics.jsonl has the same metrics'
    )
  return not missing


def _open_events(folder):
  """Returns a writer of TensorBoard events."""
  from clu import metric_writers

  return metric_writers.SummaryWriter(folder)


def _drop_events_after(step, folder):
  """Removes events after `step` from TensorBoard's files.

  A resumed run writes these events again. TensorBoard would show them twice.
  """
  from tensorboard.backend.event_processing import event_file_loader
  from tensorboard.compat.proto import event_pb2
  from tensorboard.summary.writer import record_writer

  partial = os.path.join(folder, 'events.partial')  # not read by TensorBoard
  for path in glob.glob(os.path.join(glob.escape(folder), '*tfevents*')):
    dropped = False
    with open(partial, 'wb') as file:
      writer = record_writer.RecordWriter(file)
      for record in event_file_loader.RawEventFileLoader(path).Load():
        if event_pb2.Event.FromString(record).step <= step:
          writer.write(record)
        else:
          dropped = True
    if dropped:
      os.replace(partial, path)
    else:
      os.remove(partial)


def _panels(rows, main_metric):
  """Returns (title, names of metrics) for each panel of the plot."""
  names = list(dict.fromkeys(name for row in rows for name in row))

  def of(metric):
    return [
      name
      for name in names
      if name == f'train_{metric}' or name.startswith(f'{metric}_')
    ]

  middle = (main_metric, of(main_metric))
  if main_metric == 'loss':
    middle = ('gradient norm', [n for n in names if n == 'grad_norm'])
  panels = [('loss', of('loss')), middle]
  if 'lr' in names:  # an optimizer of one's own may not report it
    panels.append(('learning rate', ['lr']))
  return panels


def draw(
  rows: Iterable[Mapping[str, Any]], path: str, main_metric: str
) -> None:
  """Plots loss, main metric and learning rate over steps to a file."""
  from matplotlib import figure

  # pyplot is not used, because it would change the figures of a notebook. The
  # margins are constants: an automatic layout would draw the figure twice.
  panels = _panels(rows, main_metric)
  plot = figure.Figure(figsize=(12, 3.2), dpi=110)
  axes = plot.subplots(
    1,
    len(panels),
    gridspec_kw=dict(left=0.06, right=0.99, bottom=0.15, top=0.91, wspace=0.25),
  )
  for axis, (title, names) in zip(axes, panels, strict=True):
    for name in names:
      points = [(row['step'], row[name]) for row in rows if name in row]
      axis.plot(
        *zip(*points, strict=True),
        label=name,
        marker='o' if len(points) < 25 else None,
        markersize=3,
      )
    axis.set(title=title, xlabel='step')
    axis.grid(alpha=0.3)
    if len(names) > 1:
      axis.legend()
  plot.savefig(path)
