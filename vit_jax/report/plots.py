"""Draws the curves, the confusion matrix and the calibration of a run.

Shapes:  K classes · N examples
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from matplotlib import figure
import numpy as np

_MOST_POINTS = 1000  # of a curve
_LONGEST_NAME = 18


def _panels(rows, main_metric):
  """Returns {title: names of metrics} of the curves that the rows have."""
  names = list(dict.fromkeys(name for row in rows for name in row))

  def of(metric):
    return [
      n for n in names if n == f'train_{metric}' or n.startswith(f'{metric}_')
    ]

  panels = {
    'loss': of('loss'),
    main_metric.replace('_', ' '): of(main_metric),
    'learning rate': [n for n in names if n == 'lr'],
    'gradient norm': [n for n in names if n == 'grad_norm'],
    'images per second and device': [
      n for n in names if n.startswith('images_per_second')
    ],
  }
  return {title: found for title, found in panels.items() if found}


def curves(
  rows: Sequence[Mapping[str, float]], main_metric: str
) -> figure.Figure | None:
  """Draws the metrics of a run over its steps; None if there are none.

  Args:
    rows: rows of `metrics.jsonl`.
    main_metric: metric of the second panel.
  """
  panels = _panels(rows, main_metric)
  if not panels:
    return None
  columns = min(3, len(panels))
  lines = math.ceil(len(panels) / columns)
  plot = figure.Figure(figsize=(10, 2.7 * lines), layout='constrained')
  axes = plot.subplots(lines, columns, squeeze=False).ravel()
  for axis in axes[len(panels) :]:
    axis.set_axis_off()
  for axis, (title, names) in zip(axes, panels.items(), strict=False):
    for name in names:
      points = [(row['step'], row[name]) for row in rows if name in row]
      points = points[:: -(-len(points) // _MOST_POINTS)]
      marker = 'o' if len(points) < 25 else None
      axis.plot(
        *zip(*points, strict=True), label=name, marker=marker, markersize=3
      )
    axis.set_title(title, fontsize=10)
    axis.set_xlabel('step', fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(names) > 1:
      axis.legend(fontsize=8)
  return plot


def _plain(text: str) -> str:
  """Returns a short name that matplotlib does not read as a formula."""
  if len(text) > _LONGEST_NAME:
    text = f'{text[: _LONGEST_NAME - 1]}…'
  return text.replace('$', r'\$')


def confusion(
  matrix: Sequence[Sequence[int]], class_names: Sequence[str]
) -> figure.Figure:
  """Draws a confusion matrix [K, K]: rows are true, columns are predicted."""
  matrix = np.asarray(matrix)
  count = len(matrix)
  sums = matrix.sum(1, keepdims=True)
  fractions = matrix / np.where(sums > 0, sums, 1)
  side = max(3.5, 0.28 * count + 2)
  plot = figure.Figure(figsize=(side + 0.8, side), layout='constrained')
  axis = plot.subplots()
  drawn = axis.imshow(fractions, cmap='Blues', vmin=0, vmax=1)
  names = [_plain(name) for name in class_names]
  axis.set_xticks(range(count), names, rotation=90, fontsize=8)
  axis.set_yticks(range(count), names, fontsize=8)
  axis.set(xlabel='predicted class', ylabel='true class')
  size = 9 if count <= 20 else 5.5
  for i, j in zip(*np.nonzero(matrix), strict=True):
    color = 'white' if fractions[i, j] > 0.5 else 'black'
    axis.text(
      *(j, i, str(matrix[i, j])),
      ha='center',
      va='center',
      color=color,
      fontsize=size,
    )
  plot.colorbar(drawn, ax=axis, label='fraction of the true class', shrink=0.7)
  return plot


def reliability(
  bins: Sequence[Mapping[str, Any]], error: float
) -> figure.Figure:
  """Draws accuracy over confidence, and the number of images of each bin.

  Args:
    bins: from `numbers.reliability`.
    error: expected calibration error.
  """
  plot = figure.Figure(figsize=(4.6, 4.8), layout='constrained')
  top, bottom = plot.subplots(
    2, 1, sharex=True, gridspec_kw={'height_ratios': (3, 1)}
  )
  used = [row for row in bins if row['images']]
  width = 1 / len(bins)
  left = [row['from'] for row in used]
  style = dict(width=width, align='edge', edgecolor='white')
  top.bar(left, [row['accuracy'] for row in used], label='accuracy', **style)
  top.plot([0, 1], [0, 1], color='black', ls='--', lw=1, label='calibrated')
  top.plot(
    [row['confidence'] for row in used],
    [row['accuracy'] for row in used],
    'o',
    color='tab:red',
    ms=4,
    clip_on=False,
    label='mean confidence',
  )
  top.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy')
  top.set_title(f'expected calibration error {error:.2%}', fontsize=10)
  top.legend(fontsize=8, loc='upper left')
  bottom.bar(left, [row['images'] for row in used], color='gray', **style)
  bottom.set(xlabel='probability of the predicted class', ylabel='images')
  return plot


def predictions(
  labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> figure.Figure:
  """Draws predicted over true values of up to four targets [N, T]."""
  count = min(4, len(names))
  plot = figure.Figure(figsize=(3.2 * count + 0.4, 3.4), layout='constrained')
  axes = plot.subplots(1, count, squeeze=False).ravel()
  for i, axis in enumerate(axes):
    x, y = labels[:, i], predicted[:, i]
    axis.plot(x, y, '.', ms=3, alpha=0.5, rasterized=True)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axis.plot(ends, ends, color='black', ls='--', lw=1)
    axis.set(xlabel='true', ylabel='predicted')
    axis.set_title(_plain(names[i]), fontsize=10)
  return plot
