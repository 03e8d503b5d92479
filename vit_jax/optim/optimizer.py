"""The optimizer of a run: clipping, direction, learning rate, skipping."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from vit_jax.optim import directions
from vit_jax.optim import factors as path_factors
from vit_jax.optim import given_optimizer
from vit_jax.optim import weight_decay


def _clip_by_array_norm(max_norm):
  """Clips the gradient of each array on its own, as DINO does."""

  def clip(grad):
    norm = jnp.sqrt(jnp.sum(jnp.square(grad)))
    return grad * (max_norm / jnp.maximum(norm, max_norm)).astype(grad.dtype)

  return optax.stateless(lambda grads, params: jax.tree.map(clip, grads))


def make_optimizer(
  config: ConfigDict,
  schedule: Callable | None,
  given: Any = None,
  factors: Mapping[str, float] | None = None,
  decay: weight_decay.WeightDecay | None = None,
  frozen_until: Mapping[str, int] | None = None,
) -> optax.GradientTransformation:
  """Returns the optimizer, with gradient clipping and a learning rate.

  The gradients of the trained parameters are first clipped: each array by its
  norm, then all by their global norm.

  Args:
    config: settings under "optimizer" in `base_config`.
    schedule: learning-rate schedule from `make_schedule`. None if `given` does
      not use it.
    given: an optimizer that replaces the config's optimizer, schedule and
      clipping; see `given_optimizer.resolve`.
    factors: from `factors.lr_factors`; None if all are 1. They multiply the
      updates, and so the learning rate and the weight decay.
    decay: from `weight_decay.make`; None: without rules by path.
    frozen_until: see `task.Task`.

  Raises:
    ValueError: a setting is unknown, or settings contradict each other.
  """
  scale = [path_factors.scale_updates(factors)] if factors else []
  if frozen_until:
    scale.append(path_factors.drop_first(frozen_until))
  if given is not None:
    tx = given_optimizer.resolve(given, schedule)
    if scale:
      tx = optax.chain(tx, *scale)
    return _skip_nonfinite(tx, config.skip_nonfinite)
  direction = directions.get_direction(
    config, decay or weight_decay.make(config)
  )
  if config.grad_norm_clip:
    direction = optax.chain(
      optax.clip_by_global_norm(config.grad_norm_clip), direction
    )
  if config.array_norm_clip:
    direction = optax.chain(
      _clip_by_array_norm(config.array_norm_clip), direction
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
