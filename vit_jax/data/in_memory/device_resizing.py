"""Training images that the host crops, and the compiled step resizes.

`config.pp.train_resize_on='device'` selects it. For each example, the host
sends the crop as it was decoded, uint8. The step resizes it, flips it, and
scales its pixels. The crops and the flips are those of `preprocess`, and pixels
differ by rounding errors only. Evaluation images are those of `preprocess`.

A crop has at most `_MOST` times as many pixels as an image of the model. The
host resizes larger crops to the model's size, and rounds their pixels.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data import preprocess
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.image_files import decoding
from vit_jax.data.in_memory import crops

_MOST = 4  # then a crop has as many bytes as an image of float32
_SIZE, _FLIP = 'size of image', 'flip of image'  # other keys of a feed


def check(makes_examples: bool, source: examples.Source) -> None:
  """Raises ValueError if training images cannot be resized on the device.

  Args:
    makes_examples: whether tf.data makes the batches, of single examples.
    source: the training examples.
  """
  reason = ''
  if not makes_examples:
    reason = 'the data are given batches, or TensorFlow is not installed'
  elif source.read:
    dtype = source.read(tf.constant(0, tf.int64))['image'].dtype
    if dtype not in (tf.string, tf.uint8):
      reason = f'the images are {dtype.name}, and not uint8'
  if reason:
    raise ValueError(
      f"config.pp.train_resize_on='device' cannot be used: {reason}. Use "
      "config.pp.train_resize_on='host'"
    )


def make_prepare(
  size: tuple[int, int],
  cropping: data_settings.Cropping,
  how: decoding.Decoding = decoding.OWN_FILES,
  resizing: data_settings.Resizing = data_settings.DEFAULT_RESIZING,
) -> Callable:
  """Takes the place of `preprocess.make_prepare`.

  A training example has `image` uint8 [P], the pixels of a crop, row by row,
  and the size and the flip of the crop.
  """
  largest = _MOST * 3 * size[0] * size[1]

  def small(pixels):
    return tf.cast(tf.round(preprocess.resize(pixels, size)), tf.uint8)

  def crop(image, seed):
    seeds = tf.random.experimental.stateless_split(seed, 2)
    pixels = preprocess.random_crop(image, seeds[0], cropping.min_area, how)
    pixels = tf.cond(
      tf.size(pixels) <= largest, lambda: pixels, tf.rare(lambda: small(pixels))
    )
    new = {'image': tf.reshape(pixels, [-1]), _SIZE: tf.shape(pixels)[:2]}
    if cropping.flip:
      new[_FLIP] = preprocess.draw_flip(seeds[1])
    return new

  def prepare(example, seed):
    if seed is None:
      image = preprocess.for_evaluation(example['image'], size, how, resizing)
      new = {'image': image}
    else:
      new = crop(example['image'], seed)
    return {**preprocess.narrow_others(example), **new}

  return prepare


def batched(dataset: Any, rows: int, settings: DataSettings) -> Any:
  """Returns a tf.data.Dataset of feeds with `rows` examples.

  `image` is uint8 [B, P]; the end of each row is not used.
  """
  shapes = {name: x.shape for name, x in dataset.element_spec.items()}
  height, width = settings.image_size
  shapes['image'] = [_MOST * 3 * height * width]
  return dataset.padded_batch(rows, shapes, drop_remainder=True)


def make_batch(
  feed: Mapping[str, Any], settings: DataSettings
) -> dict[str, jax.Array]:
  """Returns the training batch of a feed, inside the compiled step."""
  others = dict(feed)
  images = crops.resize_packed(
    others.pop('image'),
    others.pop(_SIZE),
    settings.image_size,
    others.pop(_FLIP, None),
  )
  return {**others, 'image': crops.to_unit_range(images)}


def spec_of_batch(
  spec: Mapping[str, tuple], settings: DataSettings
) -> dict[str, tuple]:
  """Returns {name: (shape, dtype)} of a row of `make_batch`.

  Args:
    spec: the same of an example of `make_prepare`.
    settings: `DataSettings`.
  """
  others = {k: x for k, x in spec.items() if k not in (_SIZE, _FLIP)}
  return {**others, 'image': ((*settings.image_size, 3), np.float32)}
