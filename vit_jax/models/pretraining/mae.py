"""Masked autoencoder (MAE): He et al. 2021, arXiv 2111.06377.

Shapes:  B batch · N patches · K visible patches · T class tokens · P patch size
         C channels · D, E widths of encoder and decoder
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import encoder as encoders
from vit_jax.models.layers import patches
from vit_jax.models.vit import VisionTransformer


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
  """Settings of the decoder; see section 4.1 of the paper.

  Attributes:
    hidden_size: E.
    num_layers: number of blocks.
    num_heads: attention heads. The hidden layer of an MLP is 4·E wide.
    positions: 'sincos2d', or 'learned' for published weights, whose decoder has
      a table of positions.
  """

  hidden_size: int = 512
  num_layers: int = 8
  num_heads: int = 16
  positions: str = 'sincos2d'


class Decoder(nn.Module):
  """Predicts the pixels of all patches from the tokens of the visible ones.

  Attributes:
    settings: sizes.
    layer: settings of a block of the encoder. The decoder has the same GELU,
      norms and dtype.
    num_outputs: numbers to predict for each patch, P²·C.
    attention: 'auto', 'plain' or 'fused'.
    remat: see `encoder.Encoder`.
    scan: see `encoder.Encoder`.
  """

  settings: DecoderSettings
  layer: encoders.LayerSettings
  num_outputs: int
  attention: str = 'auto'
  remat: str = 'none'
  scan: bool = False

  @nn.compact
  def __call__(self, tokens, order, *, train):
    """[B, T + K, D] -> [B, N, P²·C].

    Args:
      tokens: class tokens and visible patches.
      order: permutation [B, N] of the patches; the first K are visible.
      train: whether dropout is on.
    """
    s, layer = self.settings, self.layer
    width, layout = s.hidden_size, layer.layout
    dense = nn.initializers.xavier_uniform()
    mask = self.param(
      'mask_token', nn.initializers.normal(0.02), (1, 1, width), jnp.float32
    )
    x = nn.Dense(width, kernel_init=dense, dtype=layer.dtype, name='embed')(
      tokens.astype(layer.dtype)
    )
    visible = x[:, layout.num_tokens :]
    num_hidden = layout.num_patches - visible.shape[1]
    hidden = jnp.broadcast_to(mask, (len(x), num_hidden, width))
    in_order = jnp.concatenate([visible, hidden.astype(x.dtype)], axis=1)
    place = jnp.argsort(order, axis=1)
    all_patches = jnp.take_along_axis(in_order, place[..., None], axis=1)
    x = jnp.concatenate([x[:, : layout.num_tokens], all_patches], axis=1)
    x = encoders.Encoder(
      num_layers=s.num_layers,
      layer=layer,
      attention=self.attention,
      remat=self.remat,
      scan=self.scan,
      name='Transformer',
    )(x, train=train)
    x = nn.Dense(
      self.num_outputs, kernel_init=dense, dtype=layer.dtype, name='pred'
    )(layout.patches(x))
    return x.astype(jnp.float32)


class MaskedAutoencoder(nn.Module):
  """Encodes the visible patches, and decodes the pixels of all patches.

  Attributes:
    encoder: a ViT without a head that returns class tokens and patches.
    decoder_settings: sizes of the decoder.
  """

  encoder: VisionTransformer
  decoder_settings: DecoderSettings

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, order: Any, num_visible: int
  ) -> jax.Array:
    """Returns the predicted pixels of all patches [B, N, P²·C].

    Args:
      images: [B, H, W, C] in [-1, 1].
      train: whether dropout is on.
      order: permutation [B, N] of the patches.
      num_visible: K; the first K patches of `order` are visible.
    """
    model, s = self.encoder, self.decoder_settings
    layout = model.layout(*images.shape[1:3])
    tokens = model(images, train=train, kept=order[:, :num_visible])
    decoder = Decoder(
      settings=s,
      layer=encoders.LayerSettings(
        mlp_dim=4 * s.hidden_size,
        num_heads=s.num_heads,
        gelu=model.gelu,
        norm=model.norm,
        norm_epsilon=model.norm_epsilon,
        positions=s.positions,
        layout=patches.Layout(grid=layout.grid, num_tokens=layout.num_tokens),
        dtype=model.dtype,
      ),
      num_outputs=model.patch_size**2 * images.shape[-1],
      attention=model.attention,
      remat=model.remat,
      scan=model.scan,
      name='decoder',
    )
    return decoder(tokens, order, train=train)
