"""Fingerprints of Python objects: equal for equal objects, else different."""

import functools
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import ROOT
from vit_jax.run import fingerprints

SCALE = 0.1


def scaled(x):
  return SCALE * x


def loss(logits, labels):
  """Calls another function of this module."""
  return scaled(logits - labels)


def change_of(before, now):
  return fingerprints.difference(
    fingerprints.describe(before), fingerprints.describe(now)
  )


def capturing(value):
  return lambda logits, labels: value


class Mlp(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.width)(x)


class Weighted:
  def __init__(self, weight):
    self.weight = weight

  def __call__(self, logits, labels):
    return self.weight * logits

  def loss(self, logits, labels):
    return self.weight * labels


def make_optimizer(rate=1e-4, clip=1.0):
  return optax.chain(
    optax.clip_by_global_norm(clip),
    optax.adamw(optax.cosine_decay_schedule(rate, 100)),
  )


@pytest.mark.parametrize(
  'make',
  [
    lambda: loss,
    lambda: capturing(np.arange(3)),
    lambda: capturing({'a': [1, (2.0, None)], 'b': {'c', 'd', 'e'}}),
    lambda: capturing(Mlp(3)),
    lambda: functools.partial(loss, labels=jnp.ones(2)),
    lambda: Weighted(0.5),
    lambda: Weighted(0.5).loss,
    lambda: jax.jit(capturing(1)),
    make_optimizer,
  ],
)
def test_equal_objects_have_equal_fingerprints(make):
  assert change_of(make(), make()) == ''


@pytest.mark.parametrize(
  'before, now, change',
  [
    (capturing(1), capturing(2), 'value'),
    (capturing(np.zeros(2)), capturing(np.ones(2)), 'value'),
    (capturing([1, 2]), capturing([1, 3]), 'value.1'),
    (capturing(Mlp(3)), capturing(Mlp(4)), 'value.width'),
    (lambda x: 3.0 * x, lambda x: -3.0 * x, 'its code'),
    (lambda x, y=1: x, lambda x, y=2: x, 'defaults'),
    (functools.partial(loss, labels=1), functools.partial(loss, labels=2), ''),
    (Weighted(1), Weighted(2), 'weight'),
    (Weighted(1).loss, Weighted(2).loss, 'self.weight'),
    (jax.jit(capturing(1)), jax.jit(capturing(2)), 'value'),
    (make_optimizer(), make_optimizer(rate=2e-4), 'GradientTransformation'),
    (make_optimizer(), make_optimizer(clip=2.0), 'max_norm'),
    (optax.sgd(0.1), optax.adam(0.1), 'GradientTransformation'),
    (optax.lion, optax.adam, 'lion in the folder, optax'),
    (jnp.mean, jnp.sum, 'mean in the folder, jax.numpy.sum now'),
  ],
)
def test_a_change_is_named(before, now, change):
  found = change_of(before, now)
  assert found and change in found


def test_constants_and_functions_of_the_own_module_count(monkeypatch):
  before = fingerprints.describe(loss)
  monkeypatch.setattr(sys.modules[__name__], 'SCALE', 0.2)
  changed = fingerprints.difference(before, fingerprints.describe(loss))
  assert 'scaled.SCALE' in changed
  monkeypatch.undo()
  monkeypatch.setattr(sys.modules[__name__], 'scaled', lambda x: x)
  changed = fingerprints.difference(before, fingerprints.describe(loss))
  assert 'scaled' in changed


SCRIPT = """
  from vit_jax.run import fingerprints
  SIZES = {'a', 'b', 'c', 'd'}
  %s
  def metric(state):
    return {'x': 1.0 if state.step in {'p', 'q', 'r', 's'} else len(SIZES)}
  print(fingerprints.describe(metric))
"""


def test_comments_and_other_processes_do_not_matter():
  found = {
    subprocess.run(
      [sys.executable, '-c', textwrap.dedent(SCRIPT % comment)],
      env={'PYTHONHASHSEED': seed, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed, comment in [('1', ''), ('2', '# The most frequent sizes.\n\n')]
  }
  assert len(found) == 1 and '__main__.metric' in found.pop()


def test_a_text_of_the_user_replaces_the_fingerprint():
  def other(logits, labels):
    return -logits

  def given(function, text):
    function.fingerprint = text
    return function

  loss_1, loss_2 = capturing(1), capturing(2)
  assert change_of(given(loss_1, 'v1'), given(loss_2, 'v1')) == ''
  assert "'v1' in the folder, 'v2' now" in change_of(loss_1, given(other, 'v2'))
  assert change_of(loss_1, other)


def test_another_version_of_python_compares_names_only():
  before = fingerprints.describe(capturing(1))
  before['python'] = '3.0'
  now = fingerprints.describe(capturing(2))
  assert fingerprints.difference(before, now) == ''
  assert fingerprints.difference(before, fingerprints.describe(loss))


def test_an_object_that_is_missing_differs():
  now = fingerprints.describe(loss)
  assert fingerprints.difference(None, None) == ''
  assert 'not given in the folder' in fingerprints.difference(None, now)
  assert 'not given now' in fingerprints.difference(now, None)
