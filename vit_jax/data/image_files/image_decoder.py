"""The decoder of image files, for use inside tf.data.

TensorFlow decodes JPEG, PNG and plain WebP files. Pillow decodes all other
files, and only for them Python code runs.
"""

from typing import Any

from vit_jax.data import tensorflow as tf
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import orientation
from vit_jax.data.image_files import pillow_decoder

VERSION = 2  # changes if the decoder accepts other files


def is_jpeg(encoded: Any) -> 'tf.Tensor':
  """Returns whether encoded bytes are a JPEG file."""
  return tf.equal(tf.strings.substr(encoded, 0, 3), b'\xff\xd8\xff')


def decode(
  image: Any, how: decoding.Decoding = decoding.OWN_FILES
) -> 'tf.Tensor':
  """Returns pixels [H, W, 3] of an encoded image, or of pixels.

  Args:
    image: encoded bytes, or pixels [H, W, C] with 1, 3 or 4 channels.
    how: orientation and background.

  Returns:
    uint8, or the dtype of the pixels.
  """
  if image.dtype != tf.string:
    return _to_rgb(image, how.background)
  return tf.cond(
    is_jpeg(image),
    lambda: _decode_jpeg(image, how),
    lambda: _decode_other(image, how),
  )


def check_decodable(encoded: Any) -> 'tf.Tensor':
  """Returns (height, width) [2] of an upright image that it has decoded.

  It fails for every image that `decode` rejects. JPEGs are decoded at 1/8 of
  their size, which takes less time.
  """

  def check_jpeg():
    shape = tf.io.extract_jpeg_shape(encoded, tf.int64)
    # At 1/8 of its size, an image that is too large for `decode` would pass.
    fits = tf.reduce_prod(shape[:2]) * 3 < pillow_decoder.MAX_BYTES
    small = tf.cond(
      fits,
      lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=8),
      lambda: tf.io.decode_jpeg(encoded, channels=3),
    )
    with tf.control_dependencies([small]):
      turn = orientation.of_jpeg(encoded)
      return orientation.upright_shape(tf.cast(shape, tf.int32), turn)[:2]

  def check_other():
    return tf.shape(_decode_other(encoded, decoding.OWN_FILES))[:2]

  return tf.cond(is_jpeg(encoded), check_jpeg, check_other)


def crop_jpeg(
  encoded: Any, draw_box: Any, how: decoding.Decoding
) -> 'tf.Tensor':
  """Decodes a box of a JPEG file.

  Args:
    encoded: bytes of the file.
    draw_box: function of the shape [3] of the image -> (top, left, height,
      width), int32.
    how: orientation and background.

  Returns:
    uint8 [height, width, 3].
  """
  stored = tf.io.extract_jpeg_shape(encoded)

  def crop_stored():
    box = tf.stack(draw_box(stored))
    return tf.io.decode_and_crop_jpeg(encoded, box, channels=3)

  def crop_upright():
    turn = orientation.read(encoded)
    shape = orientation.upright_shape(stored, turn)
    box = orientation.stored_box(tf.stack(draw_box(shape)), shape, turn)
    pixels = tf.io.decode_and_crop_jpeg(encoded, box, channels=3)
    return orientation.upright(pixels, turn)

  if not how.exif:
    return crop_stored()
  return tf.cond(
    orientation.may_have_exif(encoded), tf.rare(crop_upright), crop_stored
  )


def _to_rgb(pixels, background):
  """As `decoding.to_rgb`, to the bit."""
  if pixels.shape[-1] == 1:
    return tf.repeat(pixels, 3, axis=-1)
  if pixels.shape[-1] == 3 or background is None:
    return pixels[..., :3]
  if pixels.dtype == tf.uint8:
    wide = tf.cast(pixels, tf.int32)
    alpha = wide[..., 3:]
    mixed = wide[..., :3] * alpha + tf.constant(background) * (255 - alpha)
    return tf.cast((mixed + 127) // 255, tf.uint8)
  alpha = pixels[..., 3:] / 255
  color = tf.constant(background, pixels.dtype)
  return pixels[..., :3] * alpha + color * (1 - alpha)


def _decode_jpeg(encoded, how):
  pixels = tf.io.decode_jpeg(encoded, channels=3)
  if not how.exif:
    return pixels
  return orientation.upright(pixels, orientation.of_jpeg(encoded))


def _is_plain(encoded, how):
  """Returns whether TensorFlow decodes a file, which is not a JPEG, correctly.

  These are PNG files without alpha and without EXIF data, and WebP files
  without extensions. TensorFlow decodes them faster than Pillow.
  """
  header = tf.strings.substr(encoded + b'\0' * 26, 0, 26)
  is_png = tf.equal(tf.strings.substr(header, 0, 4), b'\x89PNG')
  is_webp = tf.equal(tf.strings.substr(header, 8, 8), b'WEBPVP8 ')
  if how == decoding.STORED:
    return is_png | is_webp
  # Types 4 and 6 have alpha. Other types may have a transparent color, tRNS.
  color_type = tf.strings.substr(header, 25, 1)
  is_opaque = tf.not_equal(color_type, b'\4') & tf.not_equal(color_type, b'\6')
  return is_webp | tf.cond(
    is_png & is_opaque,
    lambda: ~_contains(encoded, b'tRNS') & ~_contains(encoded, b'eXIf'),
    lambda: False,
  )


def _contains(encoded, text):
  return tf.size(tf.strings.split(encoded, text, maxsplit=1)) > 1


def _decode_other(encoded, how):
  """Decodes an image that is not a JPEG, with TensorFlow or with Pillow."""
  image = tf.cond(
    _is_plain(encoded, how),
    lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    lambda: tf.py_function(
      lambda content: pillow_decoder.decode(content.numpy(), how),
      [encoded],
      tf.uint8,
    ),
  )
  return tf.ensure_shape(image, [None, None, 3])
