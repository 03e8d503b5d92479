"""Crops, resizing and flips in JAX, compared with those of TensorFlow."""

import jax
import numpy as np
import pytest

from tests import reference
from tests.data.test_preprocess import largest_cdf_distance
from vit_jax.data import preprocess
from vit_jax.data.in_memory import crops


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize(
  'key', ['32x32', pytest.param('375x500', marks=pytest.mark.slow)]
)
def test_boxes_are_distributed_like_the_reference(key):
  size = tuple(map(int, key.split('x')))
  expected = reference.arrays()[f'boxes/{key}'].astype(int)
  draw = jax.jit(crops.random_boxes, static_argnums=(1, 2))
  found = np.stack(draw(keys(len(expected)), size, 0.05), axis=1)
  limit = 1.95 * (2 / len(expected)) ** 0.5  # p = 0.001 for each quantity
  for quantity in (
    *(lambda b, i=i: b[:, i] for i in range(4)),
    lambda b: b[:, 2] * b[:, 3],
    lambda b: b[:, 2] / b[:, 3],
  ):
    assert largest_cdf_distance(quantity(found), quantity(expected)) < limit


def test_large_boxes_of_small_images_have_the_smallest_area():
  draw = jax.jit(crops.random_boxes, static_argnums=(1, 2))
  top, left, height, width = draw(keys(2000), (9, 8), 0.8)
  assert ((height * width >= 0.8 * 72) & (height * width <= 72)).all()
  assert not top.any() and not left.any()  # the last place is never drawn
  found = set(zip(height.tolist(), width.tolist(), strict=True))
  assert found == {(9, 8), (9, 7), (8, 8)}
  # No box of such an aspect ratio has so large an area: the image is kept.
  *_, height, width = draw(keys(3), (8, 80), 0.9)
  assert set(height.tolist()) == {8} and set(width.tolist()) == {80}


def test_a_box_of_a_wrong_area_by_rounding_changes_by_one_row():
  """As in TensorFlow: √30 rounds to 5, and 5 × 5 pixels are less than 30."""
  ratio, draw = np.float32([[1, 1]]), np.float32([[0, 0.999]])
  rows, columns, fits = crops._fitted(ratio, draw, (10, 10), 0.3)
  np.testing.assert_array_equal(rows, [[6, 10]])
  np.testing.assert_array_equal(columns, [[6, 10]])
  assert fits.all()


@pytest.mark.parametrize('size', [(32, 32), (13, 20)])
def test_boxes_are_resized_as_tensorflow_resizes_them(size):
  images = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), np.uint8)
  corner = [23, 31, 1, 1]
  boxes = np.array(
    [[0, 0, 24, 32], [3, 5, 1, 1], [0, 9, 24, 7], [2, 0, 9, 32], corner]
    + [[10, 11, 12, 13]]
  )
  found = jax.jit(crops.resize_boxes, static_argnums=2)(images, boxes.T, size)
  for image, (top, left, height, width), x in zip(
    images, boxes, found, strict=True
  ):
    box = image[top : top + height, left : left + width]
    np.testing.assert_allclose(x, preprocess.resize(box, size), atol=2e-3)
  whole = crops.resize(images, size)
  np.testing.assert_allclose(whole, preprocess.resize(images, size), atol=2e-3)


def test_uint8_is_scaled_exactly():
  pixels = np.arange(256, dtype=np.uint8)
  expected = preprocess.to_unit_range(pixels).numpy()
  found = jax.jit(crops.to_unit_range)(pixels)
  np.testing.assert_array_equal(found, expected)
  floats = jax.jit(crops.to_unit_range)(pixels.astype(np.float32))
  np.testing.assert_allclose(floats, expected, atol=1e-6)


def test_half_of_the_images_are_flipped():
  images = np.random.default_rng(0).integers(0, 256, (400, 2, 3, 3), np.uint8)
  found = np.asarray(jax.jit(crops.flip)(images, keys(400)))
  flipped = (found == images[:, :, ::-1]).all((1, 2, 3))
  assert (flipped | (found == images).all((1, 2, 3))).all()
  assert 150 < flipped.sum() < 250
