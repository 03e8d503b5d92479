"""Moves the pixels of one image: affine maps, and crops of a padded image.

An affine map is a matrix [2, 3] from a place in the result to a place in the
image: (row, column) = matrix · (row, column, 1). The center of the first pixel
is (0, 0).

Shapes:  H, W height and width · C channels
"""

import jax
import jax.numpy as jnp


def matrix(
  rows: tuple[jax.typing.ArrayLike, ...],
  columns: tuple[jax.typing.ArrayLike, ...],
) -> jax.Array:
  """Returns the matrix [2, 3] with these two rows, in float32."""
  return jnp.stack([jnp.stack([*map(jnp.float32, x)]) for x in (rows, columns)])


def rotation(degrees: jax.typing.ArrayLike, size: tuple[int, int]) -> jax.Array:
  """Returns a counterclockwise rotation about the center of the image."""
  radians = jnp.deg2rad(jnp.float32(degrees))
  cos, sin = jnp.cos(radians), jnp.sin(radians)
  row, column = ((n - 1) / 2 for n in size)
  return matrix(
    (cos, sin, row - cos * row - sin * column),
    (-sin, cos, column + sin * row - cos * column),
  )


def shear(
  by_row: jax.typing.ArrayLike = 0.0,
  by_column: jax.typing.ArrayLike = 0.0,
  corner: float = 0.0,
) -> jax.Array:
  """Returns a shear. The corner of the image does not move.

  Args:
    by_row: pixels that the column changes with each row.
    by_column: pixels that the row changes with each column.
    corner: place of the corner in the row and in the column. 0 is the center of
      the first pixel, as in TensorFlow; -0.5 is its corner, as in Pillow.
  """
  return matrix(
    (1.0, by_column, -corner * by_column), (by_row, 1.0, -corner * by_row)
  )


def translation(
  rows: jax.typing.ArrayLike = 0.0, columns: jax.typing.ArrayLike = 0.0
) -> jax.Array:
  """Returns a translation of the image, up and to the left, in pixels."""
  return matrix((1.0, 0.0, rows), (0.0, 1.0, columns))


def resample(
  image: jax.Array, of: jax.Array, fill: int, bilinear: bool = False
) -> jax.Array:
  """Returns the image under a map, uint8 [H, W, C].

  Args:
    image: uint8 [H, W, C].
    of: matrix [2, 3].
    fill: value of pixels whose place is outside of the image.
    bilinear: whether to interpolate between four pixels, as Pillow does.
      Otherwise, the nearest pixel is used.
  """
  height, width, _ = image.shape
  row, column = jnp.mgrid[:height, :width].astype(jnp.float32)
  rows, columns = (m[0] * row + m[1] * column + m[2] for m in of)
  pixels = image.reshape(height * width, -1)

  def read(i, j):
    i, j = (
      jnp.clip(x.astype(jnp.int32), 0, n - 1)
      for x, n in ((i, height), (j, width))
    )
    return jnp.take(pixels, i * width + j, axis=0, mode='clip')

  if bilinear:
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper, lower = (
      read(i, left) * (1 - right) + read(i, left + 1) * right
      for i in (top, top + 1)
    )
    found = (upper * (1 - down) + lower * down).astype(jnp.uint8)
  else:
    found = read(jnp.floor(rows + 0.5), jnp.floor(columns + 0.5))
  # A place is in the image if its nearest pixel is. A place in the middle
  # between two pixels is nearest to the one farther from 0, as in TensorFlow.
  inside = (rows > -0.5) & (rows < height - 0.5)
  inside &= (columns > -0.5) & (columns < width - 0.5)
  return jnp.where(inside[..., None], found, jnp.uint8(fill))


def pad_and_crop(key: jax.Array, image: jax.Array, pad: int) -> jax.Array:
  """Returns an image [H, W, C] that moved by up to `pad` pixels.

  Args:
    key: random key.
    image: [H, W, C].
    pad: number of pixels at each side, less than H and W.
  """
  for axis, move in enumerate(jax.random.randint(key, (2,), -pad, pad + 1)):
    last = image.shape[axis] - 1
    place = jnp.abs(jnp.arange(last + 1) + move)
    place = last - jnp.abs(last - place)
    image = jnp.take(image, place, axis=axis, mode='clip')
  return image
