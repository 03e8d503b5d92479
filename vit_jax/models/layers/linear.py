"""Dense layers over tokens, computed as products of two matrices.

For inputs [B, T, D], the gradient of a kernel sums over two axes. For this, XLA
on CPUs copies both operands. Inputs of shape [B·T, D] avoid the copies. The
results are equal, and the layers are faster (docs/benchmarks.md).
"""

import functools
import math

import flax.linen as nn
from jax import lax


def _dot_general(lhs, rhs, dimension_numbers, **options):
  """Returns [..., I…] times [I…, O…], as a product of two matrices."""
  (axes, kernel_axes), (batch_axes, _) = dimension_numbers
  count = len(kernel_axes)
  assert not batch_axes and tuple(kernel_axes) == tuple(range(count))
  assert tuple(axes) == tuple(range(lhs.ndim - count, lhs.ndim))
  rows, columns = lhs.shape[:-count], rhs.shape[count:]
  width = math.prod(rhs.shape[:count])
  product = lax.dot_general(
    lhs.reshape(math.prod(rows), width),
    rhs.reshape(width, math.prod(columns)),
    (((1,), (0,)), ((), ())),
    **options,
  )
  return product.reshape(*rows, *columns)


Dense = functools.partial(nn.Dense, dot_general=_dot_general)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=_dot_general)
