"""With the default settings, the compiled step has nothing of later options."""

import jax
import optax

from tests.digits_run import make_config
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.run import setup


def test_the_default_program_is_a_gradient_and_an_optax_chain():
  config = make_config(optimizer='adamw', weight_decay=0.1, accum_steps=2)
  mesh = setup.check(config)
  parts = setup.make_parts(config, mesh, setup.get_datasets(config))
  assert parts.task.ema_decay is None and parts.abstract_state.ema is None

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
  tx = optax.chain(
    optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.chain(
        optax.scale_by_adam(0.9, 0.999, mu_dtype='bfloat16'),
        optax.add_decayed_weights(0.1, kernels),
      ),
    ),
    optax.scale_by_learning_rate(schedule),
  )
  batch = parts.abstract_batch(parts.batch)
  init_fn = train_state.make_init_fn(parts.task, tx, batch, mesh)
  state = jax.eval_shape(init_fn, jax.random.key(0))
  assert jax.tree.structure(state) == jax.tree.structure(parts.abstract_state)
  update = train_step.make_update_fn(
    parts.task, tx, schedule, mesh, keys=parts.keys, accum_steps=2
  )
  found, expected = (
    step.lower(state, batch, None).as_text()
    for step in (parts.make_update(2), update)
  )
  assert found == expected
