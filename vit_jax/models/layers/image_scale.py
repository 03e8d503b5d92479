"""Scales images to the mean and deviation that a model was trained with.

Shapes:  B batch · H, W image height, width · C channels
"""

import jax
import jax.numpy as jnp
import numpy as np

Statistics = tuple[float, ...] | None


def check(mean: Statistics, std: Statistics) -> None:
  """Raises ValueError unless both are None, or both have a value per channel.

  Args:
    mean: mean of each channel, for pixels in [0, 1].
    std: standard deviation of each channel, greater than 0.
  """
  if mean is None and std is None:
    return
  if mean is None or std is None or len(mean) != len(std):
    raise ValueError(
      f'image_mean={mean} and image_std={std} must have a value for each '
      'channel, or be None together.'
    )
  if not np.isfinite([*mean, *std]).all() or min(std) <= 0:
    raise ValueError(
      f'image_mean={mean} and image_std={std} must be finite, and image_std '
      'must be above 0.'
    )


def unstandardize(
  scaled: jax.Array, mean: Statistics, std: Statistics
) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
  """Returns images in [-1, 1]; the inverse of `standardize`."""
  if mean is None:
    return scaled
  return 2 * (scaled * np.float32(std) + np.float32(mean)) - 1


def standardize(
  images: jax.Array, mean: Statistics, std: Statistics
) -> jax.Array:  # [B, H, W, C] -> [B, H, W, C]
  """Returns images in [-1, 1] as (pixel - mean) / std, for pixels in [0, 1].

  With None, images do not change. That is a mean and deviation of 0.5.

  Raises:
    ValueError: the images have another number of channels.
  """
  if mean is None:
    return images
  if images.shape[-1] != len(mean):
    raise ValueError(
      f'images have the shape {list(images.shape)}, with {images.shape[-1]} '
      f'channels, but image_mean={mean} has {len(mean)}. Use images with '
      f'{len(mean)} channels.'
    )
  # (p - mean) / std = x · a + b for the pixel p = (x + 1) / 2
  mean, std = np.float64(mean), np.float64(std)
  a, b = np.float32(0.5 / std), np.float32((0.5 - mean) / std)
  return images.astype(jnp.float32) * a + b
