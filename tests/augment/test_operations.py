"""Operations on single images, compared with Pillow, TensorFlow and tables."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageFilter
from PIL import ImageOps
import pytest
from scipy import ndimage
import tensorflow as tf

from vit_jax.augment import affine
from vit_jax.augment import blends
from vit_jax.augment import grey_levels
from vit_jax.augment import policies
from vit_jax.augment import strengths
from vit_jax.augment import tables

SIZE = 37, 52


def make_image():
  """Returns noise with a full, a narrow and a constant range of levels."""
  image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
  image[..., 1] = image[..., 1] // 3 + 70
  image[:, 20:, 2] = 9
  return image


def as_ints(image):
  return np.asarray(image).astype(int)


def test_tables_equal_pillow():
  image = make_image()
  pil = Image.fromarray(image)
  cases = [
    (tables.KEEP, 0, pil),
    (tables.INVERT, 0, ImageOps.invert(pil)),
    *((tables.POSTERIZE, n, ImageOps.posterize(pil, n)) for n in range(1, 9)),
    *((tables.SOLARIZE, n, ImageOps.solarize(pil, n)) for n in (0, 77, 256)),
    (
      tables.SOLARIZE_ADD,
      110,
      pil.point([min(255, i + 110) if i < 128 else i for i in range(256)] * 3),
    ),
    (tables.AUTO_CONTRAST, 0, ImageOps.autocontrast(pil)),
    (tables.EQUALIZE, 0, ImageOps.equalize(pil)),
  ]
  kinds, arguments, expected = zip(*cases, strict=True)
  change = jax.jit(
    jax.vmap(
      lambda kind, argument: tables.change(image, kind, argument, range(1, 7))
    )
  )
  found = change(jnp.array(kinds), jnp.array(arguments))
  for case, one, other in zip(cases, found, expected, strict=True):
    np.testing.assert_array_equal(one, other, err_msg=str(case[:2]))


def test_blends_follow_pillow():
  """Pillow rounds degenerate images, and TensorFlow's code truncates them."""
  image = make_image()
  pil = Image.fromarray(image)
  methods = {
    blends.COLOR: ImageEnhance.Color,
    blends.CONTRAST: ImageEnhance.Contrast,
    blends.BRIGHTNESS: ImageEnhance.Brightness,
    blends.SHARPNESS: ImageEnhance.Sharpness,
  }
  cases = list(itertools.product(methods, (0.0, 0.1, 0.7, 1.0, 1.9, 3.7)))
  kinds, factors = map(jnp.array, zip(*cases, strict=True))
  blend = jax.jit(
    jax.vmap(lambda kind, f: blends.blend(image, kind, f, tuple(methods)))
  )
  for (kind, factor), found in zip(cases, blend(kinds, factors), strict=True):
    expected = methods[kind](pil).enhance(factor)
    differences = abs(as_ints(found) - as_ints(expected))[1:-1, 1:-1]
    exact = kind in (blends.BRIGHTNESS, blends.CONTRAST)
    limit = 0 if exact or factor == 1 else 1 + abs(factor - 1)
    assert differences.max() <= limit, (kind, factor)


def test_maps_equal_pillow():
  image = make_image()
  pil = Image.fromarray(image)
  cases = [
    *((affine.rotation(x, SIZE), ('rotate', x)) for x in (0, 27, -45, 130)),
    *(
      (affine.shear(by_row=x, corner=-0.5), (1, x, 0, 0, 1, 0))
      for x in (0.27, -0.3)
    ),
    *(
      (affine.shear(by_column=x, corner=-0.5), (1, 0, 0, x, 1, 0))
      for x in (0.99, -0.3)
    ),
    *(
      (affine.translation(rows=x, columns=y), (1, 0, y, 0, 1, x))
      for x, y in ((0, 0), (3, -10.25), (37, 0), (0, -52))
    ),
  ]
  matrices = jnp.stack([matrix for matrix, _ in cases])
  for bilinear in (False, True):
    read = jax.jit(
      jax.vmap(lambda m: affine.resample(image, m, 128, bilinear))  # noqa: B023
    )
    for (_, given), found in zip(cases, read(matrices), strict=True):
      options = dict(
        resample=Image.Resampling(2 if bilinear else 0), fillcolor=(128,) * 3
      )
      if given[0] == 'rotate':
        expected = pil.rotate(given[1], **options)
      else:
        expected = pil.transform(pil.size, Image.AFFINE, given, **options)
      wrong = abs(as_ints(found) - as_ints(expected))
      # Rounding errors decide where a place is between two pixels.
      assert (wrong > bilinear).mean() < 1e-3, given
      if given[2:] in ((0, 0, 1, 37), (-52, 0, 1, 0)):  # moved out of sight
        assert (np.asarray(found) == 128).all()


def test_maps_and_grey_levels_equal_the_functions_of_published_runs():
  """Its code used TensorFlow and its nearest projective transformation."""
  image = make_image()
  red, green, blue = np.meshgrid(*[np.arange(0, 256, 5)] * 3)
  colors = np.stack([red, green, blue], -1).reshape(-1, 1, 3).astype(np.uint8)
  wrong = (
    blends.grey(jnp.asarray(colors))
    != (tf.image.rgb_to_grayscale(colors)[..., 0])
  )
  assert np.asarray(wrong).mean() < 1e-4  # rounding errors
  for matrix in (
    affine.rotation(45, SIZE),
    affine.shear(by_row=0.45),
    affine.shear(by_column=-0.6),
    affine.translation(rows=-10, columns=20),
  ):
    rows, columns = np.asarray(matrix)
    flat = [*columns[[1, 0, 2]], *rows[[1, 0, 2]], 0, 0]
    expected = tf.raw_ops.ImageProjectiveTransformV3(
      images=image[None],
      transforms=np.float32([flat]),
      output_shape=SIZE,
      fill_value=128.0,
      interpolation='NEAREST',
      fill_mode='CONSTANT',
    )[0]
    found = affine.resample(jnp.asarray(image), matrix, 128)
    assert (np.asarray(found) != expected.numpy()).mean() < 1e-3


def test_blur_is_gaussian():
  image = make_image()
  blur = jax.jit(blends.blur)
  for sigma in (0.0, 0.1, 0.9, 2.0):
    expected = ndimage.gaussian_filter(
      image.astype(float), (sigma, sigma, 0), mode='nearest', radius=6
    )
    assert abs(as_ints(blur(image, sigma)) - expected).max() <= 0.51
  # Pillow approximates the blur by boxes.
  smooth = expected.astype(np.uint8)
  boxes = Image.fromarray(smooth).filter(ImageFilter.GaussianBlur(1.5))
  assert abs(as_ints(blur(smooth, 1.5)) - as_ints(boxes)).mean() < 0.5


def test_rounding_to_grey_levels():
  levels = np.arange(256, dtype=np.uint8)
  images = grey_levels.to_images(jnp.asarray(levels))
  assert images.dtype == jnp.float32
  np.testing.assert_array_equal(images, (np.float32(levels) - 127.5) / 127.5)
  np.testing.assert_array_equal(grey_levels.from_images(images), levels)
  near = jnp.clip(images + 0.49 / 127.5, -1, 1)
  np.testing.assert_array_equal(grey_levels.from_images(near), levels)


# --- strengths ---------------------------------------------------------------


def draw(level, sign=1.0, size=(224, 224), place=(0.5, 0.25)):
  return policies.Draw(
    jnp.float32(level), jnp.float32(sign), jnp.array(place), size
  )


def number(operation):
  """Returns the number that determines an operation."""
  fields = operation._asdict()
  if not isinstance(operation.matrix, tuple):
    return np.round(as_floats(operation.matrix), 5).tolist()
  for name in ('argument', 'factor', 'sigma'):
    if fields[name] is not type(operation)._field_defaults[name]:
      return pytest.approx(float(fields[name]), abs=1e-5)
  return np.asarray(operation.box).tolist()


def as_floats(x):
  return np.asarray(x, np.float64)


# {operation: values at the levels 0, 10, 15, 20}. Notes on RandAugment as it
# was trained: solarize compares with its threshold modulo 256, and 8 - bits is
# a shift of at most 7.
TRAINED = {
  'posterize': (1, 4, 6, 8),
  'solarize': (0, 0, 128, 0),
  'solarize_add': (0, 110, 165, 220),
  'color': (0.1, 1.9, 2.8, 3.7),
  'sharpness': (0.1, 1.9, 2.8, 3.7),
  'cutout': (
    *([112, 112, 56, 56], [72, 152, 16, 96], [52, 172, -4, 116]),
    [32, 192, -24, 136],
  ),
}
FIXED = {
  'posterize': (8, 4, 2, 1),
  'solarize': (256, 0, 0, 0),
  'solarize_add': (0, 110, 165, 220),
  'contrast': (1.0, 1.9, 2.35, 2.8),
}


def test_strengths_of_randaug():
  for table, expected in (
    (strengths.TRAINED, TRAINED),
    (strengths.FIXED, FIXED),
  ):
    for name, values in expected.items():
      for level, value in zip((0, 10, 15, 20), values, strict=True):
        assert number(table[name].make(draw(level))) == value, (name, level)
  assert len(strengths.TRAINED) == len(strengths.FIXED) == 16
  for table, side, moved in (
    (strengths.TRAINED, 32, 150),
    (strengths.FIXED, 224, 150),
    (strengths.FIXED, 32, 150 * 32 / 224),
  ):
    down = table['translate_y'].make(draw(15, -1, (side, side))).matrix
    np.testing.assert_allclose(down, [[1, 0, -moved], [0, 1, 0]], rtol=1e-6)
    shear = table['shear_x'].make(draw(15, -1, (side, side))).matrix
    np.testing.assert_allclose(shear, [[1, 0, 0], [-0.45, 1, 0]], rtol=1e-6)
    turned = table['rotate'].make(draw(15, size=(side, side))).matrix
    np.testing.assert_allclose(turned, affine.rotation(45, (side, side)))
  small = strengths.FIXED['cutout'].make(draw(10, size=(56, 112)))
  assert number(small) == [18, 38, 8, 48]
  weak = strengths.FIXED['color'].make(draw(20, -1))
  assert number(weak) == pytest.approx(0.1)


def test_strengths_of_timm_and_trivial_augment():
  increasing = {
    name: maker.make(draw(9, -1))
    for name, maker in strengths.TIMM_INCREASING.items()
  }
  assert len(increasing) == 15
  assert number(increasing['posterize']) == 1
  assert number(increasing['solarize']) == 26
  assert number(increasing['solarize_add']) == 99
  assert number(increasing['brightness']) == pytest.approx(0.19)
  assert increasing['translate_x'].matrix[1, 2] == pytest.approx(-0.405 * 224)
  np.testing.assert_allclose(
    increasing['rotate'].matrix, affine.rotation(-27, (224, 224)), rtol=1e-6
  )
  old = {name: maker.make(draw(9)) for name, maker in strengths.TIMM.items()}
  assert number(old['posterize']) == 3
  assert number(old['solarize']) == 230
  assert number(old['color']) == pytest.approx(1.72)

  assert len(strengths.TRIVIAL) == 14
  for level, bits, threshold, factor, moved in (
    (0, 8, 255, 1.0, 0),
    (7, 7, 196, 1.231, 7),
    (30, 2, 0, 1.99, 32),
  ):
    made = {
      name: maker.make(draw(level)) for name, maker in strengths.TRIVIAL.items()
    }
    assert number(made['posterize']) == bits
    assert number(made['solarize']) == threshold
    assert number(made['color']) == pytest.approx(factor)
    assert made['translate_x'].matrix[1, 2] == moved
  np.testing.assert_allclose(
    made['rotate'].matrix, affine.rotation(135, (224, 224)), atol=1e-4
  )


def test_the_mistakes_of_published_runs():
  """Contrast compares with (number of pixels) / 256; solarize(256) inverts."""
  kind = blends.CONTRAST_AS_TRAINED
  blend = jax.jit(lambda image: blends.blend(image, kind, 0.0, (kind,)))
  for side, level in ((224, 196), (32, 4), (256, 255), (300, 255)):
    assert (blend(np.zeros((side, side, 3), np.uint8)) == level).all()
  maker = strengths.TRAINED['solarize']
  made = maker.make(draw(10))
  image = jnp.asarray(make_image())
  found = tables.change(image, made.table, made.argument, (maker.kind,))
  np.testing.assert_array_equal(found, 255 - image)
