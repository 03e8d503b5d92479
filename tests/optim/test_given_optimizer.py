"""Optimizers that the caller gives: their checks, and steps with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import base_config
from vit_jax.optim import given_optimizer
from vit_jax.optim import optimizer

PARAMS = {
  'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
  'frozen': None,
}
SHAPES = jax.eval_shape(lambda: PARAMS)


def make(given, factors=None, **settings):
  config = base_config.get_config()
  config.update(settings)
  return optimizer.make_optimizer(
    config, lambda step: 0.1 * (step + 1), given, factors
  )


class Foreign:
  def __init__(self, params=()):
    self.params = params

  def step(self):
    pass


@pytest.mark.parametrize(
  'given, message',
  [
    ('adamw', "optimizer='adamw' is not an optimizer of optax. Use a grad"),
    (Foreign(), 'an object of .*Foreign is not an optimizer of optax'),
    (Foreign, 'the class .*Foreign is not an optimizer of optax'),
    ((lambda p: p, lambda g, s: g), 'object of builtins.tuple is not an opt'),
    (lambda: optax.sgd(1.0), 'must accept the learning-rate schedule'),
    (lambda schedule: None, 'lambda> returns None, which is not a gradient'),
    (lambda schedule: Foreign(), 'returns an object of .*Foreign, which is'),
  ],
)
def test_what_is_no_optimizer_is_refused_by_name(given, message):
  with pytest.raises(ValueError, match=message):
    make(given)


@pytest.mark.parametrize(
  'given',
  [
    *(optax.sgd(0.1, momentum=0.9), optax.lion, optax.contrib.muon),
    functools.partial(optax.adamw, b2=0.95),
    optax.chain(optax.clip_by_global_norm(1.0), optax.adafactor(1e-3)),
    optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
    optax.masked(optax.adam(1e-3), {'head': True, 'frozen': False}),
    optax.partition(
      {'a': optax.adam(1e-3), 'b': optax.set_to_zero()},
      lambda params: jax.tree.map(lambda x: 'ab'[x.ndim > 1], params),
    ),
    optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()),
    optax.inject_hyperparams(optax.adam)(1e-3),
    optax.add_noise(0.1, 0.5, key=0),
    optax.lbfgs(),
  ],
)
@pytest.mark.parametrize('skips', [0, 2])
def test_optimizers_of_optax_can_be_used(given, skips):
  tx = make(given, {'head/kernel': 2.0, 'head/bias': 1}, skip_nonfinite=skips)
  given_optimizer.check(tx, SHAPES)


class Text:
  pass


def with_state(init, update=lambda g, s, p=None: (g, s)):
  return optax.GradientTransformation(lambda params: init, update)


@pytest.mark.parametrize(
  'tx, message',
  [
    (with_state({'a': 'text'}), r"cannot be saved.*state\['a'\] is 'text'"),
    (with_state((Text(),)), r'cannot be saved.*state\[0\] is an object of .*T'),
    (with_state((len,)), r'cannot be saved.*state\[0\] is the function len'),
    (with_state(np.array(['a'], object)), 'cannot be saved.*state is'),
    (with_state(jnp.zeros((0, 2))), r'cannot be saved.*state has.*\[0, 2\]'),
    (
      optax.GradientTransformationExtraArgs(
        lambda params: (), lambda g, s, p=None, *, curvature, **_: (g, s)
      ),
      "update.*fails with TypeError.*'curvature'",
    ),
    (
      optax.lookahead(optax.sgd(0.1), 2, 0.5),
      'update.* fails with AttributeError',
    ),
    (
      optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
      'schedule_free is not supported',
    ),
    (
      with_state(jnp.zeros(2), lambda g, s, p=None: (g, s.astype(jnp.int8))),
      r'update changes state from float32\[2\] to int8\[2\]',
    ),
    (
      with_state(jnp.zeros(2), lambda g, s, p=None: (g, (s,))),
      'returns a state of another structure',
    ),
    (
      with_state((), lambda g, s, p=None: (g['head'], s)),
      'updates of another structure',
    ),
  ],
)
def test_optimizers_that_a_run_cannot_use_or_save(tx, message):
  with pytest.raises(ValueError, match=message):
    given_optimizer.check(tx, SHAPES)


def steps(tx, grads, schedule):
  """Returns the rates of updates with these gradients, and the last state."""
  state, rates = tx.init(PARAMS), []
  for step, grad in enumerate(grads):
    filled = jax.tree.map(
      functools.partial(jnp.full_like, fill_value=grad), PARAMS
    )
    before = state
    updates, state = tx.update(filled, state, PARAMS)
    found = optimizer.applied_rate(schedule, step, before, state)
    rates.append((found.get('lr'), float(-updates['head']['bias'][0])))
  return rates, state


def test_the_logged_rate_is_the_applied_rate():
  def schedule(step):
    return 0.1 * (step + 1)

  rates, _ = steps(make(optax.sgd), (1, 1, 1), schedule)
  np.testing.assert_allclose([0.1, 0.2, 0.3], rates_of(rates), rtol=1e-6)
  # The count of a given optimizer does not include skipped updates.
  nan = float('nan')
  rates, state = steps(make(optax.sgd, skip_nonfinite=2), (1, nan, 1), schedule)
  np.testing.assert_allclose(rates[0], 0.1)
  np.testing.assert_allclose(rates[2], 0.2)
  assert optimizer.count_skipped(state)['skipped_updates'] == 1
  assert optimizer.was_applied(state)
  rates, _ = steps(make(optax.sgd(0.7)), (1, 1), None)
  assert rates[0][0] is None
  injected = optax.inject_hyperparams(optax.sgd)(lambda step: 0.3 / (step + 1))
  rates, _ = steps(make(injected, skip_nonfinite=1), (1, 1), None)
  np.testing.assert_allclose([0.3, 0.15], rates_of(rates), rtol=1e-6)


def rates_of(rates):
  """Returns the applied rates, after a comparison with the logged ones."""
  np.testing.assert_allclose(*zip(*rates, strict=True), rtol=1e-6)
  return [applied for _, applied in rates]


def test_skipping_is_found_within_wrappers():
  inner = optax.apply_if_finite(optax.sgd(0.1), 3)
  tx = optax.chain(
    optax.identity(), optax.masked(inner, {'head': True, 'frozen': False})
  )
  _, state = steps(tx, (float('nan'),), None)
  assert optimizer.count_skipped(state)['skipped_in_a_row'] == 1
  assert not optimizer.was_applied(state)
  assert optimizer.was_applied(optax.sgd(0.1).init(PARAMS)) is None


def test_a_line_names_the_optimizer_and_the_settings_it_replaces():
  state = optax.adamw(1e-3).init(PARAMS)
  line = given_optimizer.describe(optax.adamw(1e-3), state)
  assert 'a gradient transformation, given as an argument' in line
  assert 'ScaleByAdamState. Not used' in line
  for name in ('optimizer', 'weight_decay', 'grad_norm_clip', 'base_lr'):
    assert f'config.{name}' in line
  line = given_optimizer.describe(optax.lion, state)
  assert 'function lion' in line and 'grad_norm_clip' in line
  assert 'base_lr' not in line and 'warmup' not in line


def test_advice_names_only_what_has_an_effect():
  assert 'config.grad_norm_clip' in given_optimizer.advice(None)
  of_function = given_optimizer.advice(optax.lion)
  assert 'config.base_lr' in of_function and 'grad_norm' not in of_function
  assert 'config.' not in given_optimizer.advice(optax.sgd(0.1))
