"""The decay of a moving average of the parameters (EMA).

After each update, average ← decay · average + (1 − decay) · parameters. The
average starts at the initial parameters. `train_step` computes it.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp


def make_decay(decay: float, warmup_power: float = 0.0) -> Callable:
  """Returns the decay of an average by step, for `task.Task.ema_decay`.

  Args:
    decay: largest decay, at least 0 and below 1.
    warmup_power: power p of the decay min(decay, 1 − (1 + t)^−p) for t earlier
      updates, as in timm, where it is 2/3 or 3/4. 0: the decay is constant.

  Returns:
    A function from the number of updates, this one included, to its decay.
  """

  def decay_at(step: jax.Array) -> jax.Array | float:
    if not warmup_power:
      return decay
    earlier = jnp.asarray(step - 1, jnp.float32)
    return jnp.minimum(decay, 1 - (1 + earlier) ** -warmup_power)

  return decay_at


def half_life(decay: float) -> float:
  """Returns the number of updates after which a weight has halved."""
  return math.log(2) / -math.log(decay)


def describe(decay: float, total_steps: int) -> str:
  """Returns a line about an average, with a warning if it is too slow.

  Args:
    decay: `config.ema_decay`.
    total_steps: number of updates of the run.
  """
  steps = half_life(decay)
  line = (
    f'moving average of the parameters (EMA): decay {decay:g}, half-life '
    f'{steps:.3g} steps, {100 * steps / total_steps:.2g} % of the run'
  )
  if steps < total_steps:
    return line
  return (
    f'warning: {line}. So the average depends on the initial parameters. Lower '
    'config.ema_decay: 1 to 3 % of the run are usual'
  )
