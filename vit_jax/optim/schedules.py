"""Schedules of the learning rate and of the weight decay.

A schedule is a function from the number of completed updates to a number.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Rates:
  """Settings of a learning-rate schedule; see `base_config`."""

  base_lr: float
  decay_type: str
  warmup_steps: int
  total_steps: int
  linear_end: float
  cosine_end: float = 0.0
  rsqrt_timescale: float = 10_000
  drop_steps: tuple[int, ...] = ()
  drop_factor: float = 0.1
  cooldown_steps: int = 0
  warmup_start: float = 0.0

  @property
  def decay_steps(self) -> int:
    """Number of steps after the warm-up."""
    return self.total_steps - self.warmup_steps


def _cosine(rates):
  alpha = rates.cosine_end / rates.base_lr
  return optax.cosine_decay_schedule(rates.base_lr, rates.decay_steps, alpha)


def _linear(rates):
  end = min(rates.base_lr, rates.linear_end)
  return optax.linear_schedule(rates.base_lr, end, rates.decay_steps)


def _constant(rates):
  return optax.constant_schedule(rates.base_lr)


def _rsqrt(rates):
  def decay(step):
    return rates.base_lr / jnp.sqrt(1 + step / rates.rsqrt_timescale)

  return decay


def _step(rates):
  drops = jnp.array(rates.drop_steps) - rates.warmup_steps
  levels = [rates.base_lr * rates.drop_factor**i for i in range(len(drops) + 1)]

  def decay(step):
    return jnp.array(levels)[(step > drops).sum()]

  return decay


# {value of `config.decay_type`: function from `Rates` to the schedule after the
# warm-up}
DECAYS = {
  'cosine': _cosine,
  'linear': _linear,
  'constant': _constant,
  'rsqrt': _rsqrt,
  'step': _step,
}
_DECAYS_BY_ITSELF = ('cosine', 'linear', 'step')


def make_schedule(**settings: Any) -> Callable:
  """Returns a schedule: linear warm-up to `base_lr`, then decay.

  During the warm-up, update t (0 is the first) has the rate start + (base −
  start) · t / warm-up, where the start is 0 or `warmup_start`. Then, with p =
  (t − warm-up) / (total − warm-up), the rate is

    cosine: end + (base − end) · ½(1 + cos πp), where the end is `cosine_end`
    linear: interpolated from base to `linear_end` by p
    constant: base
    rsqrt: base / √(1 + (t − warm-up) / timescale); Zhai et al. 2021, arXiv
      2106.04560, section 3.5
    step: base · `drop_factor` ^ (number of `drop_steps` below t); Kolesnikov et
      al. 2019, BiT, arXiv 1912.11370, section 3.3

  'constant', 'rsqrt' and 'step' do not depend on the total. The first two can
  end with a linear cool-down to 0 over the last `cooldown_steps`.

  Args:
    **settings: fields of `Rates`.

  Returns:
    A function from the number of completed updates to the next learning rate.

  Raises:
    ValueError: the settings contradict each other.
  """
  rates = Rates(**settings)
  _check_lengths(rates)
  _check_values(rates)
  decay = DECAYS[rates.decay_type](rates)
  if rates.cooldown_steps:
    decay = _with_cooldown(decay, rates.decay_steps, rates.cooldown_steps)
  if not rates.warmup_steps:
    return decay
  warmup = optax.linear_schedule(
    rates.warmup_start, rates.base_lr, rates.warmup_steps
  )
  return optax.join_schedules([warmup, decay], [rates.warmup_steps])


def _with_cooldown(schedule, num_steps, cooldown_steps):
  """Returns a schedule that falls linearly to 0 over `cooldown_steps`."""

  def cooled(step):
    left = jnp.clip((num_steps - step) / cooldown_steps, 0.0, 1.0)
    return schedule(step) * left

  return cooled


def _check_lengths(rates):
  """Raises ValueError if the parts of the schedule do not fit together."""
  if rates.decay_steps <= 0:
    raise ValueError(
      f'config.warmup_steps={rates.warmup_steps} must be less than the number '
      f'of updates, total_steps={rates.total_steps}. Lower config.warmup_steps '
      'or train longer'
    )
  if rates.decay_type not in DECAYS:
    raise ValueError(
      f'config.decay_type={rates.decay_type!r} is not one of '
      + ', '.join(DECAYS)
    )
  if rates.cooldown_steps and rates.decay_type in _DECAYS_BY_ITSELF:
    raise ValueError(
      f'config.cooldown_steps={rates.cooldown_steps} cannot be used with '
      f'config.decay_type={rates.decay_type!r}, which decays by itself. Use '
      'config.cooldown_steps=0, or the decay type constant or rsqrt'
    )
  if rates.cooldown_steps > rates.decay_steps:
    raise ValueError(
      f'config.cooldown_steps={rates.cooldown_steps} must be at most '
      f'total_steps - warmup_steps = {rates.decay_steps}. Use '
      f'config.cooldown_steps={rates.decay_steps}'
    )


def _check_values(rates):
  """Raises ValueError if a rate or a drop has no use."""
  for name, needed in (('cosine_end', 'cosine'), ('drop_steps', 'step')):
    value = getattr(rates, name)
    if value and rates.decay_type != needed:
      raise ValueError(
        f'config.{name}={value} is only used with config.decay_type={needed}, '
        f'not with {rates.decay_type}. Remove this setting'
      )
  for name in ('cosine_end', 'warmup_start'):
    if getattr(rates, name) > rates.base_lr:
      raise ValueError(
        f'config.{name}={getattr(rates, name)} must be at most '
        f'config.base_lr={rates.base_lr}'
      )
  if rates.warmup_start and not rates.warmup_steps:
    raise ValueError(
      f'config.warmup_start={rates.warmup_start} is the first rate of a '
      'warm-up, but config.warmup_steps=0. Remove one of them'
    )
  if rates.decay_type == 'step':
    _check_drops(rates)


def _check_drops(rates):
  drops = rates.drop_steps
  if not drops or not all(isinstance(x, int) for x in drops):
    raise ValueError(
      f'config.drop_steps={drops!r} must be a tuple of steps with '
      'config.decay_type=step, such as (3000, 6000, 9000)'
    )
  edges = (rates.warmup_steps - 1, *drops, rates.total_steps)
  if any(a >= b for a, b in zip(edges, edges[1:], strict=False)):
    raise ValueError(
      f'config.drop_steps={drops} must rise, from config.warmup_steps='
      f'{rates.warmup_steps} at the lowest to below total_steps='
      f'{rates.total_steps}. Change one of them'
    )


def cosine_between(start: float, end: float, total_steps: int) -> Callable:
  """Returns a schedule along half a cosine, over the whole run.

  DINO increases the weight decay in this way, without a warm-up: Caron et al.
  2021, arXiv 2104.14294, section 3.2.

  Args:
    start: value at step 0.
    end: value at `total_steps`.
    total_steps: number of updates of the run.
  """

  def value(step):
    progress = jnp.minimum(step / total_steps, 1.0)
    return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

  return value
