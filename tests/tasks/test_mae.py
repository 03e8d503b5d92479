"""Masked autoencoders: masks, targets, the model and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import digits_run
from vit_jax import models
from vit_jax.models.layers import patches
from vit_jax.models.pretraining import mae as mae_model
from vit_jax.tasks import mae
from vit_jax.tasks import task

SIZE, SIDE, KEPT = (8, 16), 4, 3  # 2 x 4 patches
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, *SIZE, 3)).astype(np.float32)


def make(num_layers=1, **settings):
  encoder = models.get_model(
    'testing',
    **{
      **dict(num_classes=0, patch_size=SIDE, hidden_size=8, num_heads=2),
      **dict(positions='sincos2d', classifier='token_unpooled'),
      **settings,
    },
  )
  return mae_model.MaskedAutoencoder(
    encoder, mae_model.DecoderSettings(8, num_layers, 2)
  )


def draw_order(size=3):
  transform = mae.make_transform(8)
  batch = transform(jax.random.key(0), {'image': np.zeros((size, 1))}, 0, True)
  return batch['order']


@pytest.fixture(name='trained', scope='module')
def fixture_trained():
  """Returns a model with a decoder of no layers, and its parameters."""
  model, order = make(num_layers=0), draw_order()
  spec = {'image': IMAGES, 'order': order}
  params = mae.init_params(model, KEPT)(jax.random.key(1), spec)

  @jax.jit
  def predict(images, order):
    return model.apply(
      {'params': params}, images, train=False, order=order, num_visible=KEPT
    )

  return predict, order, params


def test_patches_are_cut_and_joined_again():
  pixels = patches.patchify(IMAGES, SIDE)
  np.testing.assert_array_equal(
    pixels[1, 6], IMAGES[1, 4:8, 8:12].reshape(-1)
  )  # the third patch of the second row
  np.testing.assert_array_equal(
    patches.unpatchify(pixels, (2, 4), SIDE), IMAGES
  )


def test_masks_hide_each_patch_equally_often():
  hidden = np.asarray(mae.hidden_patches(draw_order(4000), KEPT))
  assert (hidden.sum(1) == 8 - KEPT).all()
  np.testing.assert_allclose(hidden.mean(0), 5 / 8, atol=0.03)
  assert len(np.unique(hidden, axis=0)) == 56  # 8 over 3


def test_the_model_does_not_see_hidden_pixels(trained):
  predict, order, _ = trained
  hidden = mae.hidden_patches(order, KEPT)
  changed = patches.unpatchify(
    jnp.where(hidden[..., None], 0.5, patches.patchify(IMAGES, SIDE)),
    (2, 4),
    SIDE,
  )
  np.testing.assert_array_equal(predict(IMAGES, order), predict(changed, order))


def test_a_decoder_without_layers_keeps_each_patch_in_its_place(trained):
  # Without layers, the prediction of a patch depends on its own token only.
  predict, order, _ = trained
  found, hidden = predict(IMAGES, order), mae.hidden_patches(order, KEPT)
  of_masks = predict(-IMAGES, order)
  is_same = (found == of_masks).all(-1)
  np.testing.assert_array_equal(is_same, hidden)


def test_the_order_of_visible_patches_does_not_matter(trained):
  predict, order, _ = trained
  other = jnp.concatenate(
    [order[:, :KEPT][:, ::-1], order[:, KEPT:][:, ::-1]], axis=1
  )
  np.testing.assert_allclose(
    predict(IMAGES, order), predict(IMAGES, other), atol=1e-5
  )


def test_the_encoder_is_a_plain_vit(trained):
  _, order, params = trained
  plain = make().encoder.clone(classifier='token')
  expected = jax.eval_shape(
    lambda: plain.init(jax.random.key(0), IMAGES, train=False)['params']
  )
  assert jax.tree.map(jnp.shape, params['encoder']) == jax.tree.map(
    jnp.shape, expected
  )
  everything = jnp.argsort(order, axis=1) * 0 + jnp.arange(8)
  tokens = make().encoder.apply(
    {'params': params['encoder']}, IMAGES, train=False, kept=everything
  )
  features = plain.apply({'params': params['encoder']}, IMAGES, train=False)
  np.testing.assert_array_equal(tokens[:, 0], features)


def test_initial_values_are_those_of_the_paper(trained):
  _, _, params = trained
  kernel = params['encoder']['embedding']['kernel']  # [P, P, C, D]
  limit = np.sqrt(6 / (SIDE**2 * 3 + 8))  # Xavier, of a dense layer
  assert 0.95 * limit < abs(kernel).max() <= limit
  assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.1)
  for token in (params['encoder']['cls'], params['decoder']['mask_token']):
    assert 0.01 < token.std() < 0.04 and abs(token).max() < 0.08
  for name in ('embed', 'pred'):
    kernel = params['decoder'][name]['kernel']
    limit = np.sqrt(6 / sum(kernel.shape))
    assert 0.8 * limit < abs(kernel).max() <= limit


def test_a_prediction_of_zero_has_a_loss_close_to_1(trained):
  _, order, params = trained
  pred = jax.tree.map(jnp.zeros_like, params['decoder']['pred'])
  params = {**params, 'decoder': {**params['decoder'], 'pred': pred}}
  method = mae.Method(make(num_layers=0), KEPT, normalize=True)
  batch = {'image': IMAGES, 'order': order}
  context = task.Context(key=None, step=0)
  losses, _, _ = method.loss(params, batch, context)
  np.testing.assert_allclose(losses, 47 / 48, rtol=1e-4)  # ddof=1


def test_it_learns_on_digits():
  """The held-out loss falls below that of predicting 0."""
  images, held_out = (
    np.float32(digits_run.arrays()[name][0]) / 127.5 - 1
    for name in ('train', 'test')
  )
  model = make(patch_size=2)
  method = mae.Method(model, 4, normalize=True)
  transform = mae.make_transform(16)
  context = task.Context(key=jax.random.key(0), step=0)
  tx = optax.adam(5e-3)

  def loss(params, batch, key):
    batch = transform(key, {'image': batch}, 0, True)
    return method.loss(params, batch, context)[0].mean()

  @jax.jit
  def train(params, steps):
    def update(step, carry):
      params, state = carry
      key = jax.random.fold_in(jax.random.key(1), step)
      rows = jax.random.randint(key, (64,), 0, len(images))
      grads = jax.grad(loss)(params, jnp.asarray(images)[rows], key)
      updates, state = tx.update(grads, state)
      return optax.apply_updates(params, updates), state

    carry = jax.lax.fori_loop(0, steps, update, (params, tx.init(params)))
    return carry[0], loss(carry[0], held_out, jax.random.key(2))

  spec = {'image': images[:1], 'order': np.zeros((1, 16), np.int32)}
  params = mae.init_params(model, 4)(jax.random.key(0), spec)
  zeros = jax.tree.map(jnp.zeros_like, params)
  _, of_zeros = train(zeros, 0)
  _, of_trained = train(params, 300)
  assert of_trained < 0.85 * of_zeros < 0.85


def test_normalized_targets_have_mean_0_and_deviation_1():
  pixels = patches.patchify(IMAGES, SIDE).copy()
  pixels[0, 0] = 0.3
  mean, deviation = mae.statistics(pixels)
  target = np.array((pixels - mean) / deviation)
  assert abs(target[0, 0]).max() < 1e-3  # constant, and no NaN
  np.testing.assert_allclose(target[1:].mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(target[1:].std(-1, ddof=1), 1, atol=1e-4)


def test_the_loss_is_the_mean_over_hidden_patches():
  predicted, target = RNG.normal(size=(2, 3, 8, 48))
  hidden = np.asarray(mae.hidden_patches(draw_order(), KEPT))
  expected = [
    np.mean([((p[i] - t[i]) ** 2).mean() for i in np.flatnonzero(h)])
    for p, t, h in zip(predicted, target, hidden, strict=True)
  ]
  np.testing.assert_allclose(
    mae.squared_error(predicted, target, hidden), expected, rtol=1e-6
  )
