"""What is dropped in training: activations, or whole residual branches.

Every function takes a key, and drops nothing where it is None, as in
evaluation. Keys are handed down, not made from module paths, so that a layer
draws the same whether it is unrolled, rematerialised or scanned.
"""

import jax
import jax.numpy as jnp
import numpy as np


def split(key: jax.Array | None, num: int) -> jax.Array | list[None]:
  """`num` keys; Nones of None."""
  return [None] * num if key is None else jax.random.split(key, num)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """`x` with a share `rate` set to 0, and the rest scaled to the same mean.

  The choice takes 16 random bits, two choices for each number that is drawn:
  on a CPU, drawing is most of the work, and this halves it. The share is a
  multiple of 2^-16.
  """
  if key is None or not rate:
    return x
  num_kept = min(max(round((1 - rate) * 2**16), 1), 2**16)  # of all values
  *batch, width = x.shape
  bits = jax.random.bits(key, (*batch, -(-width // 2)), jnp.uint32)
  bits = jax.lax.bitcast_convert_type(bits, jnp.uint16)  # [..., width / 2, 2]
  bits = bits.reshape(*batch, -1)[..., :width]
  return jnp.where(bits <= num_kept - 1, x * (2**16 / num_kept), 0)


def drop_path(
  y: jax.Array, rate: float | jax.Array, key: jax.Array | None
) -> jax.Array:
  """`y` [B, ...] with whole samples set to 0, the rest times 1 / (1 − rate).

  Stochastic depth (Huang et al. 2016, arXiv 1603.09382, section 3), where `y`
  is a residual branch.

  Args:
    y: of a batch.
    rate: probability of a sample's being dropped; a number, or a scalar array.
    key: of the choice, or None.
  """
  if key is None:
    return y
  kept = jax.random.bernoulli(key, 1 - rate, (len(y),) + (1,) * (y.ndim - 1))
  return jnp.where(kept, y / (1 - rate), 0).astype(y.dtype)


def linear_rates(rate: float, num_layers: int) -> np.ndarray:
  """Rates of `drop_path`, from 0 in the first layer to `rate` in the last.

  AugReg (arXiv 2106.10270, section 3) and MLP-Mixer (arXiv 2105.01601) have it
  so.

  Returns:
    [num_layers]
  """
  return np.linspace(0, rate, num_layers, dtype=np.float32)
