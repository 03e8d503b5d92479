"""Optimizers by name: gradients to updates, without a learning rate.

A run multiplies the updates by −lr(t). Weight decay is a part of the updates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from vit_jax.optim import muon
from vit_jax.optim import weight_decay


def _sgd(config, decay):
  del decay
  return optax.trace(config.momentum, accumulator_dtype=config.momentum_dtype)


def _scale_by_adam(config, **options):
  return optax.scale_by_adam(
    b1=config.adam_b1,
    b2=config.adam_b2,
    mu_dtype=config.momentum_dtype,
    **options,
  )


def _adam(config, decay):
  return optax.chain(_scale_by_adam(config), decay.add())


def _lion(config, decay):
  """Chen et al. 2023, arXiv 2302.06675, algorithm 2."""
  return optax.chain(
    optax.scale_by_lion(
      b1=config.lion_b1, b2=config.lion_b2, mu_dtype=config.momentum_dtype
    ),
    decay.add(),
  )


def _lamb(config, decay):
  """You et al. 2019, arXiv 1904.00962, algorithm 2.

  As in DeiT III and timm, arrays without weight decay are not adapted.
  """
  return optax.chain(
    _scale_by_adam(config, eps=1e-6),
    decay.add(),
    optax.masked(optax.scale_by_trust_ratio(), decay.mask),
  )


def _lars(config, decay):
  """You et al. 2017, arXiv 1708.03888, with the rate after the momentum.

  This is the form of MoCo v3, MAE and timm, with the trust coefficient 0.001.
  The weight decay joins the gradient, and so the momentum.
  """
  return optax.chain(
    decay.add(),
    optax.masked(
      optax.scale_by_trust_ratio(trust_coefficient=0.001), decay.mask
    ),
    _sgd(config, decay),
  )


def _adafactor(config, decay):
  """Zhai et al. 2021, arXiv 2106.04560, section 3.4, as in big_vision.

  The second moment is factored if both axes have 32 values or more. Updates are
  neither clipped nor scaled by the parameters.
  """

  def second_moment_decay(step, exponent):
    t = step.astype(jnp.float32) + 1
    return jnp.minimum(config.adafactor_b2_cap, 1 - t**-exponent)

  return optax.chain(
    optax.scale_by_factored_rms(
      decay_rate=0.8,
      min_dim_size_to_factor=32,
      epsilon=1e-30,
      decay_rate_fn=second_moment_decay,
    ),
    optax.ema(
      config.momentum, debias=False, accumulator_dtype=config.momentum_dtype
    ),
    decay.add(),
  )


class _Direction(NamedTuple):
  """A row of `DIRECTIONS`.

  Attributes:
    make: (config, `WeightDecay`) -> gradient transformation.
    momenta: settings that are the decays of its momenta.
    decays: whether it has weight decay.
  """

  make: Callable
  momenta: tuple[str, ...]
  decays: bool = True


DIRECTIONS = {
  'sgd': _Direction(_sgd, ('momentum',), decays=False),
  'adam': _Direction(_adam, ('adam_b1',), decays=False),
  'adamw': _Direction(_adam, ('adam_b1',)),
  'lion': _Direction(_lion, ('lion_b2',)),
  'lamb': _Direction(_lamb, ('adam_b1',)),
  'lars': _Direction(_lars, ('momentum',)),
  'adafactor': _Direction(_adafactor, ('momentum',)),
  'muon': _Direction(muon.make, ('muon_momentum', 'adam_b1')),
}

# Up to this decay, a momentum in bfloat16 changes updates by less than 2 %
# (benchmarks/results/momentum_dtype.md).
_MAX_BFLOAT16_DECAY = 0.9


def get_direction(
  config: ConfigDict, decay: weight_decay.WeightDecay
) -> optax.GradientTransformation:
  """Returns the optimizer `config.optimizer`, without a learning rate.

  Raises:
    ValueError: a setting is unknown, or settings contradict each other.
  """
  if config.optimizer not in DIRECTIONS:
    raise ValueError(
      f'config.optimizer={config.optimizer!r} is not one of '
      + ', '.join(DIRECTIONS)
    )
  row = DIRECTIONS[config.optimizer]
  _check_decay(config, row)
  for name in row.momenta:
    _check_momentum(config, name)
  return row.make(config, decay)


def _check_decay(config, row):
  """Raises ValueError if nothing would read a setting of the weight decay."""
  others = [name for name, x in DIRECTIONS.items() if x.decays]
  for name, is_set in (
    ('weight_decay', config.weight_decay),
    ('weight_decay_end', config.weight_decay_end is not None),
    ('decay_rules', config.decay_rules),
    ('weight_decay_scale', config.weight_decay_scale != 'lr'),
  ):
    if is_set and not row.decays:
      raise ValueError(
        f'config.{name}={config[name]!r} needs config.optimizer='
        f'{" or ".join(others)}, because {config.optimizer} has no weight decay'
      )
  # The rules also select the arrays that LAMB and LARS adapt.
  adapts = config.optimizer in weight_decay.SCALED_BY_NORM
  if config.decay_rules and not weight_decay.is_used(config) and not adapts:
    raise ValueError(
      f'config.decay_rules={config.decay_rules!r} are factors of '
      'config.weight_decay, which is 0. Set it, or remove the rules'
    )


def _check_momentum(config, name):
  """Raises ValueError if the momentum decay is too large for bfloat16."""
  if config.momentum_dtype == 'bfloat16' and config[name] > _MAX_BFLOAT16_DECAY:
    raise ValueError(
      f'config.{name}={config[name]} is too large for '
      'config.momentum_dtype=bfloat16. Above '
      f'{_MAX_BFLOAT16_DECAY}, rounding errors change the updates: at 0.99 by '
      '15 to 31 %. Use config.momentum_dtype=float32'
    )
