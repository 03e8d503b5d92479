"""Multi-head attention pooling (Zhai et al. 2021, arXiv 2106.04560, section 3).

One learned query attends to all tokens, as in Set Transformer (arXiv
1810.00825).

Parameter names are those of published big_vision checkpoints.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models.layers import attention
from vit_jax.models.layers import linear
from vit_jax.models.layers import mlp


class AttentionPooling(nn.Module):
  """Attention of one learned query (the probe) to all tokens, then an MLP.

  Attributes as in `attention` and `mlp`, except:
    is_probe_only: whether the probe is the query itself, without a projection,
      and no MLP follows (AIMv2, arXiv 2411.14402).
  """

  mlp_dim: int
  num_heads: int
  head_dim: int | None = None
  gelu: str = 'tanh'
  norm: str = 'layer'
  norm_epsilon: float = 1e-6
  is_probe_only: bool = False
  qkv_bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, N, D] -> [B, D]
    probe = self.param(
      'probe',
      nn.initializers.xavier_uniform(),
      (1, 1, x.shape[-1]),
      jnp.float32,
    )
    probe = jnp.broadcast_to(
      probe.astype(x.dtype), (x.shape[0], 1, x.shape[-1])
    )
    y = attention.MultiHeadAttention(
      num_heads=self.num_heads,
      head_dim=None if self.is_probe_only else self.head_dim,
      qkv_bias=self.qkv_bias,
      projects_query=not self.is_probe_only,
      dtype=self.dtype,
      name='MultiHeadDotProductAttention_0',
    )(probe, x)
    if self.is_probe_only:
      return y[:, 0]
    z = linear.norm(
      self.norm, 'LayerNorm_0', epsilon=self.norm_epsilon, dtype=self.dtype
    )(y)
    z = mlp.MlpBlock(
      mlp_dim=self.mlp_dim, dtype=self.dtype, gelu=self.gelu, name='MlpBlock_0'
    )(z)
    return (y + z)[:, 0]
