"""The network of DINO: Caron et al. 2021, arXiv 2104.14294, section 3.1.

Shapes:  B batch · D width of a token · K prototypes
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.vit import VisionTransformer

_HIDDEN, _BOTTLENECK = 2048, 256  # widths of the projection head
_EPSILON = 1e-12


def _unit(x, axis):
  """Returns vectors along an axis, divided by their length."""
  length = jnp.sqrt(jnp.sum(jnp.square(x), axis, keepdims=True))
  return x / jnp.maximum(length, _EPSILON)


class Prototypes(nn.Module):
  """Cosines of vectors [B, D] and K prototypes: [B, K].

  As in the authors' code, the initial values are uniform in ±1/sqrt(D).

  Attributes:
    num_prototypes: K.
  """

  num_prototypes: int

  @nn.compact
  def __call__(self, x):
    kernel = self.param(
      'kernel',
      nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
      (x.shape[-1], self.num_prototypes),
      jnp.float32,
    )
    return _unit(x, -1) @ _unit(kernel, 0)


class DinoModel(nn.Module):
  """An encoder and a projection head with K prototypes.

  The head has three dense layers with GELU between them. Its output has length
  1, and so do the prototypes. The outputs of the model are cosines.

  Attributes:
    encoder: a ViT without a head, which returns [B, D].
    num_prototypes: K.
  """

  encoder: VisionTransformer
  num_prototypes: int

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns the cosines with all prototypes [B, K].

    Args:
      images: [B, H, W, C] in [-1, 1]; any size that the encoder accepts.
      train: whether dropout and drop path are on.
    """
    x = self.encoder(images, train=train)
    init = nn.initializers.truncated_normal(0.02)
    for i, width in enumerate((_HIDDEN, _HIDDEN, _BOTTLENECK)):
      x = nn.Dense(width, kernel_init=init, name=f'projection_{i}')(x)
      x = nn.gelu(x, approximate=False) if i < 2 else x
    prototypes = Prototypes(
      num_prototypes=self.num_prototypes, name='prototypes'
    )
    return prototypes(x)
