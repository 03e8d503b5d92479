"""Views of an image for DINO: crops on the host, colors on the device.

Shapes:  B batch · G, L global and local views · H, W height and width
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.augment import blends
from vit_jax.augment import grey_levels
from vit_jax.data import input_pipeline
from vit_jax.data import preprocess
from vit_jax.data import tensorflow as tf

NUM_GLOBAL = 2
_SOLARIZE = 128  # threshold
_KINDS = (blends.BRIGHTNESS, blends.CONTRAST, blends.COLOR)


@dataclasses.dataclass(frozen=True)
class Crops:
  """Sizes of the views.

  Attributes:
    num_local: L.
    local_size: height and width of a local view in pixels.
    local_area: smallest and largest area of a local view, as fractions of the
      image. Global views are the training crops of the run.
  """

  num_local: int
  local_size: int
  local_area: tuple[float, float]


def make_prepare(data: input_pipeline.Datasets, crops: Crops) -> Callable:
  """Returns the `Task.prepare` that crops the views of an image.

  An example becomes `global_views` float32 [2, H, W, 3] and `local_views`
  [L, h, w, 3] in [-1, 1]. In evaluation, the crops do not depend on chance.

  Args:
    data: gives sizes, crops and orientation of the run.
    crops: sizes of the local views.
  """
  settings, how = data.settings, data.decoding
  cropping = settings.cropping

  def local_view(pixels, seed):
    seeds = tf.random.experimental.stateless_split(seed, 2)
    view = preprocess.resize_with(
      _crop(pixels, seeds[0], crops.local_area),
      (crops.local_size,) * 2,
      cropping.interpolation,
    )
    if cropping.flip:
      view = tf.image.stateless_random_flip_left_right(view, seeds[1])
    return preprocess.to_unit_range(view)

  def prepare(example, seed):
    if seed is None:
      seed = tf.zeros([2], tf.int64)
    pixels = preprocess.decode(example['image'], how)
    seeds = tf.random.experimental.stateless_split(
      seed, NUM_GLOBAL + crops.num_local
    )
    views = [
      preprocess.for_training(pixels, settings.image_size, x, cropping, how)
      for x in tf.unstack(seeds[:NUM_GLOBAL])
    ]
    found = {'global_views': tf.stack(views)}
    if crops.num_local:
      found['local_views'] = tf.stack(
        [local_view(pixels, x) for x in tf.unstack(seeds[NUM_GLOBAL:])]
      )
    return found

  return prepare


def _crop(pixels, seed, area_range):
  """Returns a random box of an image with a fraction of its area."""
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    tf.shape(pixels),
    tf.zeros([1, 0, 4]),
    seed,
    min_object_covered=0.0,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=area_range,
    max_attempts=100,
    use_image_if_no_bounding_boxes=True,
  )
  (top, left, _), (height, width, _) = tf.unstack(begin), tf.unstack(size)
  return pixels[top : top + height, left : left + width]


def hue(image: jax.Array, turn: jax.Array) -> jax.Array:
  """Rotates the hue of an image, float [H, W, 3] in 0…1.

  Args:
    image: RGB.
    turn: fraction of a full turn, float [].
  """
  largest, smallest = image.max(-1), image.min(-1)
  spread = largest - smallest
  red, green, blue = (image[..., i] for i in range(3))
  safe = jnp.where(spread > 0, spread, 1)
  sector = jnp.select(
    [largest == red, largest == green],
    [(green - blue) / safe, 2 + (blue - red) / safe],
    4 + (red - green) / safe,
  )
  offsets = jnp.array([5.0, 3.0, 1.0])
  k = (offsets + (sector + 6 * turn)[..., None]) % 6
  ramp = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
  return largest[..., None] - spread[..., None] * ramp


def change_colors(
  key: jax.Array, image: jax.Array, blur_rate: float, solarize_rate: float
) -> jax.Array:
  """Returns a view with other colors, float32 [H, W, 3] in [-1, 1].

  As the code of DINO: with probability 0.8, brightness, contrast (1 ± 0.4) and
  saturation (1 ± 0.2) change in random order, and then the hue by at most 0.1
  turns; 20 % of the views become grey; then blur and solarization. In the
  original, the hue changes at a random place of the order.

  Args:
    key: random key.
    image: float [H, W, 3] in [-1, 1].
    blur_rate: probability of a blur with a deviation of 0.1 to 2 pixels.
    solarize_rate: probability that levels from 128 on are inverted.
  """
  keys = jax.random.split(key, 5)
  kinds = jnp.array(_KINDS)
  ranges = jnp.array([0.4, 0.4, 0.2])
  order = jax.random.permutation(keys[0], 3)
  factors = 1 + ranges * jax.random.uniform(keys[1], (3,), minval=-1)

  def blend(image, i):
    return blends.blend(image, kinds[i], factors[i], _KINDS), None

  levels = grey_levels.from_images(image)
  jittered, _ = jax.lax.scan(blend, levels, order)
  turn = jax.random.uniform(keys[2], (), minval=-0.1, maxval=0.1)
  turned = hue(jittered.astype(jnp.float32) / 255, turn) * 255
  turned = grey_levels.to_uint8(jnp.round(turned))
  draws = jax.random.uniform(keys[3], (4,))
  levels = jnp.where(draws[0] < 0.8, turned, levels)
  grey = blends.grey(levels)[..., None].astype(jnp.uint8)
  levels = jnp.where(draws[1] < 0.2, grey, levels)
  sigma = jax.random.uniform(keys[4], (), minval=0.1, maxval=2)
  if blur_rate:
    blurred = blends.blur(levels, sigma)
    levels = jnp.where(draws[2] < blur_rate, blurred, levels)
  if solarize_rate:
    inverted = jnp.where(levels < _SOLARIZE, levels, 255 - levels)
    levels = jnp.where(draws[3] < solarize_rate, inverted, levels)
  return grey_levels.to_images(levels)
