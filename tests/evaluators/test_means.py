import jax
import numpy as np
import pytest

from tests import reference
from vit_jax import models
from vit_jax.evaluators import means
from vit_jax.parallel import sharding
from vit_jax.run import setup
from vit_jax.tasks import classification


def batches(images, labels, size):
  """Yields batches of `size`. The last batch is padded and masked."""
  for start in range(0, len(images), size):
    image, label = images[start : start + size], labels[start : start + size]
    fill = size - len(image)
    yield {
      'image': np.pad(image, [(0, fill), (0, 0), (0, 0), (0, 0)]),
      'label': np.pad(label, [(0, fill), (0, 0)]),
      'mask': np.pad(np.ones(len(image), np.float32), (0, fill)),
    }


@pytest.mark.parametrize('num_devices, size', [(1, 8), (1, 64), (8, 16)])
def test_metrics_equal_numpy_over_all_examples(num_devices, size):
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (37, 32, 32, 3)).astype(np.float32)
  labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, 37)]
  model = models.get_model('testing', num_classes=10)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  params = reference.params_like(shapes['params'])
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  eval_fn = means.make_eval_fn(classification.of_model(model), mesh)

  numbers = means.evaluate(
    eval_fn,
    jax.device_put(params, sharding.replicated(mesh)),
    batches(images, labels, size),
    mesh,
    37,
    setup.fresh_context(),
  )

  logits = np.asarray(
    model.apply({'params': params}, images, train=False), np.float64
  )
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert numbers['count'] == 37
  assert numbers['accuracy'] == (logits.argmax(-1) == labels.argmax(-1)).mean()
  np.testing.assert_allclose(
    numbers['loss'], -(log_probs * labels).sum(-1).mean(), rtol=1e-6
  )


def test_padding_that_gives_nan_does_not_count():
  mesh = sharding.make_mesh(jax.devices()[:1])

  class Nan:
    """A model that returns NaN for padding rows."""

    def apply(self, variables, images, train, rngs):
      return images[:, 0, 0] / images[:, 0, 0]  # 0 / 0 for padding

  # A loss of another shape would spread the NaN or count rows twice.
  with pytest.raises(ValueError, match=r'the loss has the shape \[\]'):
    means.evaluate(
      means.make_eval_fn(
        classification.of_model(Nan(), lambda logits, labels: logits.sum()),
        mesh,
      ),
      {},
      batches(np.ones((3, 1, 1, 2)), np.eye(2)[[0, 0, 1]], 2),
      mesh,
      3,
      setup.fresh_context(),
    )

  eval_fn = means.make_eval_fn(classification.of_model(Nan()), mesh)
  images, labels = np.ones((3, 1, 1, 2), np.float32), np.eye(2)[[0, 0, 1]]
  numbers = means.evaluate(
    eval_fn, {}, batches(images, labels, 2), mesh, 3, setup.fresh_context()
  )
  np.testing.assert_allclose(numbers['loss'], np.log(2), rtol=1e-6)
  assert numbers['accuracy'] == 2 / 3


def test_missing_examples_are_an_error():
  with pytest.raises(ValueError, match='has 5 examples, .* lists 6'):
    means.evaluate(
      lambda params, batch, context: {'count': 5, 'accuracy': 1, 'loss': 1.0},
      {},
      [{'mask': np.ones(8, np.float32)}],
      sharding.make_mesh(),
      6,
      None,
    )


def test_sums_over_many_batches_are_exact():
  """In float32, 2**24 + 1 is 2**24."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  batches_ = [{'count': np.array([n])} for n in (2**24, 1, 1)]
  numbers = means.evaluate(
    lambda _, batch, context: {
      'accuracy': np.float32(batch['count'][0]),
      'loss': np.float32(2 * batch['count'][0]),
      'count': batch['count'][0],
    },
    {},
    batches_,
    mesh,
    2**24 + 2,
    None,
  )
  assert numbers == {'accuracy': 1, 'loss': 2, 'count': 2**24 + 2}


def test_nothing_to_evaluate_is_an_error():
  with pytest.raises(ValueError, match='no example'):
    means.evaluate(None, {}, [], None, 0, None)
