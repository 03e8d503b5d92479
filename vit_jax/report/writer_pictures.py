"""Pictures of a report, for TensorBoard and trackers."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.augment import picture
from vit_jax.figures import drawing
from vit_jax.report import numbers
from vit_jax.report import plots

_COLUMNS = 6


def confusion(
  matrix: Sequence[Sequence[int]], class_names: Sequence[str]
) -> bytes:
  """Returns the PNG file of a confusion matrix; see `plots.confusion`.

  The page and the writers need the same file. 40 classes take two seconds.
  """
  return _confusion(tuple(map(tuple, matrix)), tuple(class_names))


@functools.lru_cache(1)
def _confusion(matrix, class_names):
  return drawing.png(plots.confusion(matrix, class_names))


def draw(
  measured: Mapping[str, Any],
  class_names: Sequence[str],
  images: Mapping[int, np.ndarray],
) -> dict[str, np.ndarray]:
  """Returns the confusion matrix and the worst mistakes, if there are any.

  Args:
    measured: from `test_pass.TestPass.measure`.
    class_names: names of the classes.
    images: {index: image [H, W, C] in [-1, 1]} of the mistakes.

  Returns:
    {name: uint8 [height, width, 3]}.
  """
  drawn = {}
  matrix = measured.get('confusion', {}).get('matrix')
  if matrix:
    file = io.BytesIO(confusion(matrix, class_names))
    with Image.open(file) as plot:
      drawn['confusion_matrix'] = np.asarray(plot.convert('RGB'))
  rows = measured.get('mistakes')
  if rows:
    stack = np.stack([drawing.shown(images[row['index']]) for row in rows])
    drawn['worst_mistakes'] = picture.draw(
      2 * stack - 1, list(map(_caption, rows)), _COLUMNS
    )
  return drawn


def _caption(row):
  """Returns the true and the predicted class or values, in two lines."""
  if 'probability' in row:
    predicted = f'{row["predicted"]} {row["probability"]:.0%}'
    return f'true {row["true"]}\npred. {predicted}'
  true, predicted = (
    numbers.with_units(row[name], row['units'])
    for name in ('true', 'predicted')
  )
  return f'true {true}\npred. {predicted}'
