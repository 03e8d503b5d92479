"""Decodes with Pillow what TensorFlow decodes wrongly or not at all.

The pixels of a picture are those of its PNG file: of 16 bits, the upper 8 are
used, and of an animation, the first image. Floats are in 0…1.
"""

import io

import numpy as np
from PIL import Image

from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import image_kinds

# Pillow reads more kinds of files, such as Photoshop's; see `image_kinds`. The
# format JPEG also opens MPO files.
_FORMATS = (
  *('BMP', 'DIB', 'GIF', 'TIFF', 'AVIF', 'JPEG2000', 'ICO', 'PPM', 'WEBP'),
  *('PNG', 'JPEG'),
)
# Number of bytes of RGB pixels that TensorFlow accepts, too.
MAX_BYTES = 2**29
TOO_LARGE = f'too large (more than {MAX_BYTES // 3:,} pixels)'
_ORIENTATION = 0x0112  # tag of EXIF
_DNG_VERSION = 50706  # tag of RAW photos in the format DNG
_TRANSPOSE = Image.Transpose
_UPRIGHT = {
  2: _TRANSPOSE.FLIP_LEFT_RIGHT,
  3: _TRANSPOSE.ROTATE_180,
  4: _TRANSPOSE.FLIP_TOP_BOTTOM,
  5: _TRANSPOSE.TRANSPOSE,
  6: _TRANSPOSE.ROTATE_270,
  7: _TRANSPOSE.TRANSVERSE,
  8: _TRANSPOSE.ROTATE_90,
}
_INVERSE = {**_UPRIGHT, 6: _TRANSPOSE.ROTATE_90, 8: _TRANSPOSE.ROTATE_270}


def open_image(encoded: bytes) -> Image.Image:
  """Opens an image file without decoding its pixels.

  Raises:
    OSError: the bytes are not an image that Pillow reads.
    ValueError: the image is too large, or of a kind that is not read.
  """
  formats = _FORMATS
  kind = image_kinds.of_header(encoded[: image_kinds.HEADER_BYTES])
  if kind == 'HEIC' and image_kinds.reads_heic():
    import pillow_heif

    pillow_heif.register_heif_opener()
    formats = ('HEIF',)
  elif kind and not image_kinds.is_read(kind):
    raise ValueError(image_kinds.describe_unread(kind))
  try:
    image = Image.open(io.BytesIO(encoded), formats=formats)
  except Image.DecompressionBombError as error:
    raise ValueError(TOO_LARGE) from error
  width, height = image.size
  if width * height * 3 >= MAX_BYTES:
    raise ValueError(TOO_LARGE)
  if image.format == 'TIFF' and _DNG_VERSION in image.tag_v2:
    raise ValueError(image_kinds.describe_unread('RAW photo'))
  return image


def decode(encoded: bytes, how: decoding.Decoding) -> np.ndarray:
  """Returns pixels uint8 [H, W, 3] of an image file.

  Raises:
    OSError: the file is damaged, or is not an image.
    ValueError: the image cannot be converted to RGB, or is too large.
  """
  if encoded[:2] == b'P6':
    return _decode_ppm(encoded, how)
  return to_rgb(open_image(encoded), how)


def _decode_ppm(encoded, how):
  """Decodes a PPM. Pillow rounds 16 bits; PNG uses the upper 8 bits."""
  image = open_image(encoded)
  _, _, offset, arguments = image.tile[0]
  if not isinstance(arguments, tuple) or arguments[-1] != 65535:
    return to_rgb(image, how)
  width, height = image.size
  if len(encoded) < offset + width * height * 6:
    raise OSError('image file is truncated')
  values = np.frombuffer(encoded, '>u2', width * height * 3, offset)
  return (values >> 8).astype(np.uint8).reshape(height, width, 3)


def to_rgb(image: Image.Image, how: decoding.Decoding) -> np.ndarray:
  """Returns pixels uint8 [H, W, 3] of a PIL image; see `decode`."""
  before = _orientation(image)
  image.load()
  after = _orientation(image)
  if not how.exif and after != before:  # Pillow turns TIFF images itself
    turn = _INVERSE.get(before)
  else:
    turn = _UPRIGHT.get(after) if how.exif else None
  if turn is not None:
    info = dict(image.info)
    image = image.transpose(turn)
    image.info = info
  return _pixels(image, how.background)


def _orientation(image):
  """Returns the orientation of an image, from 1 to 8."""
  if image.format == 'TIFF':
    return image.getexif().get(_ORIENTATION, 1)
  exif = Image.Exif()
  if image.info.get('exif'):
    exif.load(image.info['exif'])
  return exif.get(_ORIENTATION, 1)


def _pixels(image, background):
  """Returns RGB pixels of an image in any mode."""
  hidden = image.info.get('transparency')
  if image.mode in ('RGB', 'L', '1') and hidden is None:
    return np.asarray(image.convert('RGB'))
  if image.mode.startswith('I;16'):
    values = np.asarray(image)
    pixels = (values >> 8).astype(np.uint8)[..., None].repeat(4, -1)
    pixels[..., 3] = 255 if hidden is None else (values != hidden) * 255
    return decoding.to_rgb(pixels, background)
  if image.mode in ('RGB', 'L', '1', 'P', 'RGBA', 'LA', 'PA', 'La', 'RGBa'):
    return decoding.to_rgb(np.asarray(image.convert('RGBA')), background)
  if image.mode in ('CMYK', 'YCbCr', 'HSV', 'RGBX'):
    return np.asarray(image.convert('RGB'))
  if image.mode == 'I' and image.format in ('PPM', 'PNG', 'JPEG2000'):
    values = np.clip(np.asarray(image), 0, 65535)  # 16 bits
    return (values >> 8).astype(np.uint8)[..., None].repeat(3, -1)
  if image.mode == 'F':
    return _from_floats(np.asarray(image))
  raise ValueError(
    f'pixels of the type {image.mode!r}, which have no unique conversion to '
    'RGB (convert the image to 8 or 16 bits)'
  )


def _from_floats(values):
  # A comparison with NaN is false.
  if not (values.min() >= 0 and values.max() <= 1):
    raise ValueError(
      'float pixels outside of 0…1 (convert the image to 8 or 16 bits)'
    )
  pixels = np.round(values * np.float32(255)).astype(np.uint8)
  return pixels[..., None].repeat(3, -1)
