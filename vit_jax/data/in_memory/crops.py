"""Crops, flips and resizing of a batch of images, in JAX.

The distribution of the boxes, and the resizing, are those of `preprocess`,
which uses TensorFlow. The random numbers are others. Values of resized images
differ by rounding errors, because the sums have another order.

Shapes:  B batch · H, W height and width of the images · A attempts
"""

import jax
import jax.numpy as jnp

from vit_jax.augment import grey_levels

_ASPECT_RATIOS = (3 / 4, 4 / 3)  # width / height
_ATTEMPTS = 100  # afterwards, the box is the full image


def to_unit_range(images: jax.Array) -> jax.Array:
  """Scales pixels from 0…255 to float32 in [−1, 1]; uint8 exactly."""
  if images.dtype == jnp.uint8:
    return grey_levels.to_images(images)
  return (images - 127.5) / 127.5


def random_boxes(
  keys: jax.Array, size: tuple[int, int], min_area: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Draws boxes with `min_area` to 1 of the image's area.

  As `tf.image.stateless_sample_distorted_bounding_box`, it draws a ratio of
  width to height, then a height among those that give an accepted area, then
  the place. The last row and the last column of places are never drawn. It
  tries again if rounding to pixels leaves the accepted areas or the image.

  Args:
    keys: a random key for each image [B].
    size: (height, width) of the images.
    min_area: smallest area of a box, as a fraction of the image.

  Returns:
    (top, left, height, width), int32 [B] each.
  """
  height, width = size
  draws = jax.vmap(lambda key: jax.random.uniform(key, (2, _ATTEMPTS)))(keys)
  ratio = _between(draws[:, 0], *_ASPECT_RATIOS)  # [B, A]
  rows, columns, fits = _fitted(ratio, draws[:, 1], size, min_area)
  first = jnp.argmax(fits, axis=1)[:, None]
  rows, columns = (
    jnp.where(
      fits.any(1), jnp.take_along_axis(x, first, axis=1)[:, 0], full
    ).astype(jnp.int32)
    for x, full in ((rows, height), (columns, width))
  )
  places = jax.vmap(
    lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (2,))
  )(keys)
  top, left = (
    jnp.floor(places[:, i] * free).astype(jnp.int32)
    for i, free in enumerate((height - rows, width - columns))
  )
  return top, left, rows, columns


def _between(x, low, high):
  return low + (high - low) * x


def _fitted(ratio, draw, size, min_area):
  """Returns (height, width, whether it is accepted) of drawn boxes.

  Args:
    ratio: width / height.
    draw: chooses the height, in [0, 1).
    size: (height, width) of the images.
    min_area: see `random_boxes`.
  """
  height, width = size
  largest = float(height * width)
  smallest = min_area * largest
  highest = jnp.rint(jnp.sqrt(largest / ratio))
  widest = jnp.floor((width + 0.5 - 1e-7) / ratio)
  highest = jnp.where(jnp.rint(highest * ratio) > width, widest, highest)
  highest -= jnp.rint(highest * ratio) > width
  highest = jnp.minimum(highest, height)
  lowest = jnp.minimum(jnp.rint(jnp.sqrt(smallest / ratio)), highest)
  rows = lowest + jnp.floor(draw * (highest - lowest + 1))
  # A box that is too small or too large by rounding changes by one row.
  rows += rows * jnp.rint(rows * ratio) < smallest
  rows -= rows * jnp.rint(rows * ratio) > largest
  columns = jnp.rint(rows * ratio)
  area = rows * columns
  fits = (area >= smallest) & (area <= largest)
  fits &= (rows <= height) & (columns <= width) & (rows > 0) & (columns > 0)
  return rows, columns, fits


def resize_boxes(
  images: jax.Array,
  boxes: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  size: tuple[int, int],
) -> jax.Array:
  """Resizes a box of each image bilinearly, as `preprocess.resize`.

  Args:
    images: pixels [B, H, W, C].
    boxes: (top, left, height, width) in pixels, [B] each.
    size: (height, width) of the result.

  Returns:
    float32 [B, *size, C] in 0…255.
  """
  top, left, height, width = boxes
  across_rows = _weights(top, height, size[0], images.shape[1])
  across_columns = _weights(left, width, size[1], images.shape[2])
  # Without 'highest', GPUs and TPUs round the pixels to fewer bits.
  x = jnp.einsum(
    'boh,bhwc->bowc',
    across_rows,
    images.astype(jnp.float32),
    precision='highest',
  )
  return jnp.einsum('bpw,bowc->bopc', across_columns, x, precision='highest')


def _weights(start, length, size, full):
  """Returns the weights [B, size, full] of pixels along one axis.

  Pixel centers are at half-pixels, and there is no anti-aliasing.

  Args:
    start: first pixels of the boxes [B].
    length: number of pixels of the boxes [B].
    size: number of pixels of the result.
    full: number of pixels of the images.
  """
  *pixels, second = _neighbors(length, size)
  first_pixel, second_pixel = (
    jax.nn.one_hot(start[:, None] + x, full) for x in pixels
  )
  second = second[..., None]
  return (1 - second) * first_pixel + second * second_pixel


def _neighbors(length, size):
  """Returns the two pixels [B, size] to interpolate, and the second's weight.

  Args:
    length: number of pixels of the boxes [B].
    size: number of pixels of the result.
  """
  length = length[:, None]
  place = (jnp.arange(size) + 0.5) * (length / size) - 0.5
  before = jnp.floor(place)
  first, second = (
    jnp.clip(x.astype(jnp.int32), 0, length - 1) for x in (before, before + 1)
  )
  return first, second, place - before


def resize_packed(
  pixels: jax.Array,
  sizes: jax.Array,
  size: tuple[int, int],
  flips: jax.Array | None = None,
) -> jax.Array:
  """Resizes images of several sizes bilinearly, as `preprocess.resize`.

  Args:
    pixels: [B, P]; row b begins with an image [height, width, 3], row by row.
    sizes: (height, width) of the images, int32 [B, 2].
    size: (height, width) of the result.
    flips: whether an image is flipped from left to right, bool [B].

  Returns:
    float32 [B, *size, 3] in 0…255.
  """
  above, below, weight_below = _neighbors(sizes[:, 0], size[0])
  columns = _neighbors(sizes[:, 1], size[1])
  if flips is not None:
    columns = [jnp.where(flips[:, None], x[:, ::-1], x) for x in columns]
  left, right, weight_right = columns

  def read(y, x):  # [B, height], [B, width] -> [B, height, width, 3]
    place = y[:, :, None] * sizes[:, 1, None, None] + x[:, None, :]
    places = 3 * place[..., None] + jnp.arange(3)
    found = jnp.take_along_axis(
      pixels, places.reshape(len(pixels), -1), axis=1, mode='clip'
    )
    return found.reshape(places.shape).astype(jnp.float32)

  def read_row(y):
    first = read(y, left)
    weight = weight_right[:, None, :, None]
    return first + (read(y, right) - first) * weight

  first = read_row(above)
  return first + (read_row(below) - first) * weight_below[:, :, None, None]


def resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes whole images [B, H, W, C] bilinearly; see `resize_boxes`."""
  ones = jnp.ones(len(images), jnp.int32)
  boxes = (0 * ones, 0 * ones, *(n * ones for n in images.shape[1:3]))
  return resize_boxes(images, boxes, size)


def flip(images: jax.Array, keys: jax.Array) -> jax.Array:
  """Flips each image [B, H, W, C] from left to right with probability 1/2."""
  flips = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
