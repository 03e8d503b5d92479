"""With default settings, a step is the plain one that is written here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.digits_run import make_config
from vit_jax import data as vit_data
from vit_jax import models
from vit_jax.parallel import sharding
from vit_jax.run import setup

NUM_STEPS, ACCUM_STEPS = 4, 2
MAX_NORM = 0.5


def plain_optimizer(config):
  """Returns AdamW with warm-up, a cosine, and clipping."""

  def kernels(params):
    return jax.tree.map_with_path(
      lambda path, _: path[-1].key == 'kernel', params
    )

  schedule = optax.join_schedules(
    [
      optax.linear_schedule(0.0, config.base_lr, config.warmup_steps),
      optax.cosine_decay_schedule(
        config.base_lr, config.total_steps - config.warmup_steps
      ),
    ],
    [config.warmup_steps],
  )
  return optax.chain(
    optax.chain(
      optax.clip_by_global_norm(MAX_NORM),
      optax.chain(
        optax.scale_by_adam(0.9, 0.999, mu_dtype='bfloat16'),
        optax.add_decayed_weights(0.1, kernels),
      ),
    ),
    optax.scale_by_learning_rate(schedule),
  )


def plain_step(model, tx, key):
  """Returns (step, params, opt_state, batch) -> (…, loss, gradient norm).

  It uses nothing of `train_step.py` and of the tasks.

  Args:
    model: a VisionTransformer.
    tx: Optax gradient transformation.
    key: key of dropout.
  """

  def loss_of(params, images, labels, key):
    logits = model.apply(
      {'params': params}, images, train=True, rngs={'dropout': key}
    )
    labels = jax.nn.one_hot(labels, model.num_classes)
    return optax.softmax_cross_entropy(logits, labels).mean()

  @functools.partial(jax.jit, donate_argnums=(1, 2))
  def apply(step, params, opt_state, batch):
    def add(total, i):
      of_micro_batch = jax.value_and_grad(loss_of)(
        params,
        batch['image'].reshape(-1, ACCUM_STEPS, 8, 8, 3)[:, i],
        batch['label'].reshape(-1, ACCUM_STEPS)[:, i],
        jax.random.fold_in(jax.random.fold_in(key, step), i),
      )
      return jax.tree.map(jnp.add, total, of_micro_batch), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    total, _ = jax.lax.scan(add, zeros, jnp.arange(ACCUM_STEPS))
    loss, grads = jax.tree.map(lambda x: x / ACCUM_STEPS, total)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss, optax.tree.norm(grads)

  return apply


def test_a_step_with_default_settings_is_the_plain_one_to_the_bit():
  config = make_config(
    optimizer='adamw',
    weight_decay=0.1,
    accum_steps=ACCUM_STEPS,
    grad_norm_clip=MAX_NORM,
  )
  config.model.num_layers = 1
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
  given = vit_data.from_arrays(images, np.arange(64) % 10)
  data = setup.get_datasets(config, given=given)
  mesh = sharding.make_mesh(jax.devices()[:1])
  parts = setup.make_parts(config, mesh, data)
  model = models.get_model(
    'testing', num_classes=10, patch_size=4, num_layers=1
  )
  assert model.dropout_rate  # The random keys have an effect.
  tx = plain_optimizer(config)
  # The first half of the key of a run is for the initial parameters.
  step = plain_step(model, tx, jax.random.split(jax.random.key(0))[1])

  state = parts.init_fn(jax.random.key(1))
  params = jax.tree.map(jnp.copy, state.params)
  opt_state = tx.init(params)
  update = parts.make_update(ACCUM_STEPS)
  for number in range(NUM_STEPS):
    batch = {
      'image': rng.uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32),
      'label': rng.integers(0, 10, 32, np.int32),
    }
    state, metrics = update(state, batch, None)
    params, opt_state, loss, norm = step(number, params, opt_state, batch)
    assert (metrics['train_loss'], metrics['grad_norm']) == (loss, norm)
  assert norm > MAX_NORM  # The clipping has an effect.
  assert state.ema is None and state.task_state is None
  expected = state.replace(
    step=np.int32(NUM_STEPS), params=params, opt_state=opt_state
  )
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, state, expected)
