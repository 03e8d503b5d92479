"""Weight decay: which arrays it shrinks, and by how much.

For an array p, Adam's direction u and the learning rate lr(t), there are two
conventions. Published values differ by the factor of the largest rate:

  'lr': p ← p − lr(t) · (u + decay · p), as in the papers on ViT, in torch and
    in optax. A change of the rate changes the decay of a step.
  'schedule': p ← p − lr(t) · u − lr(t) / base_lr · decay · p, as in big_vision,
    and in Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2. Only the
    shape of the schedule changes the decay of a step. Factors of the rate
    (`config.lr_rules`, `config.layer_decay`) do not change it.

LAMB and LARS scale u + decay · p to the norm of p, so only 'lr' has a meaning
there. The decay of LARS is also a part of the momentum.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from vit_jax.optim import rules
from vit_jax.optim import schedules

CONVENTIONS = ('lr', 'schedule')
# Optimizers that scale the sum of update and decay to the norm of each array.
SCALED_BY_NORM = ('lamb', 'lars')


def is_kernel(path: str) -> bool:
  """Returns whether a parameter is a kernel, which has weight decay.

  Biases, norms, position embeddings and tokens have none.
  """
  return path.rpartition('/')[2] == 'kernel'


class _Count(NamedTuple):
  count: jax.Array  # number of applied updates, int32 []


@dataclasses.dataclass(frozen=True)
class WeightDecay:
  """The weight decay of a run, in the convention 'lr'.

  Attributes:
    strength: `config.weight_decay`, or a schedule of it.
    factor_of: path -> factor of the strength. Arrays with 0 have no decay.
    is_plain: whether the strength is a number, and all factors are 0 or 1.
  """

  strength: float | Callable
  factor_of: Callable
  is_plain: bool

  def mask(self, params: Any) -> Any:
    """Returns a tree with True for arrays with weight decay."""
    return jax.tree.map_with_path(
      lambda path, _: self.factor_of(rules.path_of(path)) > 0, params
    )

  def add(self) -> optax.GradientTransformation:
    """Returns a transformation that adds the decay to the updates."""
    if self.is_plain:  # its state is in the checkpoints of earlier versions
      return optax.add_decayed_weights(self.strength, self.mask)

    def init(params):
      del params
      if callable(self.strength):
        return _Count(jnp.zeros((), jnp.int32))
      return optax.EmptyState()

    def update(updates, state, params):
      strength = self.strength
      if callable(strength):
        strength = strength(state.count)
        state = _Count(optax.safe_increment(state.count))

      def decayed(path, update, param):
        factor = self.factor_of(rules.path_of(path))
        return update + strength * factor * param if factor else update

      return jax.tree.map_with_path(decayed, updates, params), state

    return optax.GradientTransformation(init, update)


def make(
  config: ConfigDict,
  total_steps: int | None = None,
  decay_factors: Mapping[str, float] | None = None,
  lr_factors: Mapping[str, float] | None = None,
) -> WeightDecay:
  """Returns the weight decay of a config.

  Args:
    config: settings under "optimizer" in `base_config`.
    total_steps: number of updates of the run, for `config.weight_decay_end`.
    decay_factors: from `factors.decay_factors`; None: 1 for kernels.
    lr_factors: from `factors.lr_factors`; None if all are 1.

  Raises:
    ValueError: a setting is unknown, or settings contradict each other.
  """
  _check(config)
  by_path = decay_factors is not None
  factor_of = decay_factors.__getitem__ if by_path else is_kernel
  strength = config.weight_decay
  if config.weight_decay_end is not None:
    strength = schedules.cosine_between(
      strength, config.weight_decay_end, total_steps
    )
  if config.weight_decay_scale == 'lr':
    is_plain = not by_path and not callable(strength)
    return WeightDecay(strength, factor_of, is_plain)

  def relative(path):  # later, the update is multiplied by the rate
    return factor_of(path) / (config.base_lr * (lr_factors or {}).get(path, 1))

  return WeightDecay(strength, relative, False)


def _check(config):
  if config.weight_decay_scale not in CONVENTIONS:
    raise ValueError(
      f'config.weight_decay_scale={config.weight_decay_scale!r} is not one of '
      + ', '.join(CONVENTIONS)
    )
  if (
    config.weight_decay_scale == 'schedule'
    and config.optimizer in SCALED_BY_NORM
  ):
    raise ValueError(
      "config.weight_decay_scale='schedule' cannot be used with "
      f'config.optimizer={config.optimizer}, which scales the sum of update '
      'and weight decay to the norm of each array. So the decay changes the '
      'direction of a step, not its size. Use config.weight_decay_scale=lr'
    )
  end = config.weight_decay_end
  if end is not None and end < 0:
    raise ValueError(f'config.weight_decay_end={end} must be at least 0')


def is_used(config: ConfigDict) -> bool:
  """Returns whether a run has weight decay at any step."""
  return bool(config.weight_decay or config.weight_decay_end)


# Below it, a value of the convention 'lr' seems to be of the other one, and
# from it on, the other way around. AugReg has 0.1 in one, 1e-4 in the other.
_LIMIT = 1e-3
_MAX_RATE = 1e-2  # Larger rates are for SGD and Muon.


def warning(config: ConfigDict) -> str:
  """Returns a warning if the value seems to be of the other convention; ''."""
  decay, lr = config.weight_decay, config.base_lr
  if not decay or lr > _MAX_RATE or config.pretrained != 'scratch':
    return ''
  if config.optimizer in SCALED_BY_NORM:  # There is only one convention.
    return ''
  by_lr = config.weight_decay_scale == 'lr'
  if by_lr == (decay > _LIMIT):
    return ''
  per_step = decay * lr if by_lr else decay
  return (
    f'warning: config.weight_decay={decay:g} shrinks kernels by the fraction '
    f'{per_step:.2g} per step. If this value is '
    + (
      'of big_vision, set config.weight_decay_scale=schedule'
      if by_lr
      else 'of a paper, of torch or of optax, set config.weight_decay_scale=lr'
    )
  )
