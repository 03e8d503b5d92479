"""Checks of images [B, H, W, C] before a model or a training run uses them.

`check_model_input` reads only shape and dtype, so it also works while JAX
traces a function. `check_images` also reads the pixels, which are NumPy arrays.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def check_layout(
  shape: Sequence[int], dtype: Any, name: str = 'images', stride: int = 2
) -> None:
  """Raises ValueError unless images are floats [B, H, W, C], by shape alone.

  Args:
    shape: shape of the images.
    dtype: dtype of the images.
    name: name of the argument, for messages.
    stride: pixels between two neighboring positions of a model's grid. With 1,
      an image may be 1, 3 or 4 pixels high, so [B, C, H, W] is not detected.
  """
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f'{name} have the dtype {np.dtype(dtype)} and the shape {list(shape)}, '
      'but the model needs floats in [-1, 1]. Convert pixels 0…255 with '
      f'{name} / 127.5 - 1.'
    )
  if len(shape) != 4:
    raise ValueError(
      f'{name} have the shape {list(shape)}, but they must have the shape '
      '[B, H, W, C]. '
      + (
        f'The batch axis is missing: for one image, use {name}[None].'
        if len(shape) == 3
        else 'Add or remove axes.'
      )
    )
  if stride > 1 and is_channels_first(shape[1:]):
    raise ValueError(
      f'{name} have the shape {list(shape)}, which seems to be [B, C, H, W]. '
      'They must have the shape [B, H, W, C]. Use '
      f'{name}.transpose(0, 2, 3, 1).'
    )


def is_channels_first(shape: Sequence[int]) -> bool:
  """Returns whether the shape of one image seems to be [C, H, W].

  The first axis is as long as the channel axis of a picture. Both other axes
  are longer than any such axis.
  """
  channels, *sides = shape
  return channels in _CHANNELS and all(
    not isinstance(side, int) or side > max(_CHANNELS) for side in sides
  )


def check_model_input(
  module: nn.Module, images: Any, first_layer: str, stride: int
) -> None:
  """Raises ValueError unless a model can take these images.

  Args:
    module: the model, in its `__call__`.
    images: images [B, H, W, C]; only shape and dtype are read.
    first_layer: name of the layer whose kernel [h, w, C, F] reads the images.
    stride: see `check_layout`.
  """
  shape = images.shape  # not `jnp.shape`, which jax2onnx replaces
  check_layout(shape, images.dtype, stride=stride)
  layer = module.variables.get('params', {}).get(first_layer, {})
  if 'kernel' in layer and layer['kernel'].shape[2] != shape[-1]:
    raise ValueError(
      f'images have the shape {list(shape)}, with {shape[-1]} channels, but '
      f'the parameters are for {layer["kernel"].shape[2]} channels. Images '
      'must have the shape [B, H, W, C].'
    )


def check_images(
  images: Any,
  image_size: tuple[int, int] | None = None,
  name: str = 'images',
  pixel_range: tuple[float, float] | None = None,
) -> None:
  """Raises ValueError unless images are floats [B, H, W, C] in [-1, 1].

  Args:
    images: the images, as an array that NumPy can read.
    image_size: required (height, width) in pixels, or None for any size.
    name: name of the argument, for messages.
    pixel_range: (smallest, largest) allowed value. None means (-1, 1), and also
      rejects images that seem to be in 0…1: they have several values and none
      below 0. With (-1, 1), such images are accepted.
  """
  images = np.asarray(images)
  check_layout(images.shape, images.dtype, name)
  if image_size and images.shape[1:3] != tuple(image_size):
    raise ValueError(
      f'{name} have the shape {list(images.shape)}, but the model needs '
      f'{image_size[0]} x {image_size[1]} pixels: [B, {image_size[0]}, '
      f'{image_size[1]}, C]. Resize the images.'
    )
  check_pixels(images, name, pixel_range)


def check_pixels(
  images: Any,
  name: str = 'images',
  pixel_range: tuple[float, float] | None = None,
) -> None:
  """Raises ValueError unless all values are in the range of `check_images`."""
  images = np.asarray(images)
  if not images.size:
    return
  smallest, largest = float(images.min()), float(images.max())
  found = f'{name} have values from {smallest:.4g} to {largest:.4g}'
  if not np.isfinite([smallest, largest]).all():
    raise ValueError(
      f'{found}, but all values must be finite. Check how they were computed.'
    )
  low, high = pixel_range or (-1, 1)
  if smallest < low or largest > high:
    hint = (
      f'Convert pixels 0…255 with {name} / 127.5 - 1.'
      if smallest >= 0 and largest <= 255
      else 'Scale or clip them.'
    )
    raise ValueError(f'{found}, but they must be in [{low}, {high}]. {hint}')
  if pixel_range is None and 0 <= smallest < largest:
    raise ValueError(
      f'{found}, so they seem to be in 0…1, but they must be in [-1, 1]. '
      f'Convert pixels 0…1 with 2 * {name} - 1. If the images really have no '
      'value below 0, set pixel_range=(-1, 1).'
    )
