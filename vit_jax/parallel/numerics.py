"""Fixed values for the JAX options that change results, and random keys."""

from collections.abc import Iterator
import contextlib
from typing import NamedTuple

import jax
import numpy as np


@contextlib.contextmanager
def fixed() -> Iterator[None]:
  """Protects results and dtypes from `JAX_…` environment variables.

  `JAX_DEFAULT_MATMUL_PRECISION` still has an effect. A user may trade the
  precision of matrix products for speed on GPU and TPU.
  """
  with (
    jax.enable_x64(False),
    jax.threefry_partitionable(True),
    jax.numpy_dtype_promotion('standard'),
    jax.numpy_rank_promotion('allow'),
  ):
    yield


def random_key(seed: int) -> jax.Array:
  """Returns `jax.random.key(seed)` for 0 ≤ seed < 2^32, in any environment.

  `jax.random.key` depends on JAX_DEFAULT_PRNG_IMPL and JAX_RANDOM_SEED_OFFSET.
  """
  return jax.random.wrap_key_data(
    np.array([0, seed], np.uint32), impl='threefry2x32'
  )


# Numbers that are folded into the key of a run, one for each purpose.
_TRANSFORM = 1
_ROWS = 2


class RunKeys(NamedTuple):
  """Random keys of a run, one for each purpose."""

  init: jax.Array  # initial parameters
  dropout: jax.Array  # dropout and other random draws of a loss
  transform: jax.Array  # changes to a batch on the device


def run_keys(seed: int) -> RunKeys:
  """Returns the `RunKeys` of a seed."""
  key = random_key(seed)
  return RunKeys(*jax.random.split(key), jax.random.fold_in(key, _TRANSFORM))


def row_keys(seed: int, positions: jax.Array) -> jax.Array:
  """Returns a key [B] for each example, to crop and to flip it on the device.

  Args:
    seed: seed of the run.
    positions: positions in the stream of training examples, uint32 [B].
  """
  key = jax.random.fold_in(random_key(seed), _ROWS)
  return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
