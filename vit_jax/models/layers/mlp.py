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

GELU = ('tanh', 'exact', 'quick')


def check(kind: str) -> None:
  """Raises ValueError if `kind` is not in `GELU`."""
  if kind not in GELU:
    raise ValueError(f'gelu={kind!r} is not one of {", ".join(GELU)}.')


def gelu(x: jax.Array, kind: str) -> jax.Array:
  """Returns GELU (arXiv 1606.08415), 'exact' or an approximation.

  'tanh' and 'quick', which is x · sigmoid(1.702 x), are in section 2.
  """
  if kind == 'quick':
    return x * nn.sigmoid(1.702 * x)
  return nn.gelu(x, approximate=kind == 'tanh')


class MlpBlock(nn.Module):
  """Two dense layers with GELU between them and dropout after each layer.

  Attributes:
    mlp_dim: M, width of the hidden layer.
    dropout_rate: dropout rate after both layers.
    dtype: dtype of the activations.
    gelu: see `gelu`.
    is_gated: whether the hidden layer is SwiGLU: SiLU(x·W + a) · (x·V + b)
      (Shazeer 2020, arXiv 2002.05202, equation 6, with biases).
    has_bias: whether the dense layers have a bias.
    norm: kind of the norm before the second layer; None means no norm.
    norm_epsilon: term added to the variance in this norm.
  """

  mlp_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  gelu: str = 'tanh'
  is_gated: bool = False
  has_bias: bool = True
  norm: str | None = None
  norm_epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x, key=None):  # [B, T, D] -> [B, T, D]
    def dense(features, name):
      return linear.Dense(
        features,
        use_bias=self.has_bias,
        dtype=self.dtype,
        name=name,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6),
      )

    keys = dropout.split(key, 2)
    hidden_size = x.shape[-1]
    y = dense(self.mlp_dim, 'Dense_0')(x)  # [B, T, M]
    if self.is_gated:
      x = nn.silu(dense(self.mlp_dim, 'gate')(x)) * y
    else:
      x = gelu(y, self.gelu)
    x = dropout.dropout(x, self.dropout_rate, keys[0])
    if self.norm:
      x = linear.norm(
        self.norm, 'norm', epsilon=self.norm_epsilon, dtype=self.dtype
      )(x)
    x = dense(hidden_size, 'Dense_1')(x)  # [B, T, D]
    return dropout.dropout(x, self.dropout_rate, keys[1])
