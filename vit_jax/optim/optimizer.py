"""Learning-rate schedules and gradient transformations, by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

DECAY_TYPES = ('cosine', 'linear', 'constant', 'rsqrt')


def make_schedule(
  *,
  base_lr: float,
  decay_type: str,
  warmup_steps: int,
  total_steps: int,
  linear_end: float,
  rsqrt_timescale: float = 10_000,
  cooldown_steps: int = 0,
) -> Callable:
  """Linear warm-up to `base_lr`, then decay over the rest of `total_steps`.

  The rate of update t (0 is the first) is base · min(1, t / warm-up), times
  ½(1 + cos πp) for 'cosine', or interpolated from base to `linear_end` for
  'linear', with p = (t − warm-up) / (total − warm-up). 'constant' stays at the
  base rate. 'rsqrt' is base / √(1 + (t − warm-up) / timescale) (Zhai et al.
  2021, arXiv 2106.04560, section 3.5). The last two do not depend on the total,
  until a linear cool-down to 0 over the last `cooldown_steps`.

  Returns:
    A function from the number of completed updates to the next one's rate.

  Raises:
    ValueError: the settings do not go together.
  """
  decay_steps = total_steps - warmup_steps
  if decay_steps <= 0:
    raise ValueError(
      f'warmup_steps {warmup_steps} must be less than total_steps '
      f'{total_steps}: lower warmup_steps or train longer'
    )
  if cooldown_steps and decay_type in ('cosine', 'linear'):
    raise ValueError(
      f'cooldown_steps {cooldown_steps}: decay_type {decay_type!r} ends by '
      'itself; constant and rsqrt have a cool-down'
    )
  if cooldown_steps > decay_steps:
    raise ValueError(
      f'cooldown_steps {cooldown_steps} must be at most total_steps - '
      f'warmup_steps, {decay_steps}'
    )
  if decay_type == 'cosine':
    decay = optax.cosine_decay_schedule(base_lr, decay_steps)
  elif decay_type == 'linear':
    # A base rate below the end value stays, rather than rising.
    decay = optax.linear_schedule(
      base_lr, min(base_lr, linear_end), decay_steps
    )
  elif decay_type == 'constant':
    decay = optax.constant_schedule(base_lr)
  elif decay_type == 'rsqrt':

    def decay(step):
      return base_lr / jnp.sqrt(1 + step / rsqrt_timescale)

  else:
    raise ValueError(
      f'decay_type {decay_type!r} is not one of ' + ', '.join(DECAY_TYPES)
    )
  if cooldown_steps:
    decay = _with_cooldown(decay, decay_steps, cooldown_steps)
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, base_lr, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def _with_cooldown(schedule, num_steps, cooldown_steps):
  """A schedule that falls linearly to 0 over the last `cooldown_steps`."""

  def cooled(step):
    left = jnp.clip((num_steps - step) / cooldown_steps, 0.0, 1.0)
    return schedule(step) * left

  return cooled


def decay_mask(params: Any) -> Any:
  """True for kernels: not for biases, norms, position embeddings, tokens."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


# The largest decay whose rounding to bfloat16 changes updates by less than 2 %
# (benchmarks/results/momentum_dtype.md).
_MAX_BFLOAT16_DECAY = 0.9


def _check_momentum(config):
  """Raises a ValueError for a decay that the dtype of the momentum spoils."""
  name = 'momentum' if config.optimizer == 'sgd' else 'adam_b1'
  if config.momentum_dtype == 'bfloat16' and config[name] > _MAX_BFLOAT16_DECAY:
    raise ValueError(
      f'config.{name}={config[name]} is too large for '
      'config.momentum_dtype=bfloat16: above '
      f'{_MAX_BFLOAT16_DECAY} its rounding makes updates wrong, by 15 to '
      '31 % at 0.99. Set config.momentum_dtype=float32'
    )


def _sgd(config):
  return optax.trace(config.momentum, accumulator_dtype=config.momentum_dtype)


def _adam(config):
  return optax.chain(
    optax.scale_by_adam(
      b1=config.adam_b1, b2=config.adam_b2, mu_dtype=config.momentum_dtype
    ),
    optax.add_decayed_weights(config.weight_decay, decay_mask),
  )


# name: config -> the direction of an update, without a learning rate
DIRECTIONS = {'sgd': _sgd, 'adam': _adam, 'adamw': _adam}


def _get_direction(config):
  """The direction that `config.optimizer` names.

  Raises:
    ValueError: settings that are unknown or do not go together.
  """
  if config.optimizer not in DIRECTIONS:
    raise ValueError(
      f'optimizer {config.optimizer!r} is not one of ' + ', '.join(DIRECTIONS)
    )
  if config.weight_decay and config.optimizer != 'adamw':
    raise ValueError(
      f'weight_decay {config.weight_decay} needs --config.optimizer=adamw: '
      f'{config.optimizer} has none'
    )
  _check_momentum(config)
  return DIRECTIONS[config.optimizer](config)


def make_optimizer(
  config: ConfigDict, schedule: Callable, make_direction: Callable | None = None
) -> optax.GradientTransformation:
  """Global-norm clip, then an optimizer, then the learning rate.

  Args:
    config: with the settings under "optimizer" in `base_config`.
    schedule: the learning rate, from `make_schedule`.
    make_direction: config -> gradient transformation without a learning rate;
      None: as `config.optimizer` names it.

  Raises:
    ValueError: settings that are unknown or do not go together.
  """
  direction = (make_direction or _get_direction)(config)
  if config.grad_norm_clip:
    direction = optax.chain(
      optax.clip_by_global_norm(config.grad_norm_clip), direction
    )
  if config.skip_nonfinite:
    # A momentum in bfloat16 gives such updates; skipped ones are as gradients.
    as_gradients = optax.stateless(
      lambda updates, params: jax.tree.map(
        lambda update, param: update.astype(param.dtype), updates, params
      )
    )
    direction = optax.apply_if_finite(
      optax.chain(direction, as_gradients), config.skip_nonfinite
    )
  # Outside of what may skip: the rate of a step is that of its number.
  return optax.chain(direction, optax.scale_by_learning_rate(schedule))


def count_skipped(opt_state: optax.OptState) -> dict[str, jax.Array]:
  """Updates left out because a gradient was not finite; {} if none would be."""
  for state in opt_state:
    if isinstance(state, optax.ApplyIfFiniteState):
      return {
        'skipped_updates': state.total_notfinite,
        'skipped_in_a_row': state.notfinite_count,
      }
  return {}


def was_applied(opt_state: optax.OptState) -> jax.Array | None:
  """Whether the last update was applied, bool []; None if none is skipped."""
  for state in opt_state:
    if isinstance(state, optax.ApplyIfFiniteState):
      return state.last_finite
  return None
