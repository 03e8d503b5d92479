"""Multi-head attention: ViT paper (arXiv 2010.11929), appendix A.

Shapes:  B batch · T tokens · S tokens attended to · D width of a token
         H heads · d width of a head

Parameter names are the published checkpoint format.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import dropout
from vit_jax.models.layers import linear
from vit_jax.models.layers import patches
from vit_jax.models.layers import positions

IMPLEMENTATIONS = ('auto', 'plain', 'fused')


def device() -> tuple[str, tuple[int, ...] | None]:
  """(platform, compute capability) that the fused kernel is chosen for.

  The capability is that of NVIDIA's GPUs, such as (9, 0); None elsewhere.
  """
  first = jax.devices()[0]
  capability = str(getattr(first, 'compute_capability', ''))
  if first.platform != 'gpu' or not capability.replace('.', '').isdigit():
    return first.platform, None
  return 'gpu', tuple(int(part) for part in capability.split('.'))


def why_not_fused(
  platform: str,
  capability: tuple[int, ...] | None,
  *,
  dtype: Any,
  head_dim: int,
  num_tokens: int,
  has_bias: bool,
  drops_weights: bool,
  train: bool,
) -> str:
  """What forbids cuDNN's fused attention, as words; '' if nothing does.

  Args:
    platform: of the device: 'cpu', 'gpu', 'tpu'.
    capability: from `device()`.
    dtype: of query, key and value.
    head_dim: d.
    num_tokens: T.
    has_bias: whether something is added to the logits (relative positions).
    drops_weights: whether attention weights are dropped in this pass.
    train: whether gradients are taken.
  """
  dtype = jnp.dtype(dtype)
  for forbids, reason in (
    (
      platform != 'gpu' or not capability,
      f'needs an NVIDIA GPU, and the device is a {platform}',
    ),
    (
      capability and capability < (8, 0),
      'needs compute capability 8.0, and the GPU has '
      + '.'.join(map(str, capability or ())),
    ),
    (
      dtype not in (jnp.float16, jnp.bfloat16),
      f'needs model.dtype bfloat16 or float16, not {dtype}',
    ),
    (
      head_dim > 128 or head_dim % 8,
      f'needs heads of width 8, 16, … 128, not {head_dim}',
    ),
    (drops_weights, 'has no attention dropout'),
    (
      has_bias and train and num_tokens % 2,
      'needs an even number of tokens to train relative positions, not '
      f'{num_tokens}',
    ),
  ):
    if forbids:
      return reason
  return ''


def plain(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  *,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """softmax(q·k / √d + bias)·v, and the softmax, which is taken in float32.

  Args:
    query: [B, T, H, d].
    key: [B, S, H, d].
    value: [B, S, H, d].
    bias: [B, H, T, S] or None.
    dropout_rate: on the softmax.
    dropout_key: None for no dropout.

  Returns:
    [B, T, H, d] and [B, H, T, S].
  """
  query = query / math.sqrt(query.shape[-1])
  logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
  if bias is not None:
    logits = logits + bias
  weights = nn.softmax(logits.astype(jnp.float32)).astype(query.dtype)
  dropped = dropout.dropout(weights, dropout_rate, dropout_key)
  return jnp.einsum('bhqk,bkhd->bqhd', dropped, value), weights


def fused(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  *,
  implementation: str = 'cudnn',
) -> jax.Array:
  """As `plain` without dropout, without ever holding the [T, S] weights."""
  return jax.nn.dot_product_attention(
    query, key, value, bias, implementation=implementation
  )


class MultiHeadAttention(nn.Module):
  """Attention of H heads from one sequence to another or to itself.

  Attention weights are sown as `intermediates/weights` where the plain
  implementation makes them.

  Attributes:
    num_heads: H.
    head_dim: d; None is D / H.
    dropout_rate: on the attention weights.
    qk_norm: whether queries and keys pass a LayerNorm without bias, over d
      (Dehghani et al. 2023, arXiv 2302.05442, section 2.1).
    norm_epsilon: of those norms.
    dtype: of the activations.
    relative: layout of the tokens for relative positions; None has none.
    is_fused: whether cuDNN's kernel is used.
  """

  num_heads: int
  head_dim: int | None = None
  dropout_rate: float = 0.0
  qk_norm: bool = False
  norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32
  relative: patches.Layout | None = None
  is_fused: bool = False

  @nn.compact
  def __call__(self, x, context=None, *, kept=None, key=None):
    """[B, T, D], [B, S, D] -> [B, T, D].

    Args:
      x: tokens that ask.
      context: tokens that are attended to; None is `x` itself.
      kept: patches that are left [B, K], for relative positions; None is all.
      key: for dropout; None, as in evaluation, drops nothing.
    """
    context = x if context is None else context
    heads = self.num_heads, self.head_dim or x.shape[-1] // self.num_heads

    def project(name, inputs):
      return linear.DenseGeneral(
        heads,
        dtype=self.dtype,
        name=name,
        kernel_init=nn.initializers.xavier_uniform(),
      )(inputs)

    def norm(name, y):
      return (
        nn.LayerNorm(
          epsilon=self.norm_epsilon, dtype=self.dtype, use_bias=False, name=name
        )(y)
        if self.qk_norm
        else y
      )

    query = norm('query_ln', project('query', x))  # [B, T, H, d]
    keys = norm('key_ln', project('key', context))  # [B, S, H, d]
    values = project('value', context)
    bias = None
    if self.relative is not None:
      bias = positions.RelativePositions(
        layout=self.relative, dtype=self.dtype, name='relative_positions'
      )(query, kept)
    if self.is_fused:
      y = fused(query, keys, values, bias)
    else:
      y, weights = plain(
        query,
        keys,
        values,
        bias,
        dropout_rate=self.dropout_rate,
        dropout_key=key,
      )
      self.sow('intermediates', 'weights', weights)
    return linear.DenseGeneral(
      x.shape[-1],
      axis=(-2, -1),
      dtype=self.dtype,
      name='out',
      kernel_init=nn.initializers.xavier_uniform(),
    )(y)
