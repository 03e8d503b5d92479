"""A linear classifier on features: logistic regression with an L2 penalty.

It is what `config.task=linear_probe` trains. The loss of a strength λ is, with
the kernel W and no penalty of the bias,

  mean of the cross-entropy + λ/2 · |W|²

A part of the training images, which the head is not fitted to, selects λ. Then
the head is fitted to all training images. The test images select nothing.

Shapes:  M training images · N test images · D width · K classes
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.data import examples
from vit_jax.evaluators import means
from vit_jax.inference import feature_files
from vit_jax.optim import minimize


def logits(head: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
  """Returns the logits [B, K] of features [B, D], in full precision."""
  dot = functools.partial(jnp.dot, precision='highest')
  return dot(features, head['kernel']) + head['bias']


def best(found: Mapping[str, Any]) -> jax.Array:
  """Returns the index of the strength with the best accuracy.

  Among equal accuracies, the one with the lowest loss is the best.

  Args:
    found: `accuracy` and `loss` of each strength.
  """
  return jnp.lexsort((found['loss'], -found['accuracy']))[0]


@jax.jit
def _fit(features, labels, scale, l2, zeros):
  """Returns the head for features [M, D] that were divided by `scale`."""

  def loss(head):
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits(head, features), labels
    )
    kernel = head['kernel'] / scale[:, None]
    return losses.mean() + l2 / 2 * (kernel**2).sum()

  search = minimize.to_convergence()
  head, _ = search.update(None, search.init(zeros), zeros, value_fn=loss)
  return head


def fit(
  features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float
) -> dict[str, np.ndarray]:
  """Returns the head that minimizes the loss of all images.

  The search is for features with mean 0, divided by √(variance + λ). Then the
  loss is similarly curved in all directions, so it needs fewer iterations.

  Args:
    features: [M, D].
    labels: class numbers [M].
    num_classes: K.
    l2: λ.

  Returns:
    {'kernel': [D, K], 'bias': [K]}.
  """
  mean = features.mean(0, dtype=np.float64).astype(np.float32)
  variance = features.var(0, dtype=np.float64)
  scale = np.sqrt(variance + l2).astype(np.float32)
  zeros = {
    'kernel': np.zeros((features.shape[1], num_classes), np.float32),
    'bias': np.zeros(num_classes, np.float32),
  }
  head = jax.device_get(
    _fit((features - mean) / scale, labels, scale, np.float32(l2), zeros)
  )
  kernel = head['kernel'] / scale[:, None]
  return {'kernel': kernel, 'bias': head['bias'] - mean @ kernel}


def _test(head, rows):
  """Returns {'accuracy', 'loss'} of a head."""
  found = logits(head, rows['feature'])
  losses = optax.softmax_cross_entropy_with_integer_labels(found, rows['label'])
  right = found.argmax(-1) == rows['label']
  return {'accuracy': float(right.mean()), 'loss': float(losses.mean())}


def measure(
  train: feature_files.Arrays,
  test: feature_files.Arrays,
  num_classes: int,
  *,
  l2_strengths: Sequence[float],
  held_out: float,
) -> means.Evaluation:
  """Returns the `accuracy` of the best strength, and the strength `l2`.

  The table `linear_probe` has the accuracy and the loss of each strength on the
  held-out training images.

  Args:
    train: {'feature': [M, D], 'label': class numbers [M]}.
    test: the same with N images.
    num_classes: K.
    l2_strengths: values of λ.
    held_out: fraction of the training images that selects λ.
  """
  fitted, held = examples.split_indices(held_out, range(len(train['label'])))
  fitted, held = ({k: x[i] for k, x in train.items()} for i in (fitted, held))
  rows = []
  for l2 in l2_strengths:
    head = fit(fitted['feature'], fitted['label'], num_classes, l2)
    rows.append({'l2': l2, **_test(head, held)})
  names = 'accuracy', 'loss'
  index = int(best({name: np.array([x[name] for x in rows]) for name in names}))
  l2 = l2_strengths[index]
  head = fit(train['feature'], train['label'], num_classes, l2)
  return means.Evaluation(
    {'accuracy': _test(head, test)['accuracy'], 'l2': float(l2)},
    tables={'linear_probe': rows},
  )
