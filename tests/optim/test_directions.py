"""Optimizers by name, compared with those of optax and with their formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny_model
from vit_jax import base_config
from vit_jax import models
from vit_jax.optim import muon
from vit_jax.optim import optimizer
from vit_jax.optim import rules
from vit_jax.optim import weight_decay

PARAMS = tiny_model.like(
  {
    'dense': {'kernel': jnp.zeros((32, 40)), 'bias': jnp.zeros(40)},
    'small': {'kernel': jnp.zeros((3, 4))},
    'zero': {'kernel': jnp.zeros((3, 2))},
    'cls': jnp.zeros((1, 1, 8)),
  }
)
PARAMS['zero']['kernel'] *= 0
LR = 0.01


def kernels(params):
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def make(decay_factors=None, lr_factors=None, total_steps=10, **settings):
  config = base_config.get_config()
  config.update(
    dict(grad_norm_clip=0.0, momentum_dtype='float32', base_lr=LR, **settings)
  )
  decay = weight_decay.make(config, total_steps, decay_factors, lr_factors)
  return optimizer.make_optimizer(
    config, lambda step: LR / (1 + step), factors=lr_factors, decay=decay
  )


def steps(tx, num_steps=3, params=PARAMS):
  """Returns the parameters after steps with random gradients."""

  def step(carry, key):
    params, state = carry
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    grads = jax.tree.unflatten(
      treedef,
      [
        jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
      ],
    )
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(0), num_steps)
  start = params, tx.init(params)
  return jax.jit(lambda: jax.lax.scan(step, start, keys)[0][0])()


def assert_near(found, expected, rtol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7),
    found,
    expected,
  )


def test_adamw_is_that_of_optax_to_the_bit():
  expected = optax.adamw(
    lambda step: LR / (1 + step), weight_decay=0.1, mask=kernels
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    steps(make(optimizer='adamw', weight_decay=0.1)),
    steps(expected),
  )


@pytest.mark.parametrize(
  'name, expected',
  [
    ('lion', optax.lion(lambda i: LR / (1 + i), weight_decay=2, mask=kernels)),
    (
      'lamb',
      optax.chain(
        optax.scale_by_adam(eps=1e-6),
        optax.add_decayed_weights(2.0, kernels),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(lambda i: LR / (1 + i)),
      ),
    ),
  ],
)
def test_lion_and_lamb_equal_optax(name, expected):
  assert_near(steps(make(optimizer=name, weight_decay=2.0)), steps(expected))


def test_lars_equals_optax_at_a_constant_rate():
  config = base_config.get_config()
  config.update(dict(optimizer='lars', weight_decay=0.1, grad_norm_clip=0.0))
  config.momentum_dtype = 'float32'
  expected = optax.lars(0.1, 0.1, kernels, trust_ratio_mask=kernels)
  found = optimizer.make_optimizer(config, lambda step: 0.1)
  assert_near(steps(found), steps(expected))


def test_adafactor_equals_its_formulas():
  """Only [32, 40] is factored; big_vision's β2(t) is 1 − (t + 1)^−0.8."""
  found = steps(make(optimizer='adafactor', adafactor_b2_cap=0.5))
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
  leaves, treedef = jax.tree.flatten(params)
  seconds = [None] * len(leaves)
  momenta = [np.zeros_like(x) for x in leaves]
  for t, key in enumerate(jax.random.split(jax.random.key(0), 3)):
    keys = jax.random.split(key, len(leaves))
    b2 = min(0.5, 1 - (t + 1.0) ** -0.8)
    for i, x in enumerate(leaves):
      grad = np.asarray(jax.random.normal(keys[i], x.shape), np.float64)
      if x.shape == (32, 40):
        rows, columns = ((grad**2).mean(axis) for axis in (1, 0))
        if seconds[i] is not None:
          rows = b2 * seconds[i][0] + (1 - b2) * rows
          columns = b2 * seconds[i][1] + (1 - b2) * columns
        seconds[i] = rows, columns
        second = np.outer(rows, columns) / rows.mean()
      else:
        second = grad**2
        if t:
          second = b2 * seconds[i] + (1 - b2) * second
        seconds[i] = second
      momenta[i] = 0.9 * momenta[i] + 0.1 * grad / np.sqrt(second)
      leaves[i] = x - LR / (1 + t) * momenta[i]
  assert_near(found, jax.tree.unflatten(treedef, leaves), rtol=1e-4)


# --- weight decay ------------------------------------------------------------


def decay_alone(tx, num_steps=1):
  """Returns {path: change of the parameter / parameter} without gradients."""
  params, state = PARAMS, tx.init(PARAMS)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  for _ in range(num_steps):
    before = params
    updates, state = tx.update(zeros, state, params)
    params = optax.apply_updates(params, updates)
  return {
    rules.path_of(path): np.vdot(new - old, old) / (np.vdot(old, old) or 1)
    for (path, new), old in zip(
      jax.tree.leaves_with_path(params), jax.tree.leaves(before), strict=True
    )
  }


@pytest.mark.parametrize('name', ['adamw', 'lion', 'adafactor'])
@pytest.mark.parametrize(
  'scale, expected', [('lr', LR * 0.5), ('schedule', 0.5)]
)
def test_weight_decay_alone(name, scale, expected):
  """p ← p · (1 − lr · decay), or p · (1 − decay) at the largest rate."""
  found = decay_alone(
    make(optimizer=name, weight_decay=0.5, weight_decay_scale=scale)
  )
  np.testing.assert_allclose(found.pop('dense/kernel'), -expected, rtol=1e-4)
  np.testing.assert_allclose(found.pop('small/kernel'), -expected, rtol=1e-4)
  assert found['dense/bias'] == found['cls'] == 0


def test_factors_of_the_rate_scale_the_decay_in_one_convention_only():
  paths = rules.paths_of(PARAMS)
  lr_factors = dict.fromkeys(paths, 1.0) | {'dense/kernel': 0.25}
  decay_factors = dict.fromkeys(paths, 1.0) | {'cls': 0.0, 'dense/bias': 3.0}
  for scale, unit, with_factor in (('lr', LR, 0.25), ('schedule', 1, 1)):
    found = decay_alone(
      make(
        decay_factors,
        lr_factors,
        optimizer='adamw',
        weight_decay=0.1,
        weight_decay_scale=scale,
      )
    )
    expected = {
      'dense/kernel': with_factor,
      'small/kernel': 1,
      'dense/bias': 3,
      'cls': 0,
    }
    for path, factor in expected.items():
      np.testing.assert_allclose(
        found[path], -0.1 * unit * factor, rtol=1e-3, err_msg=path
      )


@pytest.mark.parametrize('name', ['lamb', 'lars'])
def test_a_decay_that_is_scaled_by_norms_has_one_convention(name):
  """A larger decay does not make a step longer."""
  weak, strong = (
    decay_alone(make(optimizer=name, weight_decay=x)) for x in (0.5, 50)
  )
  np.testing.assert_allclose(weak['dense/kernel'], strong['dense/kernel'], 1e-4)
  message = f"scale='schedule' .*optimizer={name}, .* Use .*_scale=lr"
  with pytest.raises(ValueError, match=message):
    make(optimizer=name, weight_decay=0.5, weight_decay_scale='schedule')


def test_the_weight_decay_of_dino_rises_along_a_cosine():
  tx = make(
    optimizer='adamw', weight_decay=0.04, weight_decay_end=0.4, total_steps=4
  )
  for step, decay in ((0, 0.04), (2, 0.22), (4, 0.4)):
    found = decay_alone(tx, num_steps=step + 1)['dense/kernel']
    np.testing.assert_allclose(found, -decay * LR / (1 + step), rtol=2e-3)


@pytest.mark.parametrize(
  'settings, expected',
  [
    (dict(weight_decay=1e-4), 'by the fraction 1e-07 .*scale=schedule'),
    (dict(weight_decay=0.1), ''),
    (dict(weight_decay=1e-4, weight_decay_scale='schedule'), ''),
    (dict(weight_decay=0.1, weight_decay_scale='schedule'), '0.1 per .*=lr'),
    (dict(weight_decay=1e-4, pretrained='model'), ''),
    (dict(weight_decay=1e-4, base_lr=0.1), ''),
    (dict(weight_decay=1e-4, optimizer='lamb'), ''),
  ],
)
def test_a_value_of_the_other_convention_gives_a_warning(settings, expected):
  """AugReg and its code have 0.1 and 1e-4, for the rate 1e-3."""
  config = base_config.get_config()
  config.update(dict(optimizer='adamw', base_lr=1e-3, pretrained='scratch'))
  config.update(settings)
  found = weight_decay.warning(config)
  assert re.search(expected, found) if expected else not found


# --- clipping and Muon -------------------------------------------------------


def test_arrays_are_clipped_by_their_own_norms():
  config = base_config.get_config()
  config.update(dict(momentum=0.0, grad_norm_clip=0.0, array_norm_clip=2.0))
  tx = optimizer.make_optimizer(config, lambda step: 1.0)
  grads = {'a': jnp.full(4, 3.0), 'b': jnp.full(4, 0.5), 'c': jnp.zeros(4)}
  updates, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_allclose(updates['a'], -1)
  np.testing.assert_array_equal(updates['b'], -0.5)
  np.testing.assert_array_equal(updates['c'], 0)


@pytest.fixture(name='vit', scope='module')
def fixture_vit():
  model = models.get_model(
    'testing', num_classes=3, hidden_size=12, num_heads=3, mlp_dim=20
  )
  shapes = tiny_model.shapes_of(model, (1, 16, 16, 3))['params']
  return tiny_model.like(shapes)


def test_muon_trains_the_kernels_of_blocks(vit):
  trained = {
    rules.path_of(path)
    for path, hidden in jax.tree.leaves_with_path(muon.is_hidden(vit))
    if hidden
  }
  names = {re.sub(r'.*encoderblock_\d+/|_\d+', '', path) for path in trained}
  attention = 'MultiHeadDotProductAttention'
  assert names == {
    *(
      f'{attention}/{name}/kernel' for name in ('query', 'key', 'value', 'out')
    ),
    'MlpBlock/Dense/kernel',
  }
  num_blocks = len({path.split('/')[1] for path in trained})
  assert len(trained) == 6 * num_blocks


def test_positions_stay_in_adam():
  """The MLP of relative positions has two kernels in each block."""
  model = models.get_model('testing', num_classes=3, positions='relative_mlp')
  shapes = tiny_model.shapes_of(model, (1, 16, 16, 3))['params']
  by_muon = {
    rules.path_of(path): hidden
    for path, hidden in jax.tree.leaves_with_path(muon.is_hidden(shapes))
    if 'relative_positions' in rules.path_of(path)
  }
  kernels_of_positions = [x for x in by_muon if x.endswith('/kernel')]
  assert len(kernels_of_positions) == 2 * len(model.block_names)
  assert not any(by_muon.values())


def as_matrices(tree):
  """Returns {path: matrix [inputs, outputs]} of the kernels of blocks."""
  found = {}
  for path, x in jax.tree.leaves_with_path(tree):
    name = rules.path_of(path)
    if '/encoderblock_' in name and name.endswith('/kernel'):
      num_inputs = 12 if 'Dense_1' not in name else 20
      found[name] = x.reshape(num_inputs, -1)
  return found


def test_muon_equals_optax_on_matrices_and_adam_on_the_rest(vit):
  tx, own = make(optimizer='muon'), optax.contrib.muon(LR, consistent_rms=0.2)
  adam = make(optimizer='adam')
  grads = tiny_model.like(vit, seed=1)
  matrices = as_matrices(grads)

  @jax.jit
  def first_updates():
    return (
      tx.update(grads, tx.init(vit), vit)[0],
      own.update(matrices, own.init(matrices), matrices)[0],
      adam.update(grads, adam.init(vit), vit)[0],
    )

  found, of_own, of_adam = first_updates()
  assert_near(as_matrices(found), of_own, rtol=1e-3)
  for (path, x), expected in zip(
    jax.tree.leaves_with_path(found), jax.tree.leaves(of_adam), strict=True
  ):
    name = rules.path_of(path)
    if name not in matrices:
      np.testing.assert_allclose(x, expected, 1e-5, err_msg=name)


def test_the_size_of_updates_of_muon():
  """arXiv 2502.16982, equation 4; and the code of Jordan et al."""
  params = {'encoderblock_0': {'kernel': jnp.ones((12, 48))}}
  for rms, expected in ((0.2, 0.2 * 48**0.5), (0.0, 2.0)):
    found, _ = muon.scale_by_shape(rms).update(params, optax.EmptyState())
    np.testing.assert_allclose(
      found['encoderblock_0']['kernel'], expected, rtol=1e-6
    )


def test_muon_needs_blocks():
  with pytest.raises(ValueError, match='config.optimizer=muon trains the ker'):
    make(optimizer='muon').init(PARAMS)
