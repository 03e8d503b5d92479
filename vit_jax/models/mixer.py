"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601, section 2).

Shapes:  B batch · H, W image height, width · C channels · P patch size
         N tokens · D hidden_size · K classes

Parameter names are the published checkpoint format.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import patches


class MixingMlp(nn.Module):
  """Two dense layers with a GELU between them, along the last axis."""

  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [..., n] -> [..., n]
    y = nn.Dense(self.mlp_dim, dtype=self.dtype, name='Dense_0')(x)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='Dense_1')(nn.gelu(y))


class MixerBlock(nn.Module):
  """Mixes tokens, then channels: equation 1 of the paper."""

  tokens_mlp_dim: int
  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, N, D] -> [B, N, D]
    y = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_0')(x)
    y = MixingMlp(self.tokens_mlp_dim, self.dtype,
                  name='token_mixing')(y.swapaxes(1, 2))
    x = x + y.swapaxes(1, 2)
    y = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_1')(x)
    return x + MixingMlp(self.mlp_dim, self.dtype,
                         name='channel_mixing')(y)


class MlpMixer(nn.Module):
  """Classifies images: `apply({'params': p}, images, train=False) -> logits`.

  Attributes:
    num_classes: K; 0 leaves out the head and returns the mean token [B, D].
    patch_size: P, side of a square patch in pixels.
    hidden_size: D, width of the residual stream.
    num_layers: blocks, each of which mixes tokens and channels.
    tokens_mlp_dim: width inside the MLPs over tokens.
    mlp_dim: width inside the MLPs over channels.
    dtype: of the activations; parameters stay in float32, and logits are
      returned in float32.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  num_layers: int
  tokens_mlp_dim: int
  mlp_dim: int
  dtype: Any = jnp.float32

  def grid_size(self, height, width):
    """Patches down and across an image; a ValueError if they do not divide."""
    return patches.grid_size(height, width, self.patch_size)

  @nn.compact
  def __call__(self, images, *, train):  # [B, H, W, C] -> [B, K]
    del train  # the same in training
    self.grid_size(*images.shape[1:3])
    x = nn.Conv(
        self.hidden_size, (self.patch_size,) * 2, strides=self.patch_size,
        padding='VALID', dtype=self.dtype, name='stem')(images)
    x = x.reshape(x.shape[0], -1, self.hidden_size)  # [B, N, D]
    for layer in range(self.num_layers):
      x = MixerBlock(self.tokens_mlp_dim, self.mlp_dim, self.dtype,
                     name=f'MixerBlock_{layer}')(x)
    x = nn.LayerNorm(dtype=self.dtype, name='pre_head_layer_norm')(x)
    x = jnp.mean(x, axis=1)  # [B, D]
    if self.num_classes:
      x = nn.Dense(self.num_classes, dtype=self.dtype, name='head',
                   kernel_init=nn.initializers.zeros)(x)
    return x.astype(jnp.float32)
