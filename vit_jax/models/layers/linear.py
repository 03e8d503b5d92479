"""Dense layers and norms over the channels of tokens.

Dense layers are computed as products of two matrices. For inputs [B, T, D], the
gradient of a kernel sums over two axes. For this, XLA on CPUs copies both
operands. Inputs of shape [B·T, D] avoid the copies. The results are equal, and
the layers are faster (docs/benchmarks.md).
"""

import functools
import math
from typing import Any

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

NORMS = {'layer': nn.LayerNorm, 'rms': nn.RMSNorm}


def norm(
  kind: str, name: str, *, epsilon: float, dtype: Any, **options: Any
) -> nn.Module:
  """Returns a norm over the last axis.

  Args:
    kind: 'layer' (arXiv 1607.06450), or 'rms', which has neither mean nor bias
      (arXiv 1910.07467).
    name: name of the module.
    epsilon: term added to the variance or to the mean square.
    dtype: dtype of the activations.
    **options: further attributes of the module.
  """
  return NORMS[kind](epsilon=epsilon, dtype=dtype, name=name, **options)
