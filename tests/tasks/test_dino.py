"""DINO: views, loss, teacher and collapse."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from vit_jax import models
from vit_jax.models.pretraining import dino as dino_model
from vit_jax.optim import rules
from vit_jax.optim import weight_decay
from vit_jax.tasks import dino
from vit_jax.tasks import views

RNG = np.random.default_rng(0)


def test_pairs_of_the_same_view_are_left_out():
  teacher = RNG.dirichlet(np.ones(5), (3, 2))
  student = np.log(RNG.dirichlet(np.ones(5), (3, 10)))
  expected = np.mean(
    [
      -(teacher[:, i] * student[:, j]).sum(-1)
      for i in range(2)
      for j in range(10)
      if i != j
    ],
    axis=0,
  )  # 18 terms
  np.testing.assert_allclose(
    dino.cross_entropy(teacher, student), expected, rtol=1e-5
  )


def test_a_uniform_student_has_the_loss_ln_k():
  teacher = RNG.dirichlet(np.ones(7), (2, 2))
  student = jax.nn.log_softmax(jnp.zeros((2, 4, 7)))
  found = dino.cross_entropy(teacher, student)
  np.testing.assert_allclose(found, np.log(7), rtol=1e-6)


def test_the_momentum_rises_to_1():
  decay = dino.momentum_schedule(0.9, 100)
  found = [float(decay(step)) for step in (0, 50, 100)]
  np.testing.assert_allclose(found, [0.9, 0.95, 1], atol=1e-6)
  temperature = dino.temperature_schedule(0.02, 0.06, 10)
  found = [float(temperature(step)) for step in (0, 5, 10, 99)]
  np.testing.assert_allclose(found, [0.02, 0.04, 0.06, 0.06], rtol=1e-6)


def test_outputs_are_cosines_and_weight_decay_reaches_the_prototypes():
  encoder = models.get_model('testing', num_classes=0, patch_size=4)
  model = dino_model.DinoModel(
    encoder=encoder.clone(positions='none'), num_prototypes=6
  )
  images = RNG.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
  params = model.init(jax.random.key(0), images, train=False)['params']
  ((path, kernel),) = jax.tree.leaves_with_path(params['prototypes'])
  assert weight_decay.is_kernel(rules.path_of(path))
  assert 0.9 / 16 < abs(kernel).max() <= 1 / 16 and kernel.shape == (256, 6)
  assert kernel.std() == pytest.approx(1 / 16 / 3**0.5, rel=0.05)  # uniform
  found = model.apply({'params': params}, images, train=False)
  assert abs(found).max() <= 1
  scaled = {**params, 'prototypes': {'kernel': 3 * kernel}}
  np.testing.assert_allclose(
    model.apply({'params': scaled}, images, train=False), found, atol=1e-6
  )


@pytest.mark.parametrize('turn', [0.0, 0.1, -0.25, 1 / 3])
def test_the_hue_turns_as_in_hsv(turn):
  image = RNG.uniform(0, 1, (4, 5, 3)).astype(np.float32)
  found = np.asarray(views.hue(image, turn))
  pairs = zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True)
  for color, new in pairs:
    h, s, v = colorsys.rgb_to_hsv(*color.tolist())
    expected = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    np.testing.assert_allclose(new, expected, atol=1e-5)


def test_colors_change_as_often_as_they_should():
  image = np.asarray(
    Image.fromarray(RNG.integers(0, 255, (2, 2, 3), np.uint8)).resize((8, 8))
  )
  image = np.float32(image) / 127.5 - 1
  keys = jax.random.split(jax.random.key(0), 1000)
  change = jax.jit(
    jax.vmap(lambda key: views.change_colors(key, image, 0.0, 0.2))
  )
  found = np.asarray(change(keys))
  grey = (np.ptp(found, axis=-1) == 0).all((1, 2))
  assert grey.mean() == pytest.approx(0.2, abs=0.04)
  kept = abs(found - image).max((1, 2, 3)) < 1e-6
  assert kept.mean() == pytest.approx(0.2 * 0.8 * 0.8, abs=0.03)


def test_collapse_is_found_after_the_warm_up():
  metrics = {'train_information': 1e-4, 'train_teacher_entropy': 4.1}
  assert dino.find_collapse(5, metrics, first=10) == ''
  assert 'collapsed' in dino.find_collapse(10, metrics, first=10)
  for information in (0.5, float('nan')):  # NaN: the update was skipped
    metrics['train_information'] = information
    assert dino.find_collapse(10, metrics, first=10) == ''
