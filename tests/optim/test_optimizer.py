import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import reference
from vit_jax import base_config
from vit_jax.optim import optimizer
from vit_jax.optim import schedules


def schedule(**settings):
  return schedules.make_schedule(
    **{
      'base_lr': 0.03,
      'decay_type': 'cosine',
      'warmup_steps': 5,
      'total_steps': 100,
      'linear_end': 1e-5,
      **settings,
    }
  )


def test_rates_equal_the_reference():
  rows = reference.facts()['lr_schedule']
  assert len(rows) > 150
  for decay_type, warmup, total, base, step, rate in rows:
    made = schedule(
      decay_type=decay_type,
      warmup_steps=warmup,
      total_steps=total,
      base_lr=base,
    )
    assert abs(float(made(step)) - rate) < 2e-8, (decay_type, warmup, step)


def test_a_base_rate_below_the_end_does_not_rise():
  made = schedule(decay_type='linear', base_lr=1e-6, warmup_steps=0)
  rates = {float(made(step)) for step in (0, 50, 100)}
  assert rates == {float(np.float32(1e-6))}


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'warmup_steps': 100}, 'config.warmup_steps=100 .*total_steps=100'),
    ({'warmup_steps': 500}, 'config.warmup_steps=500 .*total_steps=100'),
    ({'decay_type': 'steps'}, "config.decay_type='steps' .* cosine, linear"),
    (
      {'decay_type': 'step'},
      r'config.drop_steps=\(\) must be a tuple of steps',
    ),
    (
      {'drop_steps': (50,)},
      r'drop_steps=\(50,\) is only used .*decay_type=step',
    ),
    (
      {'decay_type': 'step', 'drop_steps': (50, 50)},
      r'config.drop_steps=\(50, 50\) must rise',
    ),
    (
      {'decay_type': 'step', 'drop_steps': (50, 100)},
      r'drop_steps=\(50, 100\) .* below total_steps=100',
    ),
    (
      {'decay_type': 'linear', 'cosine_end': 1e-5},
      'cosine_end=1e-05 is only used with config.decay_type=cosine',
    ),
    ({'cosine_end': 0.1}, 'cosine_end=0.1 must be at most config.base_lr=0.03'),
    ({'warmup_steps': 0, 'warmup_start': 1e-6}, 'but config.warmup_steps=0'),
  ],
)
def test_invalid_schedules(settings, message):
  with pytest.raises(ValueError, match=message):
    schedule(**settings)


def test_drops_are_those_of_big_transfer():
  """BiT-HyperRule: 500 steps, warm-up 100; step 200 still has the base rate."""
  made = schedule(
    base_lr=0.003,
    decay_type='step',
    warmup_steps=100,
    total_steps=500,
    drop_steps=(200, 300, 400),
  )
  for step, rate in (
    *((0, 0), (50, 0.0015), (100, 0.003), (200, 0.003), (201, 0.0003)),
    *((300, 0.0003), (301, 3e-5), (400, 3e-5), (401, 3e-6), (499, 3e-6)),
  ):
    np.testing.assert_allclose(made(step), rate, rtol=1e-6, err_msg=step)


def test_rates_at_both_ends_of_a_cosine_are_those_of_deit():
  made = schedule(
    base_lr=1e-3,
    warmup_steps=5,
    warmup_start=1e-6,
    total_steps=25,
    cosine_end=1e-5,
  )
  for step, rate in (
    (0, 1e-6),
    (2, 1e-6 + 0.4 * (1e-3 - 1e-6)),
    (5, 1e-3),
    (15, (1e-3 + 1e-5) / 2),
    (25, 1e-5),
  ):
    np.testing.assert_allclose(made(step), rate, rtol=1e-5)


def make(**settings):
  config = base_config.get_config()
  config.update(settings)
  return optimizer.make_optimizer(config, lambda step: 0.1)


PARAMS = {
  'dense': {'kernel': jnp.full((2, 2), 2.0), 'bias': jnp.full(2, 2.0)},
  'norm': {'scale': jnp.full(2, 2.0)},
  'cls': jnp.full((1, 1, 2), 2.0),
  'posembed_input': {'pos_embedding': jnp.full((1, 3, 2), 2.0)},
}


def test_weight_decay_is_decoupled_and_only_for_kernels():
  tx = make(optimizer='adamw', weight_decay=0.5)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = jax.jit(tx.update)(zeros, jax.jit(tx.init)(PARAMS), PARAMS)
  kernel = updates['dense'].pop('kernel')
  np.testing.assert_allclose(kernel, -0.1 * 0.5 * 2.0, rtol=1e-6)
  assert not any(x.any() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_adam_equals_its_paper(name):
  """The reference is algorithm 1 of arXiv 1412.6980 in NumPy."""
  tx = make(
    optimizer=name,
    grad_norm_clip=0.0,
    momentum_dtype='float32',
    adam_b1=0.8,
    adam_b2=0.9,
  )
  params = {'kernel': jnp.array([[1.0, -2.0]])}
  state, theta = tx.init(params), np.array(params['kernel'], np.float64)
  m = v = np.zeros_like(theta)
  for t in range(1, 4):
    grad = np.array([[0.3, -0.1 * t]])
    updates, state = jax.jit(tx.update)(
      {'kernel': jnp.asarray(grad)}, state, params
    )
    params = optax.apply_updates(params, updates)
    m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
    theta -= 0.1 * m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
    np.testing.assert_allclose(params['kernel'], theta, rtol=1e-5)


def test_momentum_is_stored_in_the_requested_dtype():
  for dtype in ('float32', 'bfloat16'):
    for name in ('sgd', 'adam'):
      state = make(optimizer=name, momentum_dtype=dtype).init(PARAMS)
      dtypes = [str(x.dtype) for x in jax.tree.leaves(state) if x.ndim > 1]
      assert set(dtypes) - {'float32'} == {dtype} - {'float32'}


@pytest.mark.parametrize(
  'settings, decay',
  [
    ({'optimizer': 'sgd', 'momentum': 0.9}, 0.9),
    ({'optimizer': 'sgd', 'momentum': 0.99, 'momentum_dtype': 'float32'}, 0.99),
    ({'optimizer': 'sgd', 'momentum': 0.9, 'adam_b1': 0.99}, 0.9),
  ],
)
def test_allowed_momentum_sums_gradients(settings, decay):
  """With a constant gradient, updates converge to the sum of the series."""
  tx = make(grad_norm_clip=0.0, **settings)
  grads = {'kernel': jnp.ones(1)}

  def step(state, _):
    updates, state = tx.update(grads, state, grads)
    return state, updates['kernel'][0]

  _, updates = jax.lax.scan(step, tx.init(grads), length=1500)
  np.testing.assert_allclose(updates[-1], -0.1 / (1 - decay), rtol=0.05)


@pytest.mark.parametrize(
  'name, setting',
  [
    ('sgd', 'momentum'),
    ('adam', 'adam_b1'),
    ('adamw', 'adam_b1'),
    ('muon', 'adam_b1'),
    ('muon', 'muon_momentum'),
  ],
)
def test_momentum_that_is_inexact_in_bfloat16_is_rejected(name, setting):
  others = dict(optimizer=name, muon_momentum=0.9)
  for decay in (0.901, 0.99):
    with pytest.raises(
      ValueError,
      match=(f'config.{setting}={decay} .*config.momentum_dtype=float32'),
    ):
      make(**{**others, setting: decay})
    make(momentum_dtype='float32', **{**others, setting: decay})
  make(**{**others, setting: 0.9})


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_gradients_are_clipped_by_their_global_norm(name):
  """The second update shows that clipping comes before the momentum."""

  def scaled(factor):
    return jax.tree.map(lambda x: factor * x, PARAMS)

  settings = {'optimizer': name, 'momentum_dtype': 'float32'}
  clipped, free = (make(**settings, grad_norm_clip=clip) for clip in (1.0, 0.0))
  state, free_state = clipped.init(PARAMS), free.init(PARAMS)
  unit = 1 / optax.tree.norm(PARAMS)
  for factor, expected_factor in ((10, unit), (-30, -unit), (unit / 2,) * 2):
    updates, state = clipped.update(scaled(factor), state, PARAMS)
    expected, free_state = free.update(
      scaled(expected_factor), free_state, PARAMS
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
      updates,
      expected,
    )


def test_invalid_optimizers():
  with pytest.raises(ValueError, match="config.optimizer='lyon' .* sgd, adam"):
    make(optimizer='lyon')
  for name, value in (
    ('weight_decay', 0.1),
    ('weight_decay_end', 0.1),
    ('decay_rules', 'cls:1'),
    ('weight_decay_scale', 'schedule'),
  ):
    with pytest.raises(ValueError, match=f'config.{name}=.* config.*adamw or'):
      make(optimizer='sgd', **{name: value})
  with pytest.raises(ValueError, match="scale='rate' is not one of lr, sch"):
    make(optimizer='adamw', weight_decay_scale='rate')
  with pytest.raises(ValueError, match='decay_rules=.* of config.weight_decay'):
    make(optimizer='adamw', decay_rules='cls:1')


def test_the_rate_of_a_step_does_not_depend_on_skipped_updates():
  config = base_config.get_config()
  config.update(dict(momentum=0.0, grad_norm_clip=0.0, skip_nonfinite=2))
  tx = optimizer.make_optimizer(config, lambda step: step + 1.0)
  params = {'kernel': jnp.zeros(2)}
  state, updates = tx.init(params), None
  for gradient in (jnp.nan, jnp.nan, 1.0):
    updates, state = tx.update({'kernel': jnp.full(2, gradient)}, state, params)
  np.testing.assert_allclose(updates['kernel'], -3)
  assert optimizer.count_skipped(state)['skipped_updates'] == 2


def test_schedules_without_an_end():
  settings = dict(base_lr=0.4, warmup_steps=10, total_steps=100, linear_end=0.0)
  constant = schedules.make_schedule(decay_type='constant', **settings)
  rsqrt = schedules.make_schedule(
    decay_type='rsqrt', rsqrt_timescale=30, **settings
  )
  for step in (0, 5, 10, 40, 99):
    rise = min(1, step / 10)
    np.testing.assert_allclose(constant(step), 0.4 * rise, rtol=1e-6)
    fall = (1 + max(0, step - 10) / 30) ** -0.5
    np.testing.assert_allclose(rsqrt(step), 0.4 * rise * fall, rtol=1e-6)
  cooled = schedules.make_schedule(
    decay_type='constant', cooldown_steps=20, **settings
  )
  for step, left in ((79, 1), (80, 1), (90, 0.5), (99, 0.05), (100, 0)):
    np.testing.assert_allclose(cooled(step), 0.4 * left, atol=1e-7)
  with pytest.raises(
    ValueError, match="cooldown_steps=5 .*decay_type='cosine'"
  ):
    schedules.make_schedule(decay_type='cosine', cooldown_steps=5, **settings)
  with pytest.raises(ValueError, match='steps=91 .* config.cooldown_steps=90'):
    schedules.make_schedule(decay_type='rsqrt', cooldown_steps=91, **settings)
