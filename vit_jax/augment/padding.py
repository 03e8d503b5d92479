"""Pads an image by reflection, and crops it to its size at a random place.

Shapes:  H, W height and width · C channels
"""

import jax
import jax.numpy as jnp


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
