"""Sharpness-aware minimization: SAM and GSAM.

For each micro-batch, with the gradient g at the parameters p:

  p' = p + ρ · g / ‖g‖      one norm over all trained arrays
  g' = the gradient at p', for the same examples and the same dropout masks

SAM (Foret et al. 2020, arXiv 2010.01412, algorithm 1) updates p with g'. GSAM
(Zhuang et al. 2022, arXiv 2203.08065, algorithm 1) splits g = (component along
g') + r, and updates p with g' − α · r. Its ρ follows the learning rate. A step
needs two backward passes.

The mean over the micro-batches is applied. The papers find that a perturbation
for few examples (m-sharpness) is better than one for the whole batch.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

_EPSILON = 1e-12  # added to norms; a gradient of zeros does not perturb
# {value of `config.sam.adaptive`: perturbation / ρ, from parameters, gradient}
ADAPTIVE = {
  'none': lambda p, g: _scaled(g, _norm(g)),
  # |p| · g / ‖g‖, the option of big_vision's GSAM.
  'big_vision': lambda p, g: jax.tree.map(
    lambda p, e: jnp.abs(p) * e, p, _scaled(g, _norm(g))
  ),
  # p² · g / ‖|p| · g‖: Kwon et al. 2021, ASAM, arXiv 2102.11600, equation 5.
  'asam': lambda p, g: _scaled(
    jax.tree.map(lambda p, g: p * p * g, p, g),
    _norm(jax.tree.map(lambda p, g: p * g, p, g)),
  ),
}
BASES = ('perturbed', 'clean')


def _norm(tree):
  return optax.tree.norm(tree)


def _scaled(tree, norm):
  """Returns tree / norm; NaN if the norm is not finite.

  So an update is skipped if the first of the two gradients is not finite.
  """
  scale = jnp.where(jnp.isfinite(norm), 1 / (norm + _EPSILON), jnp.nan)
  return jax.tree.map(lambda x: scale * x, tree)


def _rejection(grads, direction):
  """Returns the component of `grads` that is orthogonal to `direction`."""
  unit = _scaled(direction, _norm(direction))
  along = optax.tree.vdot(grads, unit)
  return jax.tree.map(lambda g, u: g - along * u, grads, unit)


@dataclasses.dataclass(frozen=True)
class Sam:
  """Replaces `jax.value_and_grad` in a training step.

  Attributes:
    rho: step -> ρ, the radius of the perturbation.
    alpha: α of GSAM. 0 is SAM.
    adaptive: key of `ADAPTIVE`.
    base: 'perturbed': the gradient is g' − α · r. 'clean': it is g + α · r',
      with g' = (component along g) + r', an option of big_vision.
  """

  rho: Callable
  alpha: float = 0.0
  adaptive: str = 'none'
  base: str = 'perturbed'

  def value_and_grad(self, loss: Callable, has_aux: bool = False) -> Callable:
    """Returns (params, batch, context) -> (value at `params`, gradient).

    Args:
      loss: (params, batch, context) -> value, as for `jax.value_and_grad`.
      has_aux: whether the value is (loss, other outputs).
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=has_aux)

    def call(params, batch, context):
      value, clean = value_and_grad(params, batch, context)
      rho = self.rho(context.step)
      perturbed = jax.tree.map(
        lambda p, e: p + rho * e, params, ADAPTIVE[self.adaptive](params, clean)
      )
      _, sharp = value_and_grad(perturbed, batch, context)
      return value, self._combined(clean, sharp)

    return call

  def _combined(self, clean: Any, sharp: Any) -> Any:
    """Returns the gradient of the update from those at p and p'."""
    if self.base == 'clean':
      rest, base, factor = _rejection(sharp, clean), clean, self.alpha
    elif self.alpha:
      rest, base, factor = _rejection(clean, sharp), sharp, -self.alpha
    else:
      return sharp
    return jax.tree.map(lambda b, r: b + factor * r, base, rest)


def make(
  config: ConfigDict, schedule: Callable | None, total_steps: int
) -> Sam | None:
  """Returns the SAM or GSAM of a config; None if `config.sam.rho` is 0.

  Args:
    config: settings from `base_config`.
    schedule: learning rate by step; None if the optimizer has its own.
    total_steps: number of updates of the run.

  Raises:
    ValueError: ρ follows the learning rate, but there is no schedule.
  """
  sam = config.sam
  if not sam.rho:
    return None
  rho = radius(sam.rho, sam.rho_min, config.base_lr, schedule, total_steps)
  return Sam(rho, sam.alpha, sam.adaptive, sam.base)


def radius(
  rho: float,
  rho_min: float | None,
  base_lr: float,
  schedule: Callable | None,
  total_steps: int,
) -> Callable:
  """Returns the function step -> ρ.

  It is interpolated from `rho` at the largest learning rate to `rho_min` at the
  last one. In a warm-up from a lower rate, it is 0 at the lowest.

  Raises:
    ValueError: ρ follows the learning rate, but there is no schedule.
  """
  if rho_min is None or rho_min == rho:
    return lambda step: rho
  if schedule is None:
    raise ValueError(
      f'config.sam.rho_min={rho_min} follows the learning rate, but the given '
      'optimizer does not use the schedule of the config. Use '
      'config.sam.rho_min=None, or a function of the schedule as optimizer'
    )
  lowest = float(schedule(total_steps))
  if lowest >= base_lr:
    return lambda step: rho

  def of_rate(step):
    part = (schedule(step) - lowest) / (base_lr - lowest)
    return jnp.maximum(rho_min + (rho - rho_min) * part, 0.0)

  return of_rate


def check(config: ConfigDict) -> None:
  """Raises ValueError if the settings of SAM cannot be used together."""
  sam = config.sam
  for name, known in (('adaptive', tuple(ADAPTIVE)), ('base', BASES)):
    if sam[name] not in known:
      raise ValueError(
        f'config.sam.{name}={sam[name]!r} is not one of {", ".join(known)}'
      )
  if not sam.rho:
    _check_unused(sam)
    return
  if sam.rho_min is not None and not 0 <= sam.rho_min <= sam.rho:
    raise ValueError(
      f'config.sam.rho_min={sam.rho_min} must be from 0 to config.sam.rho='
      f'{sam.rho}, or None'
    )
  if sam.base == 'clean' and not sam.alpha:
    raise ValueError(
      'config.sam.base=clean with config.sam.alpha=0 is training without SAM. '
      'Set config.sam.alpha, or use config.sam.base=perturbed'
    )
  if config.accum_steps == 'auto':
    raise ValueError(
      f'config.sam.rho={sam.rho} cannot be used with config.accum_steps=auto: '
      'each micro-batch has its own perturbation, so their number changes the '
      'result. Use a number, such as config.accum_steps=1'
    )


def _check_unused(sam):
  defaults = dict(rho_min=None, alpha=0, adaptive='none', base='perturbed')
  for name, default in defaults.items():
    if sam[name] != default:
      raise ValueError(
        f'config.sam.{name}={sam[name]!r} needs config.sam.rho, which is 0. '
        'Set it, or remove this setting'
      )


def describe(config: ConfigDict) -> str:
  """Returns a line about SAM in a run; '' without SAM."""
  sam = config.sam
  if not sam.rho:
    return ''
  size = config.batch // config.accum_steps
  rho_min = '' if sam.rho_min is None else f' to {sam.rho_min:g}'
  return (
    f'{"GSAM" if sam.alpha else "SAM"}: radius {sam.rho:g}{rho_min}'
    + (f', alpha {sam.alpha:g}' if sam.alpha else '')
    + (f', adaptive as {sam.adaptive}' if sam.adaptive != 'none' else '')
    + f'; each micro-batch of m = {size} images has its own perturbation, and '
    'a second backward pass'
  )
