"""The operations of each policy, and what a strength means for them.

Shapes:  H, W height and width
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.augment import affine
from vit_jax.augment import blends
from vit_jax.augment import tables
from vit_jax.augment.operations import Maker
from vit_jax.augment.operations import of_blend
from vit_jax.augment.operations import of_blur
from vit_jax.augment.operations import of_cutout
from vit_jax.augment.operations import of_map
from vit_jax.augment.operations import of_nothing
from vit_jax.augment.operations import of_table


def _whole(values: jax.Array) -> jax.Array:
  """Returns numbers of at least 0 without their fractions, int32."""
  return jnp.floor(values).astype(jnp.int32)


def _enhance(factor: Callable, contrast: int) -> dict[str, Maker]:
  """Returns the four blends; `factor` is a function of a draw."""
  return {
    'color': of_blend(blends.COLOR, factor),
    'contrast': of_blend(contrast, factor),
    'brightness': of_blend(blends.BRIGHTNESS, factor),
    'sharpness': of_blend(blends.SHARPNESS, factor),
  }


def _maps(
  degrees: float, slope: float, shift: Callable, corner: float
) -> dict[str, Maker]:
  """Returns rotation, shears and translations in a random direction.

  Args:
    degrees: angle for a level of 1.
    slope: shear for a level of 1.
    shift: (level, length of the side) -> translation in pixels.
    corner: see `affine.shear`.
  """

  def signed(value, draw):
    return draw.sign * value * draw.level

  return {
    'rotate': of_map(lambda d: affine.rotation(signed(degrees, d), d.size)),
    'shear_x': of_map(
      lambda d: affine.shear(by_row=signed(slope, d), corner=corner)
    ),
    'shear_y': of_map(
      lambda d: affine.shear(by_column=signed(slope, d), corner=corner)
    ),
    'translate_x': of_map(
      lambda d: affine.translation(columns=d.sign * shift(d.level, d.size[1]))
    ),
    'translate_y': of_map(
      lambda d: affine.translation(rows=d.sign * shift(d.level, d.size[0]))
    ),
  }


_WITHOUT_LEVEL = {
  'auto_contrast': of_table(tables.AUTO_CONTRAST),
  'equalize': of_table(tables.EQUALIZE),
}
_INVERT = {'invert': of_table(tables.INVERT)}

# The code that AugReg and Noisy Student were trained with (big_vision,
# pp/autoaugment.py), with its mistakes. Solarize compares its threshold with
# uint8, so the threshold wraps at 256. The mean of contrast is wrong. Posterize
# and solarize become weaker with the level. Lengths are for 224 px.
TRAINED = {
  **_WITHOUT_LEVEL,
  **_INVERT,
  **_maps(3.0, 0.03, lambda level, side: 10 * level, corner=0.0),
  # TensorFlow shifts a uint8 by at most 7 bits, so one bit remains.
  'posterize': of_table(
    tables.POSTERIZE, lambda d: jnp.maximum(1, _whole(0.4 * d.level))
  ),
  'solarize': of_table(tables.SOLARIZE, lambda d: _whole(25.6 * d.level) % 256),
  'solarize_add': of_table(tables.SOLARIZE_ADD, lambda d: _whole(11 * d.level)),
  **_enhance(lambda d: 0.1 + 0.18 * d.level, blends.CONTRAST_AS_TRAINED),
  'cutout': of_cutout(lambda d: _whole(4 * d.level)),
}


def _either_way(change: float, least: float = 0.1) -> Callable:
  """Returns the function of a draw: a factor of 1 ± change · level."""
  return lambda d: jnp.maximum(least, 1 + d.sign * change * d.level)


# The same operations. All strengths grow from no change at level 0, and lengths
# grow with the size of the image.
FIXED = {
  **TRAINED,
  **_maps(3.0, 0.03, lambda level, side: 10 * level * side / 224, corner=0.0),
  'posterize': of_table(
    tables.POSTERIZE, lambda d: jnp.maximum(1, 8 - _whole(0.4 * d.level))
  ),
  'solarize': of_table(
    tables.SOLARIZE, lambda d: jnp.maximum(0, 256 - _whole(25.6 * d.level))
  ),
  **_enhance(_either_way(0.09), blends.CONTRAST),
  'cutout': of_cutout(
    lambda d: _whole(jnp.round(4 * d.level * jnp.array(d.size) / 224))
  ),
}

# timm, data/auto_augment.py: `_RAND_TRANSFORMS`.
TIMM = {
  **_WITHOUT_LEVEL,
  **_INVERT,
  **_maps(3.0, 0.03, lambda level, side: 0.045 * level * side, corner=-0.5),
  'posterize': of_table(tables.POSTERIZE, lambda d: _whole(0.4 * d.level)),
  'solarize': of_table(
    tables.SOLARIZE, lambda d: jnp.minimum(256, _whole(25.6 * d.level))
  ),
  'solarize_add': of_table(
    tables.SOLARIZE_ADD, lambda d: jnp.minimum(128, _whole(11 * d.level))
  ),
  **_enhance(lambda d: 0.1 + 0.18 * d.level, blends.CONTRAST),
}

# timm: `_RAND_INCREASING_TRANSFORMS`.
TIMM_INCREASING = {
  **TIMM,
  'posterize': of_table(
    tables.POSTERIZE, lambda d: jnp.maximum(0, 4 - _whole(0.4 * d.level))
  ),
  'solarize': of_table(
    tables.SOLARIZE, lambda d: jnp.maximum(0, 256 - _whole(25.6 * d.level))
  ),
  **_enhance(_either_way(0.09), blends.CONTRAST),
}

# TrivialAugment Wide (arXiv 2103.10158, table 6), as in torchvision. The level
# is a whole number from 0 to 30.
TRIVIAL = {
  'identity': of_nothing(),
  **_WITHOUT_LEVEL,
  **_maps(
    135 / 30,
    0.99 / 30,
    lambda level, side: jnp.floor(32 * level / 30),
    corner=-0.5,
  ),
  'posterize': of_table(
    tables.POSTERIZE, lambda d: 8 - jnp.round(d.level / 5).astype(jnp.int32)
  ),
  'solarize': of_table(
    tables.SOLARIZE, lambda d: jnp.ceil(255 - 8.5 * d.level).astype(jnp.int32)
  ),
  **_enhance(_either_way(0.99 / 30, least=0.0), blends.CONTRAST),
}

# DeiT III (arXiv 2204.07118, section 3.3). Color jitter is another setting.
THREE_AUGMENT = {
  'grey': of_blend(blends.COLOR, 0.0),
  'solarize': of_table(tables.SOLARIZE, 128),
  'blur': of_blur(lambda d: 0.1 + 1.9 * d.place[0]),
}
