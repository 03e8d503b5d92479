"""Draws images and maps over them with matplotlib, without pyplot.

pyplot is not used, because it would change the figures of a notebook.

Shapes:  H, W image height, width · h, w rows and columns of patches
"""

from collections.abc import Sequence
import io
import math

from matplotlib import figure
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
import numpy as np

_DPI = 110
_SIDE = 2.4  # inches of the longer side of a panel
_HEAT = 'inferno'
_COSINE = 'RdBu_r'
_STRENGTH = 0.65  # opacity of a map over an image


def png(plot: figure.Figure) -> bytes:
  """Returns the PNG file of a figure; equal figures give equal bytes."""
  file = io.BytesIO()
  plot.savefig(
    file,
    format='png',
    dpi=_DPI,
    bbox_inches='tight',  # no label is cut off
    pad_inches=0.08,
    metadata={'Software': None},
  )
  return file.getvalue()


def shown(image: np.ndarray) -> np.ndarray:
  """Returns an image [H, W, C] in [−1, 1] as red, green and blue in [0, 1].

  Images that have neither 1 nor 3 channels are shown by their first channels.
  """
  image = np.clip(np.asarray(image, np.float32) / 2 + 0.5, 0, 1)
  count = image.shape[-1]
  return image[..., :3] if count >= 3 else image[..., :1].repeat(3, -1)


def _panels(shape, count, columns=5, bar=True, title=''):
  """Returns (figure, axes) for images of a shape, without ticks."""
  columns = min(columns, count)
  rows = math.ceil(count / columns)
  scale = _SIDE / max(shape)
  width, height = shape[1] * scale + 0.15, shape[0] * scale + 0.4
  size = columns * width + 1.1 * bar, rows * height + 0.35 * bool(title)
  plot = figure.Figure(
    figsize=(max(size[0], 0.08 * len(title)), size[1]), layout='constrained'
  )
  axes = plot.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes:
    axis.set_axis_off()
  plot.suptitle(title, fontsize=11)
  return plot, axes


def _extent(shape):
  return 0, shape[1], shape[0], 0


def _overlay(axis, image, values, cmap, limits, smooth=True):
  """Draws a map [h, w] over an image in gray."""
  extent = _extent(image.shape)
  gray = image.mean(-1)
  axis.imshow(gray, cmap='gray', vmin=0, vmax=1, extent=extent)
  axis.imshow(
    values,
    cmap=cmap,
    vmin=limits[0],
    vmax=limits[1],
    alpha=_STRENGTH,
    extent=extent,
    interpolation='bilinear' if smooth else 'nearest',
  )


def _bar(plot, axes, cmap, limits, label):
  scale = ScalarMappable(Normalize(*limits), cmap)
  plot.colorbar(scale, ax=list(axes), label=label, fraction=0.05, aspect=15)


def _outline(axis, mask, shape):
  """Draws the border of a set of patches."""
  h, w = mask.shape
  y, x = shape[0] / h, shape[1] / w
  padded = np.pad(mask, 1)
  for row in range(h + 1):
    for column in range(w + 1):
      here = padded[row + 1, column + 1]
      left, top = column * x, row * y
      if here != padded[row + 1, column]:
        axis.plot([left, left], [top, top + y], color='white', lw=0.9)
      if here != padded[row, column + 1]:
        axis.plot([left, left + x], [top, top], color='white', lw=0.9)


def _mark(axis, patch, grid, shape):
  """Marks a patch with a frame."""
  y, x = shape[0] / grid[0], shape[1] / grid[1]
  axis.add_patch(
    Rectangle((patch[1] * x, patch[0] * y), x, y, fill=False, ec='lime', lw=2)
  )


def maps(
  image: np.ndarray,
  panels: Sequence[tuple[str, np.ndarray]],
  *,
  label: str,
  title: str = '',
  limits: tuple[float, float] = (0, 1),
  is_cosine: bool = False,
  outlines: Sequence[np.ndarray] = (),
  patch: tuple[int, int] | None = None,
) -> figure.Figure:
  """Draws an image, and maps of its patches over it.

  Args:
    image: [H, W, C] in [−1, 1].
    panels: (title, values [h, w]) of each map.
    label: label of the color bar.
    title: title of the figure.
    limits: values of the lowest and the highest color.
    is_cosine: whether to use a color scale with a center.
    outlines: sets of patches, bool [h, w], to outline in each map.
    patch: (row, column) of a patch to mark.
  """
  image = shown(image)
  cmap = _COSINE if is_cosine else _HEAT
  plot, axes = _panels(image.shape, 1 + len(panels), title=title)
  axes[0].imshow(image, extent=_extent(image.shape))
  axes[0].set_title('input', fontsize=10)
  for i, (axis, (name, values)) in enumerate(
    zip(axes[1:], panels, strict=False)
  ):
    _overlay(axis, image, values, cmap, limits, smooth=not is_cosine)
    axis.set_title(name, fontsize=10)
    if len(outlines):
      _outline(axis, outlines[i], image.shape)
  if patch is not None:
    for axis in axes[: 1 + len(panels)]:
      _mark(axis, patch, panels[0][1].shape, image.shape)
  _bar(plot, axes, cmap, limits, label)
  return plot


def components(
  image: np.ndarray, mask: np.ndarray, colors: np.ndarray
) -> figure.Figure:
  """Draws an image, its foreground [h, w] and its colors [h, w, 3]."""
  image = shown(image)
  plot, axes = _panels(image.shape, 3, bar=False)
  extent = _extent(image.shape)
  axes[0].imshow(image, extent=extent)
  fine = np.kron(mask, np.ones((8, 8)))
  axes[1].imshow(image.mean(-1), cmap='gray', vmin=0, vmax=1, extent=extent)
  axes[1].imshow(fine, cmap='cividis', alpha=0.45, extent=extent)
  axes[2].imshow(colors, extent=extent, interpolation='nearest')
  names = 'input', 'foreground', 'components of\nthe foreground'
  for axis, name in zip(axes, names, strict=True):
    axis.set_title(name, fontsize=10)
  return plot


def filters(
  components: np.ndarray, fractions: np.ndarray, title: str
) -> figure.Figure:
  """Draws principal components of filters [n, P, P, C] in rows of 7."""
  plot, axes = _panels((1, 1), len(components), 7, bar=False, title=title)
  width, height = plot.get_size_inches()
  plot.set_size_inches(max(0.5 * width, 5), 0.5 * height + 0.4)
  for i, (axis, values) in enumerate(zip(axes, components, strict=False)):
    low, high = values.min(), values.max()
    values = (values - low) / (high - low if high > low else 1)
    # As in `shown`, but the values are in [0, 1].
    axis.imshow(shown(2 * values - 1), interpolation='nearest')
    axis.set_title(f'{i + 1}: {fractions[i]:.1%}', fontsize=7, pad=2)
  return plot


def row_of_images(
  images: Sequence[np.ndarray], titles: Sequence[str]
) -> figure.Figure:
  """Draws images [H, W, C] in [−1, 1] in one row, each with a title."""
  plot, axes = _panels(images[0].shape, len(images), len(images), bar=False)
  for axis, image, title in zip(axes, images, titles, strict=True):
    axis.imshow(shown(image))
    axis.set_title(title, fontsize=8)
  return plot


def position_tiles(similarities: np.ndarray, title: str) -> figure.Figure:
  """Draws similarities of positions [h, w, h, w] as h × w tiles."""
  rows, columns = similarities.shape[:2]
  gap = max(1, round(max(rows, columns) / 7))
  step = rows + gap, columns + gap
  canvas = np.full((rows * step[0] - gap, columns * step[1] - gap), np.nan)
  for i in range(rows):
    for j in range(columns):
      top, left = i * step[0], j * step[1]
      canvas[top : top + rows, left : left + columns] = similarities[i, j]
  scale = 5 / max(canvas.shape)
  plot = figure.Figure(
    figsize=(canvas.shape[1] * scale + 1.4, canvas.shape[0] * scale + 0.8),
    layout='constrained',
  )
  axis = plot.subplots()
  drawn = axis.imshow(
    canvas, cmap='viridis', vmin=-1, vmax=1, interpolation='nearest'
  )
  for axes, size, parts in (
    (axis.yaxis, rows, step[0]),
    (axis.xaxis, columns, step[1]),
  ):
    every = math.ceil(size / 14)
    numbers = np.arange(0, size, every)
    axes.set_ticks(numbers * parts + (parts - gap - 1) / 2, numbers)
  axis.set(xlabel='column of the patch', ylabel='row of the patch')
  axis.set_title(title, fontsize=11)
  axis.tick_params(length=0)
  for spine in axis.spines.values():
    spine.set_visible(False)
  plot.colorbar(drawn, ax=axis, label='cosine similarity', fraction=0.05)
  return plot
