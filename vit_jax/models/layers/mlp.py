"""The MLP of a Transformer layer (ViT paper, arXiv 2010.11929, section 3.1).

Shapes:  B batch · T tokens · D width of a token · M mlp_dim

Parameter names are those of the published checkpoints.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import dropout
from vit_jax.models.layers import linear

GELU = ('tanh', 'exact')


def check(kind: str) -> None:
  """Raises ValueError if `kind` is not in `GELU`."""
  if kind not in GELU:
    raise ValueError(f'gelu={kind!r} is not one of {", ".join(GELU)}.')


def gelu(x: jax.Array, kind: str) -> jax.Array:
  """Returns GELU (arXiv 1606.08415), 'exact' or with 'tanh' approximation."""
  return nn.gelu(x, approximate=kind == 'tanh')


class MlpBlock(nn.Module):
  """Two dense layers with GELU between them and dropout after each layer."""

  mlp_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  gelu: str = 'tanh'

  @nn.compact
  def __call__(self, x, key=None):  # [B, T, D] -> [B, T, D]
    def dense(features, name):
      return linear.Dense(
        features,
        dtype=self.dtype,
        name=name,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6),
      )

    keys = dropout.split(key, 2)
    hidden_size = x.shape[-1]
    x = gelu(dense(self.mlp_dim, 'Dense_0')(x), self.gelu)  # [B, T, M]
    x = dropout.dropout(x, self.dropout_rate, keys[0])
    x = dense(hidden_size, 'Dense_1')(x)  # [B, T, D]
    return dropout.dropout(x, self.dropout_rate, keys[1])
