"""Learning-rate schedules and optimizers, selected by name."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from vit_jax.optim import given_optimizer
from vit_jax.optim import rules

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
  """Returns a schedule: linear warm-up to `base_lr`, then decay.

  During the warm-up, update t (0 is the first) has the rate base · t / warm-up.
  Then, with p = (t − warm-up) / (total − warm-up), the rate is

    cosine: base · ½(1 + cos πp)
    linear: interpolated from base to `linear_end` by p
    constant: base
    rsqrt: base / √(1 + (t − warm-up) / timescale); Zhai et al. 2021, arXiv
      2106.04560, section 3.5

  'constant' and 'rsqrt' do not depend on the total. They can end with a linear
  cool-down to 0 over the last `cooldown_steps`.

  Returns:
    A function from the number of completed updates to the next learning rate.

  Raises:
    ValueError: the settings contradict each other.
  """
  decay_steps = total_steps - warmup_steps
  if decay_steps <= 0:
    raise ValueError(
      f'config.warmup_steps={warmup_steps} must be less than the number of '
      f'updates, total_steps={total_steps}. Lower config.warmup_steps or train '
      'longer'
    )
  if cooldown_steps and decay_type in ('cosine', 'linear'):
    raise ValueError(
      f'config.cooldown_steps={cooldown_steps} cannot be used with '
      f'config.decay_type={decay_type!r}, which decays by itself. Use '
      'config.cooldown_steps=0, or the decay type constant or rsqrt'
    )
  if cooldown_steps > decay_steps:
    raise ValueError(
      f'config.cooldown_steps={cooldown_steps} must be at most total_steps - '
      f'warmup_steps = {decay_steps}. Use config.cooldown_steps={decay_steps}'
    )
  if decay_type == 'cosine':
    decay = optax.cosine_decay_schedule(base_lr, decay_steps)
  elif decay_type == 'linear':
    # A base rate below the end value stays constant. It does not rise.
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
      f'config.decay_type={decay_type!r} is not one of '
      + ', '.join(DECAY_TYPES)
    )
  if cooldown_steps:
    decay = _with_cooldown(decay, decay_steps, cooldown_steps)
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, base_lr, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def _with_cooldown(schedule, num_steps, cooldown_steps):
  """Returns a schedule that falls linearly to 0 over `cooldown_steps`."""

  def cooled(step):
    left = jnp.clip((num_steps - step) / cooldown_steps, 0.0, 1.0)
    return schedule(step) * left

  return cooled


def decay_mask(params: Any) -> Any:
  """Returns a tree with True for kernels, False for other parameters.

  Biases, norms, position embeddings and tokens have no weight decay.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


# Up to this decay, a momentum in bfloat16 changes updates by less than 2 %
# (benchmarks/results/momentum_dtype.md).
_MAX_BFLOAT16_DECAY = 0.9


def _check_momentum(config):
  """Raises ValueError if the momentum decay is too large for bfloat16."""
  name = 'momentum' if config.optimizer == 'sgd' else 'adam_b1'
  if config.momentum_dtype == 'bfloat16' and config[name] > _MAX_BFLOAT16_DECAY:
    raise ValueError(
      f'config.{name}={config[name]} is too large for '
      'config.momentum_dtype=bfloat16. Above '
      f'{_MAX_BFLOAT16_DECAY}, rounding errors change the updates: at 0.99 by '
      '15 to 31 %. Use config.momentum_dtype=float32'
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


# {name: function from a config to an optimizer without a learning rate}
DIRECTIONS = {'sgd': _sgd, 'adam': _adam, 'adamw': _adam}


def _get_direction(config):
  """Returns the optimizer `config.optimizer`, without a learning rate.

  Raises:
    ValueError: a setting is unknown, or settings contradict each other.
  """
  if config.optimizer not in DIRECTIONS:
    raise ValueError(
      f'config.optimizer={config.optimizer!r} is not one of '
      + ', '.join(DIRECTIONS)
    )
  if config.weight_decay and config.optimizer != 'adamw':
    raise ValueError(
      f'config.weight_decay={config.weight_decay} needs '
      f'config.optimizer=adamw, because {config.optimizer} has no weight decay'
    )
  _check_momentum(config)
  return DIRECTIONS[config.optimizer](config)


def make_optimizer(
  config: ConfigDict,
  schedule: Callable | None,
  given: Any = None,
  factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
  """Returns the optimizer, with gradient clipping and a learning rate.

  The gradients of the trained parameters are first clipped by their global
  norm.

  Args:
    config: settings under "optimizer" in `base_config`.
    schedule: learning-rate schedule from `make_schedule`. None if `given` does
      not use it.
    given: an optimizer that replaces the config's optimizer, schedule and
      clipping; see `given_optimizer.resolve`.
    factors: from `rules.lr_factors`; None if all are 1. They multiply the
      updates, and so the learning rate and the decoupled weight decay.

  Raises:
    ValueError: a setting is unknown, or settings contradict each other.
  """
  scale = [rules.scale_updates(factors)] if factors else []
  if given is not None:
    tx = given_optimizer.resolve(given, schedule)
    if scale:
      tx = optax.chain(tx, *scale)
    return _skip_nonfinite(tx, config.skip_nonfinite)
  direction = _get_direction(config)
  if config.grad_norm_clip:
    direction = optax.chain(
      optax.clip_by_global_norm(config.grad_norm_clip), direction
    )
  # The schedule also counts skipped updates, so the learning rate depends only
  # on the step.
  return optax.chain(
    _skip_nonfinite(direction, config.skip_nonfinite),
    optax.scale_by_learning_rate(schedule),
    *scale,
  )


def _skip_nonfinite(tx, max_in_a_row):
  """Returns `tx`, with non-finite updates skipped if `max_in_a_row` is not 0.

  `apply_if_finite` needs applied and skipped updates of the same dtype. So
  bfloat16 updates are cast to the dtype of the parameters.
  """
  if not max_in_a_row:
    return tx
  as_params = optax.stateless(
    lambda updates, params: jax.tree.map(
      lambda update, param: update.astype(param.dtype), updates, params
    )
  )
  return optax.apply_if_finite(optax.chain(tx, as_params), max_in_a_row)


# --- values in the state -----------------------------------------------------


def _find(opt_state, is_wanted):
  """Returns the outermost nodes of the state for which `is_wanted` is True."""
  return [
    x for x in jax.tree.leaves(opt_state, is_leaf=is_wanted) if is_wanted(x)
  ]


def _find_skipping(opt_state):
  """Returns the outermost state of `apply_if_finite` in a list, or []."""
  kind = optax.ApplyIfFiniteState
  return _find(opt_state, lambda x: isinstance(x, kind))[:1]


def count_skipped(opt_state: optax.OptState) -> dict[str, jax.Array]:
  """Returns counts of skipped updates; {} if skipping is disabled."""
  for state in _find_skipping(opt_state):
    return {
      'skipped_updates': state.total_notfinite,
      'skipped_in_a_row': state.notfinite_count,
    }
  return {}


def was_applied(opt_state: optax.OptState) -> jax.Array | None:
  """Returns whether the last update was applied, bool [].

  None means that skipping is disabled.
  """
  for state in _find_skipping(opt_state):
    return state.last_finite
  return None


def applied_rate(
  schedule: Callable | None,
  step: jax.Array,
  before: optax.OptState,
  after: optax.OptState,
) -> dict[str, jax.Array]:
  """Returns {'lr': learning rate of an update}, or {} if it is not known.

  A rate that `optax.inject_hyperparams` stores has priority over the schedule.

  Args:
    schedule: number of updates -> learning rate; None if there is none.
    step: number of completed updates before the update.
    before: state of the optimizer before the update.
    after: state of the optimizer after the update.
  """
  stored = [
    node.hyperparams['learning_rate']
    for node in _find(after, lambda x: hasattr(x, 'hyperparams'))
    if 'learning_rate' in node.hyperparams
  ]
  if stored:
    return {'lr': stored[0]} if len(stored) == 1 else {}
  if schedule is None:
    return {}
  if isinstance(before, optax.ApplyIfFiniteState):
    # A given optimizer, whose schedule does not count skipped updates.
    step = step - before.total_notfinite
  return {'lr': schedule(step)}
