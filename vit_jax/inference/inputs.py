"""Turns photos, encoded images and arrays into batches of a model's input.

One image is one of the following:

- a path, or the encoded bytes of an image file
- a PIL image
- pixels uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], of any size
- floats [H, W, C] of the model's image size, by default in [−1, 1]

Several images are a list, in which kinds and sizes may differ, or one array
[B, H, W, C]. Files, bytes, PIL images and uint8 pixels are preprocessed as in
evaluation. PIL images and uint8 pixels give the same input as a PNG file with
these pixels: transparent pixels get the background of the model, and of 16
bits, the upper 8 are used. A PIL image with an EXIF orientation is turned
upright, as its file is. A JPEG that Pillow decoded differs slightly from a file
that TensorFlow decodes.

Shapes:  B batch · H, W image height, width · C channels
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.data import tensorflow as tf
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import image_checks
from vit_jax.data.image_files import image_decoder
from vit_jax.data.image_files import image_kinds
from vit_jax.data.image_files import pillow_decoder
from vit_jax.files import regular_files
from vit_jax.models import input_checks

# Modes of PIL images that have a unique conversion to RGB.
_MODES = ('RGB', 'RGBA', 'L', 'LA', '1', 'P', 'PA', 'I;16')
# Kinds of images in a batch.
_PATH, _ENCODED, _PIXELS, _PREPARED = range(-1, 3)
_KINDS = (
  'a path, the bytes of an image file, a PIL image, uint8 pixels, or floats of '
  "the model's image size"
)


def read(
  images: Any,
  image_size: tuple[int, int],
  pixel_range: tuple[float, float] | None = None,
) -> tuple[Sequence, bool]:
  """Returns (images for `batches`, whether the argument is one image).

  Args:
    images: one image or several; see the docstring of this module.
    image_size: (height, width) of the model's input.
    pixel_range: (low, high) of float pixels, which are scaled to [−1, 1]. None:
      see `input_checks.check_images`.

  Raises:
    ValueError: an image is of an unknown kind, dtype or size, or a file does
      not exist.
  """
  is_single = isinstance(
    images, str | os.PathLike | bytes | bytearray | Image.Image
  )
  if not is_single and hasattr(images, '__array__'):
    images = np.asarray(images)
    if images.dtype.kind in 'UO':  # paths
      images = images.tolist()
    elif images.dtype != np.uint8:
      is_single = images.ndim == 3
      images = _floats(
        images[None] if is_single else images, image_size, pixel_range, 'images'
      )
      return images, is_single
    else:
      is_single = images.ndim < 4
  if is_single:
    images = [images]
  elif not isinstance(images, list | tuple | np.ndarray):
    raise ValueError(
      f'images are a {type(images).__name__}. Use one image or a list of '
      f'images. An image is {_KINDS}.'
    )
  if len(images) and all(map(_is_float_array, images)):
    if len({np.shape(image) for image in images}) == 1:
      batch = np.stack([np.asarray(image) for image in images])
      return _floats(batch, image_size, pixel_range, 'images'), False
  return [
    _read_one(image, image_size, pixel_range, name_of(image, i))
    for i, image in enumerate(images)
  ], is_single


def name_of(image: Any, index: int) -> str:
  """Returns the path of an image, or its place in a list: 'images[3]'."""
  if isinstance(image, str | os.PathLike):
    return os.path.expanduser(os.fspath(image))
  return f'images[{index}]'


def batches(
  images: Sequence,
  image_size: tuple[int, int],
  batch: int,
  prepare: Callable,
  how: decoding.Decoding = decoding.OWN_FILES,
) -> Iterator[tuple[list[int], np.ndarray]]:
  """Yields (indices [b], model inputs [b, H, W, C]) of decodable images.

  Args:
    images: from `read`.
    image_size: (height, width) of the model's input.
    batch: largest number of images in a batch.
    prepare: (pixels [H, W, 3], (height, width)) -> input of the model.
    how: orientation, and background of alpha.
  """
  if isinstance(images, np.ndarray):  # floats, which need no preparation
    for start in range(0, len(images), batch):
      part = images[start : start + batch]
      yield list(range(start, start + len(part))), part
    return
  # A list of paths is read in the background. Other images would take memory.
  step = len(images) if all(isinstance(x, str) for x in images) else batch
  for start in range(0, len(images), max(step, 1)):
    data = zip(
      *(_encode(image, how) for image in images[start : start + step]),
      strict=True,
    )
    dataset = (
      tf.data.Dataset.from_tensor_slices(tuple(map(list, data)))
      .enumerate(start)
      .map(
        make_read_fn(prepare, tuple(image_size), how),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
      )
    )
    dataset = dataset.ignore_errors().batch(batch).prefetch(2)
    for indices, rows in tf.elements(dataset):
      yield indices.tolist(), rows


def all_batches(
  images: Sequence,
  image_size: tuple[int, int],
  batch: int,
  prepare: Callable,
  how: decoding.Decoding = decoding.OWN_FILES,
) -> Iterator[np.ndarray]:
  """Yields the model inputs [b, H, W, C] of `batches`.

  Raises:
    ValueError: an image cannot be decoded.
  """
  done = 0
  for indices, rows in batches(images, image_size, batch, prepare, how):
    expected = range(done, min(done + batch, len(images)))
    if list(expected) != indices:
      reject(images, [i for i in expected if i not in indices])
    yield rows
    done += len(rows)
  if done < len(images):
    reject(images, range(done, len(images)))


def reject(images: Sequence, indices: Sequence[int]) -> None:
  """Raises ValueError about images that cannot be decoded."""
  shown = [
    name_of(images[i], i)
    + (
      f' ({image_checks.reason(images[i])})'
      if isinstance(images[i], str)
      else ''
    )
    for i in indices[:10]
  ]
  raise ValueError(
    f'{len(indices)} of {len(images)} images cannot be decoded: '
    f'{", ".join(shown)}. Remove them, or convert them to PNG or JPEG.'
  )


# --- one image ---------------------------------------------------------------


def _is_float_array(image):
  return hasattr(image, 'dtype') and jnp.issubdtype(
    np.asarray(image).dtype, jnp.floating
  )


def _read_one(image, image_size, pixel_range, name):
  """Checks an image; returns a path, or the image, or scaled floats."""
  if isinstance(image, str | os.PathLike):
    regular_files.check(name)
    if '://' not in name and not os.path.isfile(name):
      raise ValueError(f'{name}: there is no such image file. Check the path.')
    return name
  if isinstance(image, bytes | bytearray):
    return bytes(image)
  if isinstance(image, Image.Image):
    if image.mode not in _MODES:
      raise ValueError(
        f'{name} is a PIL image of mode {image.mode!r}, which has no unique '
        "conversion to RGB. Convert it, for example with image.convert('RGB')."
      )
    return image
  if not hasattr(image, '__array__'):
    raise ValueError(f'{name} is a {type(image).__name__}. Use {_KINDS}.')
  image = np.asarray(image)
  if image.dtype != np.uint8:
    image = _floats(image[None], image_size, pixel_range, name)[0]
    if image.shape[-1] != 3:
      raise ValueError(
        f'{name} has {image.shape[-1]} channels. In a list with files, bytes '
        'or uint8 pixels, floats must have 3 channels.'
      )
    return image
  channels = image.shape[2:] or (1,)
  if image.ndim < 2 or channels not in ((1,), (3,), (4,)) or not image.size:
    raise ValueError(
      f'{name}: uint8 pixels have the shape {list(image.shape)}. An image must '
      'have the shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].'
    )
  return image


def _floats(images, image_size, pixel_range, name):
  """Checks floats [B, H, W, C] and scales them to float32 in [−1, 1]."""
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f'{name} have the dtype {images.dtype}. Use uint8 for pixels in 0…255, '
      'or floats in [-1, 1].'
    )
  input_checks.check_images(images, image_size, name, pixel_range)
  low, high = pixel_range or (-1, 1)
  images = images.astype(np.float32)
  if (low, high) == (-1, 1):
    return images
  return (images - np.float32(low)) * np.float32(2 / (high - low)) - 1


def _encode(image, how):
  """Returns (kind, bytes, shape) of an image, for `make_read_fn`."""
  no_shape = (0, 0, 0)
  if isinstance(image, str):
    kind = image_kinds.of_suffix(image)
    if regular_files.other_kind(image) or (
      kind and not image_kinds.is_read(kind)  # some look like a TIFF
    ):
      return _ENCODED, b'', no_shape
    return _PATH, os.fsencode(image), no_shape
  if isinstance(image, bytes):
    return _ENCODED, image, no_shape
  if isinstance(image, Image.Image):
    try:
      image = pillow_decoder.to_rgb(image, how)
    except OSError:  # the file of the image is damaged
      return _ENCODED, b'', no_shape
  if image.dtype == np.float32:
    return _PREPARED, image.tobytes(), image.shape
  if image.ndim == 2:
    image = image[..., None]
  image = decoding.to_rgb(image, how.background)
  return _PIXELS, image.tobytes(), image.shape


@functools.lru_cache(maxsize=8)
def make_read_fn(
  prepare: Callable, image_size: tuple[int, int], how: decoding.Decoding
) -> Callable:
  """Returns the graph of `(index, image) -> (index, input)`, traced once.

  One graph serves all kinds and sizes of images. The image is a tuple from
  `_encode`. For the arguments, see `batches`.
  """

  def read(index, image):
    kind, data, shape = image

    def encoded():  # one branch for paths and bytes: `prepare` is slow to trace
      content = tf.cond(
        kind == _PATH, lambda: tf.io.read_file(data), lambda: data
      )
      return image_decoder.decode(content, how)

    def decoded(dtype):
      pixels = tf.reshape(tf.io.decode_raw(data, dtype), shape)
      return tf.ensure_shape(pixels, [None, None, 3])

    branches = {
      _ENCODED: lambda: prepare(encoded(), image_size),
      _PIXELS: lambda: prepare(decoded(tf.uint8), image_size),
      _PREPARED: lambda: decoded(tf.float32),
    }
    return index, tf.switch_case(tf.maximum(kind, _ENCODED), branches)

  return tf.function(read)
