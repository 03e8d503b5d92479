"""The orientation of a JPEG, from its EXIF data, for use inside tf.data.

An orientation is a number from 1 (upright) to 8, as EXIF defines it. Only files
that may have EXIF data run Python code. All operations of TensorFlow that a
file does not need still cost time, so there are few.
"""

import struct
from typing import Any

import numpy as np

from vit_jax.data import tensorflow as tf

_TAG = 0x0112
_EXIF = b'Exif\0\0'
_HEADER_BYTES = 2**18  # EXIF data are in one of the first segments


def in_jpeg(content: bytes) -> int:
  """Returns the orientation of a JPEG file; 1 without EXIF data."""
  start = 2
  while start + 10 <= len(content) and content[start] == 0xFF:
    marker = content[start + 1]
    if marker == 0xFF:  # a fill byte
      start += 1
      continue
    if marker == 0xDA:  # the pixels follow
      break
    size = int.from_bytes(content[start + 2 : start + 4], 'big')
    if marker == 0xE1 and content[start + 4 : start + 10] == _EXIF:
      return _in_tiff(content[start + 10 : start + 2 + size])
    start += 2 + size
  return 1


def _in_tiff(data):
  """Returns the orientation from the first directory of TIFF data."""
  order = {b'II*\0': '<', b'MM\0*': '>'}.get(data[:4])
  if not order:
    return 1
  try:
    (start,) = struct.unpack_from(order + 'I', data, 4)
    (count,) = struct.unpack_from(order + 'H', data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind = struct.unpack_from(order + 'HH', data, entry)
      if tag == _TAG:
        number = {3: 'H', 4: 'I'}.get(kind, 'H')
        (found,) = struct.unpack_from(order + number, data, entry + 8)
        return found if 1 <= found <= 8 else 1
  except struct.error:  # damaged EXIF data
    pass
  return 1


def may_have_exif(encoded: Any) -> 'tf.Tensor':
  """Returns whether a JPEG file may have EXIF data.

  If the first segment, or the one after JFIF's, is a table of the image, then
  there are no EXIF data.
  """
  head = tf.io.decode_raw(tf.strings.substr(encoded, 0, 22), tf.uint8)
  marker = tf.where(head[3] == 0xE0, head[21], head[3])
  return (marker < 0xC0) | (marker >= 0xE0)


def of_jpeg(encoded: Any) -> 'tf.Tensor':
  """Returns the orientation of a JPEG file, int32 []. It is 1 without EXIF."""
  return tf.cond(
    may_have_exif(encoded), lambda: read(encoded), lambda: tf.constant(1)
  )


def read(encoded: Any) -> 'tf.Tensor':
  """As `of_jpeg`, for a file that may have EXIF data."""
  found = tf.numpy_function(
    lambda content: np.int32(in_jpeg(np.asarray(content).item())),
    [tf.strings.substr(encoded, 0, _HEADER_BYTES)],
    tf.int32,
    stateful=False,
  )
  return tf.ensure_shape(found, [])


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Returns upright pixels [H, W, C] of pixels with an orientation."""
  if orientation >= 5:
    pixels = pixels.transpose(1, 0, 2)
  if orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  if orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  return np.ascontiguousarray(pixels)


def upright(pixels: Any, orientation: Any) -> 'tf.Tensor':
  """Returns upright pixels [H, W, 3], as `turn` does."""
  turned = tf.cond(
    orientation == 1,
    lambda: pixels,
    lambda: tf.numpy_function(
      turn, [pixels, orientation], tf.uint8, stateful=False
    ),
  )
  return tf.ensure_shape(turned, [None, None, 3])


def upright_shape(shape: Any, orientation: Any) -> 'tf.Tensor':
  """Returns the shape [3] of the upright image of a stored image's shape."""
  return tf.where(orientation >= 5, tf.gather(shape, [1, 0, 2]), shape)


def stored_box(box: Any, shape: Any, orientation: Any) -> 'tf.Tensor':
  """Returns the box [4] of a stored image that is `box` in the upright image.

  Args:
    box: (top, left, height, width) in the upright image, int32 [4].
    shape: shape [3] of the upright image.
    orientation: from `of_jpeg`.
  """
  found = tf.cond(
    orientation == 1,
    lambda: box,
    lambda: tf.numpy_function(
      _stored_box, [box, shape, orientation], tf.int32, stateful=False
    ),
  )
  return tf.ensure_shape(found, [4])


def _stored_box(box, shape, orientation):
  top, left, height, width = box
  if orientation in (2, 3, 6, 7):
    left = shape[1] - left - width
  if orientation in (3, 4, 7, 8):
    top = shape[0] - top - height
  if orientation >= 5:
    top, left, height, width = left, top, width, height
  return np.array([top, left, height, width], np.int32)
