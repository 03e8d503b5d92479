"""Masked patch prediction: ViT paper (arXiv 2010.11929), appendix B.1.2.

Shapes:  B batch · N patches · D width of a token · F outputs for each patch
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.vit import VisionTransformer


class MaskedPatchModel(nn.Module):
  """Predicts something about each patch from an image with corrupted patches.

  A learned embedding replaces the embeddings of masked patches. The embedding
  of another patch replaces those of exchanged patches. Positions are added
  later, so they stay true.

  Attributes:
    encoder: a ViT that returns the tokens of all patches, [B, N, D].
    num_outputs: F.
  """

  encoder: VisionTransformer
  num_outputs: int

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, source=None, masked=None
  ) -> jax.Array:
    """Returns the predictions [B, N, F].

    Args:
      images: [B, H, W, C] in [-1, 1].
      train: whether dropout is on.
      source: indices [B, N] of the patches whose embeddings are used.
      masked: bool [B, N], True for patches whose embedding is masked.
    """
    width = self.encoder.hidden_size
    mask = self.param(
      'mask_embedding', nn.initializers.normal(0.02), (1, 1, width), jnp.float32
    )

    def corrupt(x):
      x = jnp.take_along_axis(x, source[..., None], axis=1)
      return jnp.where(masked[..., None], mask.astype(x.dtype), x)

    is_corrupt = source is not None
    tokens = self.encoder(
      images, train=train, corrupt=corrupt if is_corrupt else None
    )
    return nn.Dense(self.num_outputs, name='patch_head')(tokens)
