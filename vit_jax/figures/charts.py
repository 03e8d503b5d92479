"""Draws charts of the blocks of a model with matplotlib, without pyplot.

Shapes:  L blocks · A attention heads · N patches
"""

from collections.abc import Sequence
import math

from matplotlib import colormaps
from matplotlib import figure
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
import numpy as np


def _chart(title, xlabel, ylabel, size=(5.6, 3.8)):
  plot = figure.Figure(figsize=size, layout='constrained')
  axis = plot.subplots()
  axis.set_title(title, fontsize=11)
  axis.set(xlabel=xlabel, ylabel=ylabel)
  axis.grid(alpha=0.3)
  return plot, axis


def offset_norms(norms: np.ndarray) -> figure.Figure:
  """Draws norms of relative positions by block and offset [L, 2N − 1]."""
  plot, axis = _chart(
    'relative positions', 'offset of the key in patches, row by row', 'norm'
  )
  reach = norms.shape[1] // 2
  for i, row in enumerate(norms):
    color = colormaps['viridis'](i / max(len(norms) - 1, 1))
    axis.plot(np.arange(-reach, reach + 1), row, lw=0.9, color=color)
  scale = ScalarMappable(Normalize(0, max(len(norms) - 1, 1)), 'viridis')
  plot.colorbar(scale, ax=axis, label='block')
  return plot


def distances(
  values: np.ndarray, count: int, renormalized: bool, farthest: float
) -> figure.Figure:
  """Draws mean attention distances [L, A] over depth, a dot for each head.

  Args:
    values: distances in pixels.
    count: number of images.
    renormalized: whether the weights are divided by their sum over the patches.
    farthest: the distance of uniform attention, drawn as a line.
  """
  label = 'mean attention distance (pixels)'
  if renormalized:
    label += ',\nweights of patches renormalized'
  images = 'image' if count == 1 else 'images'
  plot, axis = _chart(f'{count} {images}, a dot for each head', 'block', label)
  axis.axhline(farthest, color='gray', ls='--', lw=1)
  axis.text(0, farthest, 'uniform attention', color='gray', va='bottom')
  for block, row in enumerate(values):
    axis.scatter([block] * len(row), row, s=18, alpha=0.7, color='C0')
  axis.set_xticks(range(0, len(values), math.ceil(len(values) / 12)))
  axis.set_ylim(0, 1.12 * max(values.max(), farthest))
  return plot


def cka(values: np.ndarray, count: int) -> figure.Figure:
  """Draws the CKA of all pairs of blocks [L, L]."""
  plot, axis = _chart(
    f'CKA of block outputs, {count} images', 'block', 'block', (4.8, 4)
  )
  axis.grid(False)
  drawn = axis.imshow(values, cmap='magma', vmin=0, vmax=1, origin='lower')
  ticks = range(0, len(values), math.ceil(len(values) / 12))
  axis.set_xticks(ticks)
  axis.set_yticks(ticks)
  plot.colorbar(drawn, ax=axis, label='CKA')
  return plot


def norms(values: Sequence[np.ndarray], cutoff: float) -> figure.Figure:
  """Draws the norms of patches: of the last block, and over depth.

  Args:
    values: norms of all patches of each block [n, N], of n images.
    cutoff: larger norms of the last block are outliers.
  """
  plot = figure.Figure(figsize=(9, 3.6), layout='constrained')
  left, right = plot.subplots(1, 2)
  last = values[-1].ravel()
  outliers = (last > cutoff).mean()
  left.hist(last, bins=60, color='C0')
  left.set_yscale('log')
  left.axvline(cutoff, color='C3', ls='--', lw=1)
  left.set_title(
    f'last block: {outliers:.2%} of the patches beyond {cutoff:.3g}',
    fontsize=10,
  )
  left.set(xlabel='norm of a patch', ylabel='patches')
  for name, fraction in (('largest', 1), ('99 %', 0.99), ('median', 0.5)):
    rows = [np.quantile(x, fraction) for x in values]
    right.plot(rows, 'o-', ms=3, label=name)
  right.set_title('all blocks', fontsize=10)
  right.set(xlabel='block', ylabel='norm of a patch')
  right.set_yscale('log')
  right.set_xticks(range(0, len(values), math.ceil(len(values) / 12)))
  right.legend()
  for axis in (left, right):
    axis.grid(alpha=0.3)
  return plot
