"""The orientation of an image, from its EXIF data, as TensorFlow operations.

An orientation is a number from 1 (upright) to 8, as EXIF defines it.
"""

from typing import Any

from vit_jax.data import tensorflow as tf

_TAG = 0x0112


def of_jpeg(encoded: Any) -> 'tf.Tensor':
  """Returns the orientation of a JPEG file, int32 []. It is 1 without EXIF."""
  before, after = _split(encoded, b'Exif\0\0')
  padded = b'\0' * 4 + before
  marker = tf.strings.substr(padded, tf.strings.length(padded) - 4, 2)
  is_exif = (tf.strings.length(after) > 0) & tf.equal(marker, b'\xff\xe1')
  return tf.cond(is_exif, lambda: _of_tiff(after), lambda: tf.constant(1))


def of_png(encoded: Any) -> 'tf.Tensor':
  """Returns the orientation of a PNG file, int32 []. It is 1 without EXIF."""
  _, after = _split(encoded, b'eXIf')
  return tf.cond(
    tf.strings.length(after) > 0,
    lambda: _of_tiff(after),
    lambda: tf.constant(1),
  )


def contains(encoded: Any, text: bytes) -> 'tf.Tensor':
  """Returns whether an encoded image contains a text."""
  return tf.strings.length(_split(encoded, text)[1]) > 0


def _split(encoded, separator):
  """Returns the bytes before and after the first separator."""
  parts = tf.strings.split(encoded + b'\0', separator, maxsplit=1)
  return parts[0], tf.cond(
    tf.size(parts) > 1, lambda: parts[1], lambda: tf.constant(b'')
  )


def _of_tiff(data):
  """Returns the orientation from the first directory of TIFF data."""
  data = tf.strings.substr(data, 0, 2**16) + b'\0' * 16
  size = tf.strings.length(data)
  header = tf.strings.substr(data, 0, 4)
  little = tf.equal(header, b'II*\0')
  is_tiff = little | tf.equal(header, b'MM\0*')

  def numbers(start, length):
    """Returns bytes as int32."""
    bytes_ = tf.strings.substr(data, start, length)
    return tf.cast(tf.io.decode_raw(bytes_, tf.uint8), tf.int32)

  def short(low, high):
    return tf.where(little, low + 256 * high, high + 256 * low)

  b = numbers(4, 4)
  start = tf.where(
    little,
    b[0] + 256 * b[1] + 65536 * (b[2] + b[3]),
    b[3] + 256 * b[2] + 65536 * (b[1] + b[0]),
  )
  start = tf.minimum(start, size - 2)
  b = numbers(start, 2)
  count = tf.minimum(short(b[0], b[1]), (size - start - 2) // 12)
  rows = tf.reshape(numbers(start + 2, 12 * count), [count, 12])
  tag, kind = short(rows[:, 0], rows[:, 1]), short(rows[:, 2], rows[:, 3])
  value = short(rows[:, 8], rows[:, 9])
  # A number of 4 bytes has its low bytes at the end.
  value = tf.where((kind == 4) & ~little, rows[:, 11], value)
  found = tf.reduce_max(tf.where(tag == _TAG, value, 0))
  return tf.where(is_tiff & (found >= 1) & (found <= 8), found, 1)


def _changes(orientation):
  """Returns whether to transpose, then flip left-right, then up-down."""
  return (
    orientation >= 5,
    tf.reduce_any(orientation == [2, 3, 6, 7]),
    tf.reduce_any(orientation == [3, 4, 7, 8]),
  )


def upright(pixels: Any, orientation: Any) -> 'tf.Tensor':
  """Returns upright pixels [H, W, C] of pixels with an orientation."""

  def turned():
    transposes, mirrors, turns_over = _changes(orientation)
    image = tf.cond(
      transposes, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels
    )
    image = tf.cond(mirrors, lambda: image[:, ::-1], lambda: image)
    return tf.cond(turns_over, lambda: image[::-1], lambda: image)

  return tf.cond(orientation == 1, lambda: pixels, turned)


def upright_shape(shape: Any, orientation: Any) -> 'tf.Tensor':
  """Returns the shape [3] of the upright image of a stored image's shape."""
  return tf.where(orientation >= 5, tf.gather(shape, [1, 0, 2]), shape)


def stored_box(box: Any, shape: Any, orientation: Any) -> 'tf.Tensor':
  """Returns the box of a stored image that is `box` in the upright image.

  Args:
    box: (top, left, height, width) in the upright image, int32.
    shape: shape [3] of the upright image.
    orientation: from `of_jpeg`.
  """
  top, left, height, width = box
  transposes, mirrors, turns_over = _changes(orientation)
  left = tf.where(mirrors, shape[1] - left - width, left)
  top = tf.where(turns_over, shape[0] - top - height, top)
  return tf.where(
    transposes,
    tf.stack([left, top, width, height]),
    tf.stack([top, left, height, width]),
  )
