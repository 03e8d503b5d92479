"""The nearest features of each image, by cosine.

Shapes:  N images · M stored images · D width of the features
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_SIMILARITIES = 2**26  # largest number in memory at once


def normalized(features: np.ndarray) -> np.ndarray:
  """Returns features [N, D] with norm 1, float32; zeros stay zeros."""
  features = np.asarray(features, np.float32)
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(norms, np.finfo(np.float32).tiny)


def nearest(
  queries: np.ndarray, stored: np.ndarray, count: int, skips_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (indices, cosines) [N, count] of the nearest stored features.

  They are in descending order of the cosine. Of equal ones, the lower index is
  first. One local device computes them.

  Args:
    queries: features [N, D] with norm 1.
    stored: features [M, D] with norm 1.
    count: number of neighbors, at most M, or M − 1 with `skips_self`.
    skips_self: whether query i is stored feature i, which is no neighbor of
      itself.
  """
  device = jax.local_devices()[0]
  stored = jax.device_put(stored, device)
  size = min(len(queries), max(1, _SIMILARITIES // len(stored)))
  found = []
  for first in range(0, len(queries), size):
    rows = queries[first : first + size]
    padded = np.pad(rows, [(0, size - len(rows)), (0, 0)])
    cosines, indices = jax.device_get(
      _largest(padded, stored, first, count, skips_self)
    )
    found.append((indices[: len(rows)], cosines[: len(rows)]))
  return tuple(np.concatenate(x) for x in zip(*found, strict=True))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _largest(rows, stored, first, count, skips_self):
  """Returns (cosines, indices) [n, count] for queries [n, D]."""
  cosines = jnp.dot(rows, stored.T, precision='highest')
  if skips_self:
    own = first + jnp.arange(len(rows))[:, None]
    is_own = own == jnp.arange(len(stored))
    cosines = jnp.where(is_own, -jnp.inf, cosines)
  return jax.lax.top_k(cosines, count)
