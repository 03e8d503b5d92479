"""Losses of classifiers: smoothing, sigmoid, head bias, soft targets."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.digits_run import make_config
from vit_jax import models
from vit_jax.checkpoint import metadata
from vit_jax.run import given
from vit_jax.run import setup
from vit_jax.tasks import classification
from vit_jax.tasks import losses
from vit_jax.tasks import task

LOGITS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
MIXED = np.float32([[1, 0, 0, 0], [0.3, 0, 0.7, 0], [0, 0.5, 0, 0.5]])


@pytest.mark.parametrize('loss', losses.LOSSES)
def test_losses_equal_their_formulas(loss):
  z, y = LOGITS.astype(np.float64), MIXED
  expected = {
    'softmax': (y * (np.log(np.exp(z).sum(-1, keepdims=True)) - z)).sum(-1),
    'sigmoid': (y * np.log1p(np.exp(-z)) + (1 - y) * np.log1p(np.exp(z))).sum(
      -1
    ),
  }
  found = losses.LOSSES[loss](LOGITS.astype(jnp.bfloat16), MIXED)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected[loss], rtol=1e-2)
  found = losses.LOSSES[loss](LOGITS, MIXED)
  np.testing.assert_allclose(found, expected[loss], rtol=1e-5)


def test_targets_of_training():
  assert losses.make_targets(make_config()) is None
  smoothed = losses.make_targets(make_config(label_smoothing=0.1))(MIXED)
  np.testing.assert_allclose(smoothed, optax.smooth_labels(MIXED, 0.1))
  config = make_config(hard_targets=True, loss='sigmoid')
  np.testing.assert_array_equal(losses.make_targets(config)(MIXED), MIXED > 0)


def test_only_the_training_loss_has_smoothed_targets():
  """The rows of soft labels give the same loss as the class numbers."""
  model = models.get_model(
    'testing', num_classes=4, hidden_size=8, mlp_dim=8, dropout_rate=0.0
  )
  images = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
  params = model.init(jax.random.key(0), images, train=False)['params']
  params['head']['kernel'] += LOGITS[:2].reshape(8, 1)
  params['head']['bias'] += LOGITS[2]
  classes = np.array([0, 3, 1])
  rows = np.eye(4, dtype=np.float32)[classes]
  loss = classification.make_loss(
    model,
    losses.sigmoid_cross_entropy,
    make_targets=losses.make_targets(make_config(label_smoothing=0.2)),
  )
  logits = model.apply({'params': params}, images, train=False)
  for train_mode, targets in ((True, 0.8 * rows + 0.05), (False, rows)):
    expected = losses.sigmoid_cross_entropy(logits, targets)
    for labels in (classes, rows):
      found, *_ = loss(
        params,
        {'image': images, 'label': labels},
        task.Context(key=jax.random.key(0), step=0, train=train_mode),
      )
      np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_first_sigmoid_loss_follows_from_the_head_bias():
  """AugReg, arXiv 2106.10270: bias −10 for the classes of ImageNet-21k."""
  logits = jnp.full((1, 21_843), -10.0)
  labels = jax.nn.one_hot(jnp.array([7]), 21_843)
  np.testing.assert_allclose(
    losses.sigmoid_cross_entropy(logits, labels), 10.99, atol=5e-3
  )


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(loss='hinge'), "config.loss='hinge' is not one of softmax, sigmoid"),
    (dict(label_smoothing=1.0), 'config.label_smoothing=1.0 .*below 1'),
    (dict(hard_targets=True), 'hard_targets=True needs config.loss=sigmoid'),
    (
      dict(hard_targets=True, loss='sigmoid', label_smoothing=0.1),
      'label_smoothing=0.1 cannot be used with config.hard_targets',
    ),
    (dict(task='multi_label', label_smoothing=0.1), 'config.task=multi_label'),
    (dict(task='regression', loss='sigmoid'), 'config.task=regression'),
    (dict(head_bias=-2.0), 'head_bias=-2.0 does not change a softmax'),
    (dict(task='regression', head_bias=-2.0), 'config.task=regression'),
    (
      dict(
        task='multi_label',
        head_bias=-2.0,
        pretrained='model',
        pretrained_head='keep',
      ),
      'head_bias=-2.0 is the initial bias of a new head',
    ),
  ],
)
def test_wrong_settings_are_rejected(settings, message):
  with pytest.raises(ValueError, match=message):
    setup.check(make_config(**settings))


def test_a_loss_of_the_caller_has_no_smoothed_targets():
  own = given.Given(loss_fn=losses.softmax_cross_entropy)
  with pytest.raises(ValueError, match='label_smoothing=0.1 .* loss_fn'):
    setup.check(make_config(label_smoothing=0.1), own)


def test_a_classifier_starts_with_its_head_bias_and_keeps_its_loss():
  config = make_config(loss='sigmoid', head_bias=-2.0)
  config.model.update(dict(hidden_size=8, mlp_dim=8))
  data = types.SimpleNamespace(
    class_names=tuple('abcdefghij'),
    image_size=(8, 8),
    sources={'train': types.SimpleNamespace(several_classes=False)},
  )
  made = classification.make(config, data)
  batch = {'image': jnp.ones((1, 8, 8, 3)), 'label': jnp.array([7])}
  params = made.init(jax.random.key(0), batch)
  deployed = metadata.Description(loss=made.deployed.loss)
  again = classification.of_model(made.model, deployed=deployed)
  context = task.Context(key=jax.random.key(0), step=0)
  # K·softplus(b) − b, for a kernel of zeros and K = 10.
  expected = 10 * np.log1p(np.exp(-2.0)) + 2.0
  for loss in (made.loss, again.loss):
    np.testing.assert_allclose(loss(params, batch, context)[0], expected, 1e-6)
