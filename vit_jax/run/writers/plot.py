"""Plots the metrics of a run: `progress.png`."""

from collections.abc import Iterable
from collections.abc import Mapping
import os
from typing import Any


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
  plot.savefig(f'{path}.partial', format='png')
  os.replace(f'{path}.partial', path)
