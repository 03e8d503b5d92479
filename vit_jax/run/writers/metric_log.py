"""The metrics of a run by step, and the writers that get them."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import importlib.util
import json
import math
import os
from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.files import json_files
from vit_jax.files import regular_files
from vit_jax.run.writers import events
from vit_jax.run.writers import plot


class MetricLog:
  """Metrics by step. It gives each row to all writers of the run."""

  def __init__(
    self,
    workdir: str,
    first_step: int,
    writes: bool = True,
    main_metric: str = 'accuracy',
    writers: Sequence[Callable] = (),
  ):
    """Opens the files, and removes metrics of steps after `first_step`.

    Args:
      workdir: the run folder.
      first_step: number of completed updates.
      writes: whether to write files. Only one of several processes writes.
      main_metric: metric to plot next to the loss.
      writers: more writers; see `vit_jax.train_and_evaluate`.
    """
    self._plot = os.path.join(workdir, 'progress.png')
    self._main_metric = main_metric
    self._lines = _JsonLines(workdir, first_step, writes)
    self._writers, self._events = [self._lines], None
    self._draws = writes and _are_installed(('matplotlib',), 'progress.png')
    if not writes:
      return
    self._writers.append(_PictureFiles(workdir))
    if _are_installed(events.MODULES, 'files for TensorBoard'):
      events.drop_after(first_step, workdir)
      self._events = events.Events(workdir)
      self._writers.append(self._events)
    self._writers += map(Guarded, writers)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._lines.close()
    if self._events:
      self._events.close()

  def write(
    self,
    step: int,
    numbers: Mapping[str, float],
    pictures: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    """Gives the row of a step, or more of it, to all writers.

    Args:
      step: number of completed updates.
      numbers: metrics. Values that are not finite are skipped.
      pictures: uint8 [height, width, 3] of each name.
    """
    numbers = {k: value for k, value in numbers.items() if math.isfinite(value)}
    for writer in self._writers:
      writer(step, numbers, pictures or {})

  @property
  def rows(self) -> list[dict[str, Any]]:
    """Rows in order of steps: dicts with a `step`."""
    return self._lines.rows

  def at(self, step: int) -> dict[str, Any]:
    """Returns the last row if it is the row of `step`, or {}."""
    last = self.rows[-1] if self.rows else {}
    return last if last.get('step') == step else {}

  def draw(self) -> None:
    """Plots loss, main metric and learning rate over steps to a file."""
    if self._draws:
      plot.draw(self.rows, self._plot, self._main_metric)


class _JsonLines:
  """The writer of `metrics.jsonl`, which also keeps the rows."""

  def __init__(self, workdir, first_step, writes):
    """Drops rows after `first_step`; without `writes`, it only keeps rows."""
    self._path = os.path.join(workdir, 'metrics.jsonl')
    self.rows = [row for row in read(self._path) if row['step'] <= first_step]
    self._writes, self._file = writes, None
    if writes:
      self._rewrite()

  def _rewrite(self):
    """Writes all rows to a new file, and opens the file to append rows."""
    partial = f'{self._path}.partial'
    with open(partial, 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(row) + '\n' for row in self.rows)
    self.close()  # Windows cannot replace a file that is open
    os.replace(partial, self._path)
    self._file = open(self._path, 'a', encoding='utf-8')

  def __call__(self, step, numbers, pictures):
    """Appends a row, or extends the row of `step`."""
    if not numbers:
      return
    same_step = bool(self.rows) and self.rows[-1]['step'] == step
    if same_step:
      self.rows[-1].update(numbers)
    else:
      self.rows.append({'step': step, **numbers})
    if self._writes and same_step:
      self._rewrite()
    elif self._writes:
      self._file.write(json.dumps(self.rows[-1]) + '\n')
      self._file.flush()

  def close(self):
    if self._file:
      self._file.close()


class _PictureFiles:
  """A writer of the newest picture of each name: NAME.png."""

  def __init__(self, workdir):
    self._folder = workdir

  def __call__(self, step, numbers, pictures):
    for name, picture in pictures.items():
      from PIL import Image

      path = os.path.join(self._folder, f'{name}.png')
      Image.fromarray(picture).save(f'{path}.partial', 'png')
      os.replace(f'{path}.partial', path)


class Guarded:
  """A writer that never stops a run: after an error, it only warns."""

  def __init__(self, writer: Callable):
    """Creates a writer.

    Args:
      writer: the writer to call, until it fails.
    """
    self._writer = writer
    self._has_failed = False

  def __call__(
    self,
    step: int,
    numbers: Mapping[str, float],
    pictures: Mapping[str, np.ndarray],
  ) -> None:
    """Calls the writer with copies; logs a warning for its first error."""
    if self._has_failed or not (numbers or pictures):
      return
    try:
      self._writer(step, dict(numbers), dict(pictures))
    except Exception as error:
      self._has_failed = True
      console.log_traceback()
      name = getattr(self._writer, '__name__', type(self._writer).__name__)
      text = str(error).partition('\n')[0]
      console.log_info(
        f'warning: the writer {name} failed at step {step} '
        f'({type(error).__name__}: {text}). It gets no more metrics. The run '
        'continues, and metrics.jsonl has all metrics'
      )


@contextlib.contextmanager
def reopened(
  workdir: str, writers: Sequence[Callable] = ()
) -> Iterator[list[Callable]]:
  """Yields the writers of a complete run that get its last pictures.

  They are TensorBoard, if it is installed, and the given writers. A writer that
  fails only gets a warning.

  Args:
    workdir: the run folder.
    writers: more writers.
  """
  written = events.Events(workdir)
  with contextlib.closing(written):
    yield [
      *([Guarded(written)] if not _missing(events.MODULES) else []),
      *map(Guarded, writers),
    ]


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


def _missing(modules):
  return [x for x in modules if importlib.util.find_spec(x) is None]


def _are_installed(modules, files):
  """Returns whether modules are installed; logs which files are missing."""
  missing = _missing(modules)
  if missing:
    console.log_info(
      f'without {" and ".join(missing)}, the run writes no {files}. '
      'metrics.jsonl has the same metrics'
    )
  return not missing
