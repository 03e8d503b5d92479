"""Dropout of activations, and stochastic depth for residual branches.

`dropout` and `drop_path` take a random key. Without a key, as in evaluation,
they drop nothing. Keys are passed as arguments and do not depend on module
paths. So the dropped values are equal for unrolled, rematerialized and scanned
layers.
"""

import jax
import jax.numpy as jnp
import numpy as np


def split(key: jax.Array | None, num: int) -> jax.Array | list[None]:
  """Returns `num` keys, or a list of `num` times None if the key is None."""
  return [None] * num if key is None else jax.random.split(key, num)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Sets a fraction `rate` of `x` to 0 and scales the rest to keep the mean.

  Each value uses 16 random bits, so one random 32-bit number decides for two
  values. On a CPU, most of the time is spent on random numbers; 16 bits instead
  of 32 halve this time. The rate is rounded to a multiple of 2^-16.
  """
  if key is None or not rate:
    return x
  num_kept = min(max(round((1 - rate) * 2**16), 1), 2**16)  # of 2^16
  *batch, width = x.shape
  bits = jax.random.bits(key, (*batch, -(-width // 2)), jnp.uint32)
  bits = jax.lax.bitcast_convert_type(bits, jnp.uint16)  # [..., width / 2, 2]
  bits = bits.reshape(*batch, -1)[..., :width]
  return jnp.where(bits <= num_kept - 1, x * (2**16 / num_kept), 0)


def drop_path(
  y: jax.Array, rate: float | jax.Array, key: jax.Array | None
) -> jax.Array:
  """Sets entire samples of `y` to 0 and multiplies the rest by 1 / (1 − rate).

  This is stochastic depth (Huang et al. 2016, arXiv 1603.09382, section 3) if
  `y` is a residual branch.

  Args:
    y: values of a batch [B, ...].
    rate: probability that a sample is dropped: a number or a scalar array.
    key: random key, or None to drop nothing.
  """
  if key is None:
    return y
  kept = jax.random.bernoulli(key, 1 - rate, (len(y),) + (1,) * (y.ndim - 1))
  return jnp.where(kept, y / (1 - rate), 0).astype(y.dtype)


# How the rate of `drop_path` depends on the depth.
SCHEDULES = ('linear', 'constant')


def path_rates(
  rate: float, num_layers: int, schedule: str = 'linear'
) -> np.ndarray:
  """Returns rates of `drop_path` for all layers, float32 [num_layers].

  Args:
    rate: rate of the last layer.
    num_layers: number of layers.
    schedule: 'linear': the rate rises from 0, as in AugReg (arXiv 2106.10270,
      section 3) and MLP-Mixer (arXiv 2105.01601). 'constant': all layers have
      the same rate, as in the code of DeiT III.
  """
  first = rate if schedule == 'constant' else 0
  return np.linspace(first, rate, num_layers, dtype=np.float32)


def check_schedule(schedule: str) -> None:
  """Raises ValueError if a schedule of `path_rates` is unknown."""
  if schedule not in SCHEDULES:
    raise ValueError(
      f'drop_path_schedule={schedule!r} is not one of {", ".join(SCHEDULES)}.'
    )
