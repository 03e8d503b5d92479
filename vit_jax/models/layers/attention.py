"""Multi-head attention: ViT paper (arXiv 2010.11929), appendix A.

Shapes:  B batch · T tokens · S tokens attended to · D width of a token
         H heads · d width of a head

Parameter names are those of the published checkpoints.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import dropout
from vit_jax.models.layers import linear
from vit_jax.models.layers import patches
from vit_jax.models.layers import positions
from vit_jax.models.layers import rotary

IMPLEMENTATIONS = ('auto', 'plain', 'fused')
# Collection of zeros that are added to attention weights, at the paths where
# the weights are sown. Their gradients are those of the weights.
OFFSETS = 'attention_offsets'


def device() -> tuple[str, tuple[int, ...] | None]:
  """Returns (platform, compute capability) of the first device.

  The choice of the attention kernel depends on both. The capability of an
  NVIDIA GPU is a tuple such as (9, 0). On other devices, it is None.
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
  """Returns why cuDNN's fused attention cannot run; '' if it can.

  Args:
    platform: platform of the device: 'cpu', 'gpu' or 'tpu'.
    capability: compute capability from `device()`.
    dtype: dtype of query, key and value.
    head_dim: d, width of a head.
    num_tokens: T, number of tokens.
    has_bias: whether a bias is added to the logits (relative positions).
    drops_weights: whether this pass applies dropout to attention weights.
    train: whether gradients are computed.
  """
  dtype = jnp.dtype(dtype)
  for forbids, reason in (
    (
      platform != 'gpu' or not capability,
      f'needs an NVIDIA GPU, but the device is not one (platform: {platform})',
    ),
    (
      capability and capability < (8, 0),
      'needs compute capability 8.0 or higher, but the GPU has '
      + '.'.join(map(str, capability or ())),
    ),
    (
      dtype not in (jnp.float16, jnp.bfloat16),
      f'needs dtype bfloat16 or float16, not {dtype}',
    ),
    (
      head_dim > 128 or head_dim % 8,
      f'needs head_dim 8, 16, … 128, not {head_dim}',
    ),
    (drops_weights, 'does not support attention_dropout_rate'),
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
  offset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns softmax(q·k / √d + bias)·v and the softmax (computed in float32).

  Args:
    query: queries [B, T, H, d].
    key: keys [B, S, H, d].
    value: values [B, S, H, d].
    bias: term added to the logits, [1 or B, H, T, S], or None.
    dropout_rate: dropout rate of the softmax.
    dropout_key: random key, or None for no dropout.
    offset: term added to the softmax [B, H, T, S], or None.

  Returns:
    Outputs [B, T, H, d] and attention weights before dropout [B, H, T, S].
  """
  query = query / math.sqrt(query.shape[-1])
  logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
  if bias is not None:
    logits = logits + bias
  weights = nn.softmax(logits.astype(jnp.float32)).astype(query.dtype)
  if offset is not None:
    weights = weights + offset
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
  """Returns the outputs of `plain` without storing the [T, S] weights."""
  return jax.nn.dot_product_attention(
    query, key, value, bias, implementation=implementation
  )


class MultiHeadAttention(nn.Module):
  """Multi-head attention from one sequence to another or to itself.

  The plain implementation sows its attention weights [B, H, T, S], before
  dropout, as `intermediates/weights`. The fused one has none; `encoder.Encoder`
  uses the plain one if 'intermediates' is mutable. Then the weights also get
  the collection `OFFSETS`, if it is given.

  Attributes:
    num_heads: H, number of heads.
    head_dim: d, width of a head; None is D / H.
    dropout_rate: dropout rate of the attention weights.
    qkv_bias: whether query, key and value have a bias.
    key_bias: with `qkv_bias`, whether the key has one, too.
    out_bias: whether the last projection has a bias.
    projects_query: whether queries are projected.
    projects_out: whether the outputs of all heads are projected.
    qk_norm: whether queries and keys pass a norm over d (Dehghani et al. 2023,
      arXiv 2302.05442, section 2.1).
    qk_norm_bias: whether these norms have a bias, if they are LayerNorms.
    out_norm: whether the outputs of all heads pass a norm over H·d before the
      last projection (Wang et al. 2022, arXiv 2210.06423).
    norm: kind of these norms; see `linear.norm`.
    norm_epsilon: term added to the variance in these norms.
    dtype: dtype of the activations.
    relative: layout of the tokens for relative positions that depend on the
      query; None disables them.
    rotary_halves: which channels are rotated together; see `rotary.Rotary`.
    is_fused: whether to use cuDNN's kernel.
  """

  num_heads: int
  head_dim: int | None = None
  dropout_rate: float = 0.0
  qkv_bias: bool = True
  key_bias: bool = True
  out_bias: bool = True
  projects_query: bool = True
  projects_out: bool = True
  qk_norm: bool = False
  qk_norm_bias: bool = False
  out_norm: bool = False
  norm: str = 'layer'
  norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32
  relative: patches.Layout | None = None
  rotary_halves: bool = False
  is_fused: bool = False

  @nn.compact
  def __call__(
    self, x, context=None, *, kept=None, bias=None, turns=None, key=None
  ):
    """[B, T, D], [B, S, D] -> [B, T, D].

    Args:
      x: tokens of the queries.
      context: tokens of the keys and values; None is `x`.
      kept: indices of the patches in `x` [B, K], for relative positions; None
        is all patches.
      bias: term added to the logits [1 or B, H, T, S], or None.
      turns: cosines and sines that rotate queries and keys, or None; see
        `rotary.rotate`.
      key: random key of dropout; None, for evaluation, disables dropout.
    """
    context = x if context is None else context
    heads = self.num_heads, self.head_dim or x.shape[-1] // self.num_heads

    def project(name, inputs):
      return linear.DenseGeneral(
        heads,
        use_bias=self.qkv_bias and (name != 'key' or self.key_bias),
        dtype=self.dtype,
        name=name,
        kernel_init=nn.initializers.xavier_uniform(),
      )(inputs)

    norm = functools.partial(
      linear.norm, self.norm, epsilon=self.norm_epsilon, dtype=self.dtype
    )
    if self.projects_query:
      query = project('query', x)  # [B, T, H, d]
    else:
      query = x.reshape(*x.shape[:2], self.num_heads, -1)
    keys = project('key', context)  # [B, S, H, d]
    values = project('value', context)
    if self.qk_norm:
      options = {'use_bias': self.qk_norm_bias} if self.norm == 'layer' else {}
      query = norm('query_ln', **options)(query)
      keys = norm('key_ln', **options)(keys)
    if turns is not None:
      query = rotary.rotate(query, *turns, self.rotary_halves)
      keys = rotary.rotate(keys, *turns, self.rotary_halves)
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
        offset=self.get_variable(OFFSETS, 'weights'),
      )
      self.sow('intermediates', 'weights', weights)
    if self.out_norm:
      y = norm('norm')(y.reshape(*y.shape[:-2], -1)).reshape(y.shape)
    if not self.projects_out:
      return y.reshape(*y.shape[:-2], -1)
    return linear.DenseGeneral(
      x.shape[-1],
      axis=(-2, -1),
      use_bias=self.out_bias,
      dtype=self.dtype,
      name='out',
      kernel_init=nn.initializers.xavier_uniform(),
    )(y)
