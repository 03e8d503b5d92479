"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1).

Shapes:  B batch · H, W image height, width · C channels · P patch size
         N tokens · D hidden_size · M mlp_dim · K classes

Parameter names are the published checkpoint format: every sub-module is named
explicitly, and a renamed one would no longer load published weights.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import patches
from vit_jax.models import resnet

CLASSIFIERS = ('token', 'gap', 'unpooled', 'token_unpooled')


class MlpBlock(nn.Module):
  """Two dense layers with a GELU between them, exact dropout after both."""

  mlp_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train):  # [B, N, D] -> [B, N, D]
    def dense(features, name):
      return nn.Dense(
          features, dtype=self.dtype, name=name,
          kernel_init=nn.initializers.xavier_uniform(),
          bias_init=nn.initializers.normal(stddev=1e-6))

    hidden_size = x.shape[-1]
    x = dense(self.mlp_dim, 'Dense_0')(x)  # [B, N, M]
    x = nn.gelu(x)  # the tanh approximation, as published weights expect
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    x = dense(hidden_size, 'Dense_1')(x)  # [B, N, D]
    return nn.Dropout(self.dropout_rate)(x, deterministic=not train)


class EncoderBlock(nn.Module):
  """One pre-norm Transformer layer: equations 2 and 3 of the paper."""

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z, *, train):  # [B, N, D] -> [B, N, D]
    y = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_0')(z)
    y = nn.MultiHeadDotProductAttention(
        num_heads=self.num_heads,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        dropout_rate=self.attention_dropout_rate,
        broadcast_dropout=False,
        force_fp32_for_softmax=True,
        name='MultiHeadDotProductAttention_0')(y, deterministic=not train)
    z = z + nn.Dropout(self.dropout_rate)(y, deterministic=not train)  # eq. 2

    y = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_1')(z)
    y = MlpBlock(self.mlp_dim, self.dropout_rate, self.dtype,
                 name='MlpBlock_0')(y, train=train)
    return z + y  # eq. 3


class AddPositionEmbedding(nn.Module):
  """Adds one learned vector to each token."""

  @nn.compact
  def __call__(self, x):  # [B, N, D] -> [B, N, D]
    embedding = self.param(
        'pos_embedding', nn.initializers.normal(stddev=0.02),
        (1, *x.shape[1:]), jnp.float32)
    return x + embedding.astype(x.dtype)


class Encoder(nn.Module):
  """Position embedding if asked for, `num_layers` blocks and the last norm."""

  num_layers: int
  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  add_positions: bool = True

  @nn.compact
  def __call__(self, x, *, train):  # [B, N, D] -> [B, N, D]
    if self.add_positions:
      x = AddPositionEmbedding(name='posembed_input')(x)
      x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    for layer in range(self.num_layers):
      x = EncoderBlock(
          self.mlp_dim, self.num_heads, self.dropout_rate,
          self.attention_dropout_rate, self.dtype,
          name=f'encoderblock_{layer}')(x, train=train)
    return nn.LayerNorm(dtype=self.dtype, name='encoder_norm')(x)


class VisionTransformer(nn.Module):
  """Classifies images: `apply({'params': p}, images, train=False) -> logits`.

  Attributes:
    num_classes: K; 0 leaves out the head and returns what it would be given.
    patch_size: P, side of a square patch in pixels, or in positions of the
      stem's output.
    hidden_size: D, width of the residual stream; a multiple of num_heads.
    mlp_dim: M, width of the layer inside each MLP block.
    num_heads: attention heads in each block.
    num_layers: encoder blocks.
    dropout_rate: after the position embedding, the attention, both MLP layers.
    attention_dropout_rate: on the attention weights.
    classifier: 'token' reads a class token put before the patches, 'gap' the
      mean over the tokens; 'unpooled' classifies every patch, 'token_unpooled'
      every patch and the class token: logits [B, N, K].
    representation_size: width of a dense layer with tanh before the head
      (appendix D.3 of the paper); None has no such layer.
    stem_units: of a hybrid, the bottleneck units in each stage of the
      convolutional stem, () being its root alone; None has no stem.
    stem_width: channels after the stem's root.
    dtype: of the activations; parameters, softmax and norm statistics stay in
      float32, and logits are returned in float32.
    head_init: initialiser of the head's kernel.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  mlp_dim: int
  num_heads: int
  num_layers: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  classifier: str = 'token'
  representation_size: int | None = None
  stem_units: tuple[int, ...] | None = None
  stem_width: int = 64
  dtype: Any = jnp.float32
  head_init: Callable = nn.initializers.zeros

  def __post_init__(self):
    for name in ('patch_size', 'hidden_size', 'mlp_dim', 'num_heads',
                 'num_layers'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} {getattr(self, name)} must be 1 or more')
    for name in ('dropout_rate', 'attention_dropout_rate'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
            f'{name} {getattr(self, name)} must be at least 0 and below 1')
    if self.classifier not in CLASSIFIERS:
      raise ValueError(f'classifier {self.classifier!r} is not one of '
                       + ', '.join(CLASSIFIERS))
    if self.hidden_size % self.num_heads:
      raise ValueError(
          f'hidden_size {self.hidden_size} is not a multiple of num_heads '
          f'{self.num_heads}')
    super().__post_init__()

  @property
  def has_token(self):
    """Whether a class token precedes the patches."""
    return self.classifier in ('token', 'token_unpooled')

  def grid_size(self, height, width):
    """Patches down and across an image; a ValueError if they do not divide."""
    stride = self.patch_size
    if self.stem_units is not None:
      stride *= resnet.stem_stride(self.stem_units)
    return patches.grid_size(height, width, stride)

  @nn.compact
  def __call__(self, images, *, train):  # [B, H, W, C] -> [B, K]
    self.grid_size(*images.shape[1:3])

    x = images
    if self.stem_units is not None:
      x = resnet.stem(x, self.stem_units, self.stem_width, self.dtype)
    # Equation 1: patches become tokens, row by row.
    x = nn.Conv(
        self.hidden_size, (self.patch_size,) * 2, strides=self.patch_size,
        padding='VALID', dtype=self.dtype, name='embedding')(x)
    x = x.reshape(x.shape[0], -1, self.hidden_size)  # [B, N, D]
    if self.has_token:
      token = self.param('cls', nn.initializers.zeros, (1, 1, x.shape[-1]))
      token = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, x.shape[-1]))
      x = jnp.concatenate([token, x], axis=1)  # [B, 1 + N, D]

    x = Encoder(
        self.num_layers, self.mlp_dim, self.num_heads, self.dropout_rate,
        self.attention_dropout_rate, self.dtype,
        name='Transformer')(x, train=train)

    if self.classifier == 'token':
      x = x[:, 0]  # [B, D], equation 4
    elif self.classifier == 'gap':
      x = jnp.mean(x, axis=1)  # [B, D]
    if self.representation_size is not None:
      x = nn.tanh(nn.Dense(
          self.representation_size, dtype=self.dtype, name='pre_logits')(x))
    if self.num_classes:
      x = nn.Dense(self.num_classes, dtype=self.dtype, name='head',
                   kernel_init=self.head_init)(x)
    return x.astype(jnp.float32)
