"""Pixels as grey levels, uint8 in 0…255, or as floats in [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

# XLA replaces a division by a product with the inverse, whose last bit differs
# for half of the values.
_IMAGE_VALUES = (np.arange(256, dtype=np.float32) - 127.5) / np.float32(127.5)


def from_images(images: jax.Array) -> jax.Array:
  """Returns images as uint8. Floats in [-1, 1] are rounded.

  The crops of the host have fractions of grey levels, because they are resized.
  The operations of policies are defined on whole grey levels.
  """
  if images.dtype == jnp.uint8:
    return images
  return to_uint8(jnp.round(images * 127.5 + 127.5))


def to_images(levels: jax.Array) -> jax.Array:
  """Returns uint8 pixels as float32 in [-1, 1]; keeps float images."""
  if levels.dtype != jnp.uint8:
    return levels
  return jnp.asarray(_IMAGE_VALUES)[levels]


def to_uint8(values: jax.Array) -> jax.Array:
  """Clips numbers to 0…255 and drops their fractions."""
  # XLA converts floats faster to int32 than to uint8 on CPU.
  return jnp.clip(values, 0, 255).astype(jnp.int32).astype(jnp.uint8)
