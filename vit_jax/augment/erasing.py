"""Random erasing (Zhong et al. 2017, arXiv 1708.04896), as in timm.

Shapes:  H, W height and width · C channels
"""

import math

import jax
import jax.numpy as jnp

from vit_jax.augment import operations

_MIN_AREA, _MAX_AREA = 0.02, 1 / 3  # of the image
_MAX_LOG_RATIO = math.log(1 / 0.3)  # of the height to the width
_TRIES = 10
# timm fills with standard normal noise after the normalization with ImageNet's
# standard deviations, on average 0.226 of the range of pixels. Here the range
# has the length 2.
_NOISE = 0.45


def draw_box(key: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Returns a random box; see `operations.in_box`.

  The first of ten boxes is used that is smaller than the image. If none is, the
  box is empty.

  Args:
    key: random key.
    size: (H, W) of the image.
  """
  height, width = size
  area, ratio, top, left = jax.random.uniform(key, (4, _TRIES))
  area = height * width * (_MIN_AREA + (_MAX_AREA - _MIN_AREA) * area)
  ratio = jnp.exp(_MAX_LOG_RATIO * (2 * ratio - 1))
  heights = jnp.round(jnp.sqrt(area * ratio))
  widths = jnp.round(jnp.sqrt(area / ratio))
  tops = jnp.floor(top * (height - heights + 1))
  lefts = jnp.floor(left * (width - widths + 1))
  boxes = jnp.stack([tops, tops + heights, lefts, lefts + widths])
  fits = (heights < height) & (widths < width)
  box = boxes[:, jnp.argmax(fits)].astype(jnp.int32)
  return jnp.where(fits.any(), box, 0)


def erase(key: jax.Array, image: jax.Array, rate: float) -> jax.Array:
  """Fills a random box of an image with noise.

  Args:
    key: random key.
    image: float32 [H, W, C] in [-1, 1].
    rate: probability of a box.
  """
  size = image.shape[:2]
  keys = jax.random.split(key, 3)
  inside = operations.in_box(draw_box(keys[0], size), size)
  inside &= jax.random.uniform(keys[1]) < rate
  noise = _NOISE * jax.random.normal(keys[2], image.shape)
  return jnp.where(inside[..., None], noise, image)
