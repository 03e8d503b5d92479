"""Masked patch prediction: corruption, targets and losses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models.pretraining import masked_patches as masked_model
from vit_jax.tasks import masked_patches
from vit_jax.tasks import task

RNG = np.random.default_rng(0)


def colors(values, side=4):
  """Returns an image [1, side, side, C] of one color in 0…255."""
  return np.full((1, side, side, len(values)), values, np.float32) / 127.5 - 1


def test_half_of_the_patches_are_corrupted_in_three_ways():
  found = masked_patches.draw_corruption(jax.random.key(0), 4000, 16, 8)
  exchanged = np.asarray(found['source']) != np.arange(16)
  assert (found['corrupted'].sum(1) == 8).all()
  for x, expected in ((found['masked'], 0.4), (exchanged, 0.05)):
    assert float(x.mean()) == pytest.approx(expected, abs=0.0025)
    assert not (x & ~found['corrupted']).any()
  assert not (exchanged & found['masked']).any()
  # Exchanged patches come from all other places.
  offsets = (np.asarray(found['source']) - np.arange(16))[exchanged] % 16
  assert set(offsets) == set(range(1, 16))


@pytest.mark.parametrize(
  'color, expected',
  [
    ((0, 0, 0), 0),
    ((255, 255, 255), 511),
    ((255, 0, 0), 448),
    ((31, 32, 64), 10),
    ((128,), 4),
  ],
)
def test_the_class_of_a_constant_color(color, expected):
  assert masked_patches.color_classes(colors(color), 4).item() == expected
  cells = masked_patches.color_classes(colors(color), 4, cells=4)
  assert (cells == expected).all() and cells.shape == (1, 1, 16)


def test_cells_of_a_patch_are_numbered_row_by_row():
  image = np.concatenate([colors((0,)), colors((255,))], axis=2)  # 4 x 8
  image[0, 0, 4] = -1
  found = masked_patches.color_classes(image, 4, cells=4)
  np.testing.assert_array_equal(found[0], [[0] * 16, [0] + [7] * 15])


@pytest.mark.parametrize('target', masked_patches.TARGETS)
def test_losses_of_predictions_and_their_pictures(target):
  images = RNG.uniform(-1, 1, (2, 8, 4, 3)).astype(np.float32)
  width = masked_patches.num_outputs(target, 4, 3)
  zeros = jnp.zeros((2, 2, width))
  losses = masked_patches.patch_losses(zeros, images, target, 4)
  pixels = images.reshape(2, 2, -1)
  expected = {'l1': abs(pixels).mean(-1), 'l2': (pixels**2).mean(-1)}.get(
    target, np.log(512)
  )
  np.testing.assert_allclose(losses, np.broadcast_to(expected, (2, 2)), 1e-5)
  assert masked_patches.most_likely_pixels(zeros, target, 4, 3).shape == (
    *(2, 2, 48),
  )


@pytest.mark.parametrize('target', masked_patches.TARGETS)
def test_the_loss_is_the_mean_over_all_corrupted_patches(target):
  """Also over those that stay as they are, and over no others."""
  images = RNG.uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
  drawn = masked_patches.draw_corruption(jax.random.key(1), 8, 16, 8)
  exchanged = drawn['source'] != np.arange(16)
  corrupted = np.asarray(drawn['corrupted'])
  kinds = drawn['masked'], exchanged, ~(drawn['masked'] | exchanged) & corrupted
  assert all(map(np.any, kinds))
  method = masked_patches.Method(
    types.SimpleNamespace(  # its parameters are the predictions
      apply=lambda variables, *args, **options: variables['params'],
      encoder=types.SimpleNamespace(patch_size=4),
    ),
    target,
  )

  def loss(predicted):
    context = task.Context(key=None, step=0)
    losses, _, _ = method.loss(predicted, {'image': images, **drawn}, context)
    return losses.sum(), losses

  width = masked_patches.num_outputs(target, 4, 3)
  predicted = RNG.normal(size=(8, 16, width)).astype(np.float32)
  (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(predicted)
  of_patches = masked_patches.patch_losses(predicted, images, target, 4)
  expected = [
    x[row].mean() for x, row in zip(of_patches, corrupted, strict=True)
  ]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  np.testing.assert_array_equal(np.any(gradient, axis=-1), corrupted)


def test_the_likeliest_color_is_close_to_the_true_one():
  images = RNG.uniform(-1, 1, (1, 2, 2, 3)).astype(np.float32).repeat(4, 1)
  images = images.repeat(4, 2)  # four patches of one color each
  classes = masked_patches.color_classes(images, 4)[..., 0]
  found = masked_patches.most_likely_pixels(
    jax.nn.one_hot(classes, 512), 'color', 4, 3
  )
  true = images.reshape(1, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(1, 4, -1)
  assert abs(found - true).max() < 16.5 / 127.5


def test_masked_and_exchanged_embeddings_reach_the_encoder():
  encoder = models.get_model(
    'testing', num_classes=0, patch_size=4, classifier='unpooled'
  )
  model = masked_model.MaskedPatchModel(encoder, 5)
  images = RNG.uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
  variables = model.init(jax.random.key(0), images, train=False)

  def predict(images, source, masked):
    return model.apply(
      variables,
      images,
      train=False,
      source=np.array([source]),
      masked=np.array([masked]),
    )

  nothing = predict(images, [0, 1, 2, 3], [False] * 4)
  plain = model.apply(variables, images, train=False)
  np.testing.assert_array_equal(nothing, plain)
  # Masked pixels are not seen, and an exchanged patch is read at its new place.
  other = images.copy()
  other[:, :4, :4] = 0.5
  mask = [True, False, False, False]
  np.testing.assert_array_equal(
    predict(images, [0, 1, 2, 3], mask), predict(other, [0, 1, 2, 3], mask)
  )
  copied = images.copy()
  copied[:, :4, 4:] = images[:, 4:, 4:]
  np.testing.assert_allclose(
    predict(images, [0, 3, 2, 3], [False] * 4),
    predict(copied, [0, 1, 2, 3], [False] * 4),
    atol=1e-6,
  )
