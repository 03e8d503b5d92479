"""Functions from image to image, for use inside tf.data.

An input image is encoded bytes (a string scalar), or pixels uint8 [H, W, C]
with 1, 3 or 4 channels. Output images are RGB. Random functions are stateless:
their result depends only on the image and the seed, int64 [2]. The argument
`how` is a `decoding.Decoding`: orientation, and background of alpha.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

from vit_jax.data import data_settings
from vit_jax.data import tensorflow as tf
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import image_decoder

decode = image_decoder.decode


def resize(image: Any, size: tuple[int, int]) -> 'tf.Tensor':
  """Resizes an image bilinearly, to float pixels [*size, 3] in 0…255.

  Pixel centers are at half-pixels, and there is no anti-aliasing, even when the
  image shrinks. Published metrics were measured with this method.
  """

  def of(pixels):
    return tf.image.resize(pixels, size, method='bilinear', antialias=False)

  image = tf.convert_to_tensor(image)
  if image.dtype.is_floating:
    return of(image)
  # TensorFlow's kernel reads floats faster than integers, with equal results.
  # The conversion takes less time than it saves, unless the image is large.
  is_small = tf.size(image) <= 4 * 3 * size[0] * size[1]
  as_float = functools.partial(tf.cast, image, tf.float32)
  return tf.cond(is_small, lambda: of(as_float()), lambda: of(image))


def to_unit_range(image: Any) -> 'tf.Tensor':
  """Scales pixels from 0…255 to float32 in [−1, 1]."""
  return (tf.cast(image, tf.float32) - 127.5) / 127.5


def _random_box(shape, seed, min_area):
  """Draws a box (top, left, height, width) with `min_area`…1 of the area."""
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    tf.zeros([1, 0, 4]),
    seed,
    min_object_covered=0.0,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(min_area, 1.0),
    max_attempts=100,  # afterwards, the box is the full image
    use_image_if_no_bounding_boxes=True,
  )
  return begin[0], begin[1], size[0], size[1]


def random_crop(
  image: Any,
  seed: Any,
  min_area: float,
  how: decoding.Decoding = decoding.OWN_FILES,
) -> 'tf.Tensor':
  """Crops a random box of an image: pixels [height, width, 3].

  Szegedy et al. 2014 (arXiv 1409.4842), section 6: the box has `min_area` to 1
  of the image's area, and an aspect ratio from 3/4 to 4/3. Only the box is
  decoded if the image is a JPEG.
  """
  if min_area >= 1:
    return decode(image, how)

  def crop_pixels():
    pixels = decode(image, how)
    top, left, height, width = _random_box(tf.shape(pixels), seed, min_area)
    return pixels[top : top + height, left : left + width]

  def crop_jpeg():
    return image_decoder.crop_jpeg(
      image, lambda shape: _random_box(shape, seed, min_area), how
    )

  if image.dtype != tf.string:
    return crop_pixels()
  return tf.cond(image_decoder.is_jpeg(image), crop_jpeg, tf.rare(crop_pixels))


def random_resized_crop(
  image: Any,
  size: tuple[int, int],
  seed: Any,
  min_area: float,
  how: decoding.Decoding = decoding.OWN_FILES,
  interpolation: str = 'bilinear',
) -> 'tf.Tensor':
  """Resizes a `random_crop` to `size`: float32 [*size, 3] in 0…255."""
  pixels = random_crop(image, seed, min_area, how)
  return resize_with(pixels, size, interpolation)


def draw_flip(seed: Any) -> 'tf.Tensor':
  """Draws a flip: that of `tf.image.stateless_random_flip_left_right`."""
  return tf.random.stateless_uniform([], seed) < 0.5


def for_training(
  image: Any,
  size: tuple[int, int],
  seed: Any,
  cropping: data_settings.Cropping,
  how: decoding.Decoding = decoding.OWN_FILES,
) -> 'tf.Tensor':
  """Crops and flips an image at random: float32 [*size, 3] in [−1, 1]."""
  seeds = tf.random.experimental.stateless_split(seed, 2)
  if cropping.kind == 'area':
    image = random_resized_crop(
      *(image, size, seeds[0], cropping.min_area, how, cropping.interpolation)
    )
  else:
    image = _random_window(decode(image, how), size, seeds[0], cropping)
  if cropping.flip:
    image = tf.image.stateless_random_flip_left_right(image, seeds[1])
  return to_unit_range(image)


def for_evaluation(
  image: Any,
  size: tuple[int, int],
  how: decoding.Decoding = decoding.OWN_FILES,
  resizing: data_settings.Resizing = data_settings.DEFAULT_RESIZING,
) -> 'tf.Tensor':
  """Resizes and crops an image to `size`: float32 [*size, 3] in [−1, 1]."""
  pixels = decode(image, how)
  if resizing == data_settings.DEFAULT_RESIZING:
    return to_unit_range(resize(pixels, size))
  return to_unit_range(_resize_and_crop(pixels, size, resizing))


@functools.cache
def evaluation_of(resizing: data_settings.Resizing) -> Callable:
  """Returns `for_evaluation` with this resizing, the same function each time.

  The graphs of `inputs.make_read_fn` belong to this function.
  """
  if resizing == data_settings.DEFAULT_RESIZING:
    return for_evaluation
  return functools.partial(for_evaluation, resizing=resizing)


def _random_window(pixels, size, seed, cropping):
  """Returns a window at a random place of a resized image."""
  scale = cropping.size / size[0]
  wide = _wide(pixels, [round(x * scale) for x in size], cropping.kind)
  image = resize_with(pixels, wide, cropping.interpolation)
  return tf.image.stateless_random_crop(image, (*size, 3), seed)


def _resize_and_crop(pixels, size, resizing):
  """Returns the center of a resized image, as timm and transformers do."""
  wide = _wide(
    pixels, [int(x / resizing.crop_fraction) for x in size], resizing.resize
  )
  image = resize_with(pixels, wide, resizing.interpolation)
  # NumPy and Pillow round half to even, as `tf.round`.
  top_left = tf.cast(tf.round((wide - size) / 2), tf.int32)
  return tf.slice(image, [*tf.unstack(top_left), 0], [*size, 3])


def resize_with(
  pixels: Any, size: tuple[int, int], interpolation: str
) -> 'tf.Tensor':
  """Returns a resized image, float pixels [*size, 3] in 0…255.

  With anti-aliasing, values are rounded and clipped: Pillow, as timm and
  transformers use it, returns integers.
  """
  if interpolation == 'bilinear':
    return resize(pixels, size)
  method = interpolation.removesuffix('_antialias')
  method = {'lanczos': 'lanczos3'}.get(method, method)
  antialias = interpolation.endswith('_antialias')
  image = tf.image.resize(pixels, size, method=method, antialias=antialias)
  return tf.clip_by_value(tf.round(image), 0, 255) if antialias else image


def _wide(pixels, size, kind):
  """Returns the size [2] of a resized image before it is cropped.

  Args:
    pixels: [H, W, 3].
    size: (height, width); with 'crop', the result contains a rectangle of this
      size, and keeps the aspect ratio of the image.
    kind: 'squash' or 'crop'.
  """
  wide = tf.constant(size)
  if kind == 'crop':
    shape = tf.cast(tf.shape(pixels)[:2], tf.float64)
    scale = tf.reduce_max(tf.cast(wide, tf.float64) / shape)
    # torchvision truncates the longer side; timm rounds it for other sizes than
    # squares. Rounding errors must not make the smaller side smaller.
    shape = shape * scale
    is_square = size[0] == size[1]
    longer = tf.floor(shape + 1e-6) if is_square else tf.round(shape)
    wide = tf.maximum(wide, tf.cast(longer, tf.int32))
  return wide


def make_prepare(
  size: tuple[int, int],
  cropping: data_settings.Cropping,
  how: decoding.Decoding = decoding.OWN_FILES,
  resizing: data_settings.Resizing = data_settings.DEFAULT_RESIZING,
) -> Callable:
  """Returns the default `prepare` of `task.Task`, for images of one `size`.

  Training images are cropped and flipped at random, as `cropping` says; others
  are resized as `resizing` says.
  Other arrays are kept; see `narrow_others`.
  """

  def prepare(example, seed):
    if seed is None:
      image = for_evaluation(example['image'], size, how, resizing)
    else:
      image = for_training(example['image'], size, seed, cropping, how)
    return {**narrow_others(example), 'image': image}

  return prepare


def narrow_others(example: Mapping[str, Any]) -> dict[str, 'tf.Tensor']:
  """Returns all but the image; values of 64 bits become values of 32 bits."""
  narrow = {'int64': 'int32', 'uint64': 'uint32', 'float64': 'float32'}
  return {
    name: tf.cast(x, narrow.get(x.dtype.name, x.dtype))
    for name, x in example.items()
    if name != 'image'
  }


def for_lit(
  image: Any,
  size: int = 224,
  crop: bool = False,
  how: decoding.Decoding = decoding.OWN_FILES,
) -> 'tf.Tensor':
  """Prepares an image for LiT, which was trained on integer pixel values.

  Args:
    image: encoded bytes or pixels.
    size: height and width of the result in pixels.
    crop: if true, resize the smaller side to `size` and crop the center. If
      false, resize both sides to `size`.
    how: orientation, and background of alpha.

  Returns:
    float32 [size, size, 3] in [−1, 1].
  """
  pixels = decode(image, how)
  if not crop:
    resized = resize(pixels, (size, size))
  else:
    height, width = tf.unstack(tf.cast(tf.shape(pixels)[:2], tf.float64))
    scale = size / tf.minimum(height, width)
    sides = tf.cast(tf.round(tf.stack([height, width]) * scale), tf.int32)
    top, left = tf.unstack((sides - size) // 2)
    resized = resize(pixels, sides)[top : top + size, left : left + size]
  return to_unit_range(
    tf.cast(tf.ensure_shape(resized, [size, size, 3]), tf.uint8)
  )
