import jax
import numpy as np
import pytest

from tests import reference
from vit_jax import evaluate
from vit_jax import models
from vit_jax import sharding
from vit_jax import train_step


def batches(images, labels, size):
  """Batches of `size`; the last one is padded and masked."""
  for start in range(0, len(images), size):
    image, label = images[start:start + size], labels[start:start + size]
    fill = size - len(image)
    yield {'image': np.pad(image, [(0, fill), (0, 0), (0, 0), (0, 0)]),
           'label': np.pad(label, [(0, fill), (0, 0)]),
           'mask': np.pad(np.ones(len(image), np.float32), (0, fill))}


@pytest.mark.parametrize('num_devices, size', [(1, 8), (1, 64), (8, 16)])
def test_numbers_are_those_of_numpy_over_every_example(num_devices, size):
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (37, 32, 32, 3)).astype(np.float32)
  labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, 37)]
  model = models.get_model('testing', num_classes=10)
  shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), images, train=False))
  params = reference.params_like(shapes['params'])
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  eval_fn = evaluate.make_eval_fn(
      model, mesh, train_step.softmax_cross_entropy)

  numbers = evaluate.evaluate(
      eval_fn, jax.device_put(params, sharding.replicated(mesh)),
      batches(images, labels, size), mesh)

  logits = np.asarray(model.apply({'params': params}, images, train=False),
                      np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert numbers['count'] == 37
  assert numbers['accuracy'] == (logits.argmax(-1) == labels.argmax(-1)).mean()
  np.testing.assert_allclose(
      numbers['loss'], -(log_probs * labels).sum(-1).mean(), rtol=1e-6)


def test_padding_that_gives_nan_does_not_count():
  mesh = sharding.make_mesh(jax.devices()[:1])

  class Nan:
    """Answers NaN for the padded row."""

    def apply(self, variables, images, train):
      return images[:, 0, 0] / images[:, 0, 0]  # 0 / 0 where padded

  eval_fn = evaluate.make_eval_fn(Nan(), mesh, train_step.softmax_cross_entropy)
  images, labels = np.ones((3, 1, 1, 2), np.float32), np.eye(2)[[0, 0, 1]]
  numbers = evaluate.evaluate(eval_fn, {}, batches(images, labels, 2), mesh)
  np.testing.assert_allclose(numbers['loss'], np.log(2), rtol=1e-6)
  assert numbers['accuracy'] == 2 / 3


def test_nothing_to_evaluate_is_an_error():
  with pytest.raises(ValueError, match='no example'):
    evaluate.evaluate(None, {}, [], None)
