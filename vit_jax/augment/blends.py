"""Blends of one image with a degenerate image, and blur.

A factor of 0 gives the degenerate image, 1 gives the image, and more than 1
extrapolates.

Shapes:  H, W height and width
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from vit_jax.augment import grey_levels

# Operations, and their degenerate images: the image itself, its grey image, a
# constant image of its mean grey, black, and the smoothed image. The first
# RandAugment code has a mistake in its mean grey, with which published models
# were trained: the mean is (number of pixels) / 256, at most 255.
KEEP, COLOR, CONTRAST, BRIGHTNESS, SHARPNESS, CONTRAST_AS_TRAINED = range(6)


def grey(image: jax.Array) -> jax.Array:
  """Returns the grey levels of an RGB image, int32 [H, W], as TensorFlow."""
  red, green, blue = (image[..., i].astype(jnp.float32) for i in range(3))
  luma = 0.2989 * red + 0.587 * green + 0.114 * blue
  return (luma * (255.5 / 255)).astype(jnp.int32)


def _smooth(image):
  """Returns the mean of 3 × 3 pixels, with weight 5/13 of the center.

  Pixels at the border are kept.
  """
  x = image.astype(jnp.int32)
  rows = x[:-2] + x[1:-1] + x[2:]
  total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
  found = jnp.pad(total // 13, ((1, 1), (1, 1), (0, 0)), constant_values=-1)
  return jnp.where(found < 0, x, found)


def _mean(levels):
  """Returns the mean of grey levels [H, W], rounded."""
  return (2 * levels.sum() + levels.size) // (2 * levels.size)


def _degenerate(kind, image):
  """Returns the degenerate image of one kind, int32, for [H, W, 3]."""
  if kind == COLOR:
    return grey(image)[..., None]
  if kind == CONTRAST:
    return _mean(grey(image))
  if kind == CONTRAST_AS_TRAINED:
    height, width, _ = image.shape
    return min(height * width // 256, 255)
  if kind == SHARPNESS:
    return _smooth(image)
  assert kind == BRIGHTNESS
  return 0


def blend(
  image: jax.Array, kind: jax.Array, factor: jax.Array, kinds: Collection[int]
) -> jax.Array:
  """Returns degenerate + factor · (image − degenerate), uint8 [H, W, 3].

  Args:
    image: uint8 [H, W, 3].
    kind: int32 [], one of the kinds of this module.
    factor: float32 [], at least 0.
    kinds: kinds that `kind` may be, other than KEEP.
  """
  x = image.astype(jnp.int32)
  degenerate = x
  for other in sorted(kinds):
    degenerate = jnp.where(kind == other, _degenerate(other, image), degenerate)
  return grey_levels.to_uint8(degenerate + factor * (x - degenerate))


def blur(image: jax.Array, sigma: jax.Array, radius: int = 6) -> jax.Array:
  """Returns an image after a Gaussian blur, uint8 [H, W, C].

  Pixels outside are equal to the nearest pixel of the image.

  Args:
    image: uint8 [H, W, C].
    sigma: standard deviation in pixels, float32 []. 0: no blur.
    radius: half width of the kernel in pixels; at least three deviations.
  """
  offsets = jnp.arange(-radius, radius + 1)
  weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
  weights /= weights.sum()
  x = image.astype(jnp.float32)
  for axis in (0, 1):
    padding = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
    padded = jnp.pad(x, padding, mode='edge')
    length = x.shape[axis]
    x = sum(
      weight * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
      for i, weight in enumerate(weights)
    )
  return grey_levels.to_uint8(jnp.round(x))


def jitter(key: jax.Array, image: jax.Array, strength: float) -> jax.Array:
  """Changes brightness, contrast and saturation, in random order.

  As `ColorJitter` of torchvision without hue. The factors are uniform in
  1 ± strength.

  Args:
    key: random key.
    image: uint8 [H, W, 3].
    strength: at least 0.
  """
  keys = jax.random.split(key)
  low, high = max(0.0, 1 - strength), 1 + strength
  factors = jax.random.uniform(keys[0], (3,), minval=low, maxval=high)
  kinds = (BRIGHTNESS, CONTRAST, COLOR)
  order = jax.random.permutation(keys[1], jnp.array(kinds))

  def apply_one(image, x):
    return blend(image, *x, kinds), None

  return jax.lax.scan(apply_one, image, (order, factors))[0]
