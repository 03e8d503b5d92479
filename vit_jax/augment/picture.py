"""A picture of the first augmented training images, with their labels.

Shapes:  N images of the picture · H, W height and width · K classes
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_COLUMNS, _ROWS = 8, 3
_SIDES = 96, 256  # smallest and largest side of an image in the picture
_CAPTION = 34  # height of two lines


def first_rows(
  transform: Callable,
  key: jax.Array,
  batch: Mapping[str, jax.Array],
  sharding: Any = None,
) -> dict[str, np.ndarray]:
  """Returns images and labels of the first rows, as training gets them.

  Args:
    transform: (key, batch, step, train) -> batch; see `task.Task`.
    key: random key of the first step.
    batch: global arrays.
    sharding: of the results, so that a process can read them.
  """

  @functools.partial(jax.jit, out_shardings=sharding)
  def run(batch):
    new = transform(key, batch, jnp.int32(0), True)
    return {
      name: new[name][: _COLUMNS * _ROWS]
      for name in ('image', 'label')
      if name in new
    }

  return jax.device_get(run(batch))


def draw_rows(
  rows: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> np.ndarray:
  """Returns a picture of `first_rows`, uint8 [height, width, 3].

  Args:
    rows: `image` [N, H, W, 3] and, if there are labels, `label`.
    class_names: names of the classes, if there are any.
  """
  texts = ()
  if 'label' in rows:
    texts = describe_labels(rows['label'], class_names)
  return draw(rows['image'], texts)


def draw(
  images: np.ndarray, labels: Sequence[str] = (), columns: int = _COLUMNS
) -> np.ndarray:
  """Returns a picture of images in rows, uint8 [height, width, 3].

  Args:
    images: [N, H, W, 3] in [-1, 1].
    labels: text below each image.
    columns: number of images in a row.
  """
  from PIL import Image
  from PIL import ImageDraw
  from PIL import ImageFont

  count, height, width, _ = images.shape
  longest = max(height, width)
  scale = 1.0
  if longest < _SIDES[0]:
    scale = -(-_SIDES[0] // longest)  # whole pixels stay sharp
  elif longest > _SIDES[1]:
    scale = _SIDES[1] / longest
  size = round(width * scale), round(height * scale)
  step = size[0] + 4, size[1] + (_CAPTION if labels else 4)
  columns = min(count, columns)
  rows = -(-count // columns)
  picture = Image.new('RGB', (columns * step[0], rows * step[1]), 'white')
  write, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
  pixels = np.clip(np.round(images * 127.5 + 127.5), 0, 255).astype(np.uint8)
  for i, image in enumerate(pixels):
    left, top = i % columns * step[0], i // columns * step[1]
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    picture.paste(Image.fromarray(image).resize(size, way), (left, top))
    if labels:
      place = left, top + size[1] + 1
      # The next column covers text that is too long.
      write.rectangle((place, (picture.width, top + step[1])), 'white')
      write.multiline_text(place, labels[i], 'black', font, spacing=1)
  return np.asarray(picture)


def describe_labels(
  labels: np.ndarray, class_names: Sequence[str]
) -> list[str]:
  """Returns a text for each label: 'cat 0.62' and 'dog 0.38' in two lines.

  Args:
    labels: class numbers [N], rows of classes [N, K], or targets without
      classes, [N] or [N, K].
    class_names: names of the classes; empty for targets.
  """
  if not class_names:
    rows = labels.reshape(len(labels), -1)
    return ['\n'.join(f'{x:.4g}' for x in row[:2]) for row in rows]
  if labels.ndim == 1:
    return [class_names[label] for label in labels]
  texts = []
  for row in labels:
    largest = [i for i in np.argsort(-row, kind='stable')[:2] if row[i] > 0]
    texts.append(
      '\n'.join(
        class_names[i] + ('' if row[i] == 1 else f' {row[i]:.2f}')
        for i in largest
      )
    )
  return texts
