"""Images that a model cannot take are rejected, with the reason."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import make_mixer
from tests.tiny_model import make_vit
from tests.tiny_model import shapes_of
from vit_jax import models
from vit_jax.models import input_checks

GOOD = np.linspace(-1, 1, 2 * 32 * 24 * 3, dtype=np.float32).reshape(
  2, 32, 24, 3
)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda x: x[0], r'\[32, 24, 3\].* batch axis .*images\[None\]'),
    (lambda x: x[0, 0], r'\[24, 3\].*\[B, H, W, C\]'),
    (lambda x: x.transpose(0, 3, 1, 2), r'\[2, 3, 32, 24\].*transpose\(0, 2'),
    (lambda x: x[..., :1].transpose(0, 3, 1, 2), r'\[2, 1, 32, 24\].*C, H, W'),
    (lambda x: (127 * (x + 1)).astype(np.uint8), r'uint8 .*/ 127.5 - 1'),
    (lambda x: x.astype(int), 'int64 .*floats'),
    (lambda x: x > 0, 'bool .*floats'),
    (lambda x: 127.5 * (x + 1), r'from 0 to 255, .*\[-1, 1\].*/ 127.5 - 1'),
    (lambda x: 2 * x, r'from -2 to 2, .*\[-1, 1\]. Scale or clip'),
    (lambda x: (x + 1) / 2, r'from 0 to 1, .*0…1.*2 \* images - 1'),
    (lambda x: (x + 1) / 5, r'from 0 to 0.4, .*0…1'),
    (lambda x: np.where(x > 0.9, np.nan, x), 'nan.* finite'),
    (lambda x: np.where(x > 0.9, np.inf, x), 'inf.* finite'),
    (lambda x: x[:, :16], r'\[2, 16, 24, 3\].* 32 x 24 pixels'),
  ],
)
def test_wrong_images(change, message):
  input_checks.check_images(GOOD, (32, 24))
  with pytest.raises(ValueError, match=message):
    input_checks.check_images(change(GOOD), (32, 24))


def test_what_is_accepted():
  for images in (
    GOOD.astype(np.float16),
    jnp.asarray(GOOD, jnp.bfloat16),
    GOOD[:0],
    np.zeros((1, 8, 8, 3)),
    np.ones((1, 8, 8, 5)),
    np.zeros((2, 3, 4, 9)),  # 4 pixels wide, with 9 channels
  ):
    input_checks.check_images(images)
  bright = (GOOD + 1) / 2
  input_checks.check_images(bright, pixel_range=(-1, 1))
  input_checks.check_images(3 * GOOD, pixel_range=(-3, 3))
  with pytest.raises(ValueError, match=r'x have .* 3, .* in \[-2, 2\]'):
    input_checks.check_images(3 * GOOD, name='x', pixel_range=(-2, 2))


@pytest.mark.parametrize(
  'model',
  [
    make_vit(patch_size=4),
    make_mixer(patch_size=4),
    make_vit(patch_size=1, stem_units=()),
    models.BitResNet(3, (1,), 1),
  ],
  ids=['vit', 'mixer', 'hybrid', 'bit'],
)
def test_models_reject_them_while_jax_traces(model):
  shapes = shapes_of(model, (1, 32, 24, 3))
  apply = functools.partial(
    jax.eval_shape, functools.partial(model.apply, train=False), shapes
  )
  init = functools.partial(
    jax.eval_shape,
    functools.partial(model.init, train=False),
    jax.random.key(0),
  )
  assert apply(GOOD).shape[0] == 2
  for images, message in (
    (GOOD[0], r'\[32, 24, 3\].* batch axis'),
    (GOOD.transpose(0, 3, 1, 2), r'\[2, 3, 32, 24\].*B, C, H, W'),
    # 4 is a multiple of the patch size.
    (np.zeros((2, 4, 32, 24)), r'\[2, 4, 32, 24\].*B, C, H, W'),
    (GOOD.astype(np.uint8), 'uint8.* floats'),
  ):
    for call in (apply, init):
      with pytest.raises(ValueError, match=message):
        call(images)
  with pytest.raises(ValueError, match='with 4 channels, .* for 3 channels'):
    apply(np.zeros((2, 32, 24, 4)))


def test_pixels_as_tokens_may_form_one_row():
  model = make_vit(patch_size=1, classifier='gap')
  assert shapes_of(model, (1, 1, 9, 7))['params']['embedding']
