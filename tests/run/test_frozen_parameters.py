"""Runs with frozen parameters, factors of the rate, and own optimizers."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from tests import digits_run
from vit_jax import base_config
from vit_jax import train
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.optim import optimizer
from vit_jax.optim import rules
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.run import given
from vit_jax.run import setup
from vit_jax.tasks import classification
from vit_jax.tasks import losses

FREEZE = 'below/.*'


class Layers(nn.Module):
  """Two dense layers. The first is called 'below', the last 'head'."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, images, *, train):
    x = images.reshape(len(images), -1)
    x = nn.tanh(nn.Dense(4, name='below')(x))
    return nn.Dense(self.num_classes, name='head')(x)


def batch_of(step):
  rng = np.random.default_rng(step)
  return {
    'image': rng.standard_normal((8, 2, 2, 3)).astype(np.float32),
    'label': rng.integers(0, 3, 8).astype(np.int32),
  }


def train_steps(
  freeze,
  accum_steps=1,
  given_=None,
  num_steps=3,
  ema=None,
  factors=None,
  **other,
):
  """Returns (first state, last state, metrics of the last step)."""
  config = base_config.get_config()
  config.update(other)
  task = dataclasses.replace(
    classification.of_model(Layers()), ema_decay=ema and (lambda step: ema)
  )
  mesh = sharding.make_mesh(jax.devices()[:1])
  batch = batch_of(0)
  paths = rules.paths_of(task.init(jax.random.key(0), batch))
  frozen = rules.find_frozen(paths, freeze)

  def schedule(step):
    return 0.1

  tx = optimizer.make_optimizer(config, schedule, given_, factors)
  init = train_state.make_init_fn(task, tx, batch, mesh, frozen)
  update = train_step.make_update_fn(
    task,
    tx,
    schedule,
    mesh,
    keys=numerics.run_keys(0),
    accum_steps=accum_steps,
    frozen_paths=frozen,
  )
  first, state = init(jax.random.key(0)), init(jax.random.key(0))
  for step in range(num_steps):
    batch = batch_of(step)
    if step == 1 and config.skip_nonfinite:
      batch['image'][0] = np.nan
    state, metrics = update(state, sharding.put_batch(batch, mesh), None)
  return first, state, metrics


@pytest.mark.parametrize(
  'settings',
  [
    dict(optimizer='sgd', momentum_dtype='bfloat16', accum_steps=2),
    dict(optimizer='adamw', weight_decay=0.1, skip_nonfinite=2, ema=0.9),
    dict(given_=optax.lion, skip_nonfinite=2, accum_steps=2, ema=0.3),
    dict(given_=optax.adamw(0.1, weight_decay=0.5)),
  ],
)
def test_frozen_parameters_stay_equal_and_have_no_optimizer_state(settings):
  first, state, metrics = train_steps(FREEZE, **settings)
  digits_run.assert_equal(state.params['below'], first.params['below'])
  for name in ('kernel', 'bias'):
    assert (state.params['head'][name] != first.params['head'][name]).any()
  assert not [p for p in rules.paths_of(state.opt_state) if 'below' in p]
  assert [p for p in rules.paths_of(state.opt_state) if 'head/kernel' in p]
  if settings.get('skip_nonfinite'):
    assert metrics['skipped_updates'] == 1
  if settings.get('ema'):
    digits_run.assert_equal(state.ema['below'], first.params['below'])
    assert (state.ema['head']['kernel'] != state.params['head']['kernel']).any()


def test_trained_parameters_are_updated_as_if_the_others_were_constants():
  """The gradient norm, and its clipping, count trained parameters only."""
  factors = {'head/kernel': 3.0, 'head/bias': 0.5}
  first, state, metrics = train_steps(
    FREEZE,
    num_steps=1,
    factors=factors,
    optimizer='sgd',
    grad_norm_clip=1e-2,
    momentum_dtype='float32',
  )
  batch = batch_of(0)

  def loss(head):
    params = {**first.params, 'head': head}
    logits = Layers().apply({'params': params}, batch['image'], train=True)
    return losses.softmax_cross_entropy(
      logits, jax.nn.one_hot(batch['label'], 3)
    ).mean()

  grads = jax.grad(loss)(first.params['head'])
  norm = float(optax.tree.norm(grads))
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
  for name, grad in grads.items():
    step = state.params['head'][name] - first.params['head'][name]
    np.testing.assert_allclose(
      step,
      -0.1 * factors[f'head/{name}'] * 1e-2 / norm * grad,
      rtol=1e-3,
      atol=1e-7,
    )


def test_an_optimizer_may_use_the_loss():
  """`reduce_on_plateau` needs the loss as the argument `value`."""
  chained = optax.chain(
    optax.sgd(1e-9), optax.contrib.reduce_on_plateau(0.5, 1, rtol=0.9)
  )
  _, state, _ = train_steps(FREEZE, given_=chained, num_steps=3)
  assert state.opt_state[1].scale < 1


# --- whole runs --------------------------------------------------------------


def make_layers(config, data):
  del config
  return classification.of_model(Layers(len(data.class_names)))


def make_config(**settings):
  return digits_run.make_config(
    **{**dict(total_steps=2, warmup_steps=1, eval_every=0), **settings}
  )


@pytest.mark.slow
def test_a_run_with_frozen_parameters_and_an_own_optimizer(tmp_path, capsys):
  config = make_config(
    freeze=FREEZE, lr_rules=(('head/bias', 0.5),), checkpoint_every=1
  )
  arguments = dict(task=make_layers, optimizer=optax.adamw(1e-3))

  # The second step is interrupted, so that the run resumes from the first.
  with pytest.raises(digits_run.Interrupted):
    train.train_and_evaluate(
      config, str(tmp_path), **arguments, hooks=[digits_run.interrupt_at(2)]
    )
  output = capsys.readouterr().err
  assert 'config.freeze freezes 2 array(s) that are randomly init' in output
  assert 'stay random, in below.' in output
  assert '% of them trained' in output
  assert 'frozen by config.freeze: 2 array(s), below\n' in output
  assert 'factors of the learning rate: 0.5 for 1 array(s) such as head/b' in (
    output
  )
  assert 'ScaleByAdamState. Not used: config.optimizer, ' in output
  other = dict(task=make_layers, optimizer=optax.sgd(0.1, momentum=0.9))
  objects = (tmp_path / 'given.json').read_bytes()
  (tmp_path / 'given.json').unlink()  # as in a run of an earlier version
  with pytest.raises(
    ValueError,
    match=(
      r'(?s)/1 has other arrays.*only in the checkpoint: opt_state/0/0/count, '
      r'opt_state/0/0/mu/head/bias.*\n.*missing in the checkpoint: '
      r'opt_state/0/0/trace/head/bias.*another optimizer or other frozen'
    ),
  ):
    train.train_and_evaluate(config, str(tmp_path), **other)
  (tmp_path / 'given.json').write_bytes(objects)
  with pytest.raises(ValueError, match="config.freeze='below/.*' in the folde"):
    train.train_and_evaluate(
      make_config(freeze='below/bias', lr_rules=config.lr_rules),
      str(tmp_path),
      **arguments,
    )
  state = train.train_and_evaluate(config, str(tmp_path), **arguments).state
  rows = digits_run.rows_of(tmp_path)
  assert 'lr' not in rows[-1] and 'grad_norm' in rows[-1]
  assert (tmp_path / 'progress.png').exists()
  mesh = setup.check(config)
  parts = setup.make_parts(
    config, mesh, setup.load_data(config, mesh), given.Given(**arguments)
  )
  first = parts.init_fn(parts.keys.init)
  digits_run.assert_equal(state.params['below'], first.params['below'])
  assert (state.params['head']['bias'] != first.params['head']['bias']).all()


def test_advice_for_a_loss_that_is_not_finite(tmp_path):
  with pytest.raises(
    ValueError,
    match=r'loss is inf at step 3 \(gradient norm .*Lower the learning rate of',
  ):
    train.train_and_evaluate(
      make_config(total_steps=4),
      str(tmp_path),
      task=make_layers,
      optimizer=optax.sgd(1e38),
    )


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'freeze': '('}, r"config.freeze: '\(' is not a regular expression"),
    ({'lr_rules': 'head/.*'}, "config.lr_rules='head/.*' must be"),
    ({'layer_decay': 1.5}, 'config.layer_decay=1.5 must be from 0 to 1'),
    ({'layer_decay': 0.0}, 'config.layer_decay=0.0 must be greater than 0'),
    (
      {'total_steps': 0, 'total_epochs': 1.0, 'optimizer': 'lyon'},
      "config.optimizer='lyon'",
    ),
  ],
)
def test_settings_are_checked_before_the_data(settings, message):
  with pytest.raises(ValueError, match=message):
    setup.check(digits_run.make_config(**settings))
