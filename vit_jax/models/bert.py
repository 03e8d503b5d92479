"""BERT encoder (Devlin et al. 2018, arXiv 1810.04805) as a text tower.

Shapes:  B batch · L tokens · D hidden_size · H heads · M mlp_dim

Parameter names are those of the published LiT checkpoints.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

_EPSILON = 1e-12  # of layer norms, as in the original BERT code
_MAX_TOKENS = 512
_SEGMENTS = 2


class SelfAttention(nn.Module):
  """Multi-head attention that ignores padding tokens; sows its `weights`."""

  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, is_token):  # [B, L, D], [B, L] -> [B, L, D]
    def heads(name):
      y = nn.Dense(x.shape[-1], dtype=self.dtype, name=name)(x)
      return y.reshape(*y.shape[:2], self.num_heads, -1)  # [B, L, H, D / H]

    weights = nn.dot_product_attention_weights(
      heads('query'),
      heads('key'),
      mask=nn.make_attention_mask(is_token, is_token),
      dtype=self.dtype,
      force_fp32_for_softmax=True,
    )  # [B, H, L, L]
    self.sow('intermediates', 'weights', weights)
    y = jnp.einsum('bhqk,bkhd->bqhd', weights, heads('value'))
    return y.reshape(x.shape)


class AttentionBlock(nn.Module):
  """Attention, output layer, residual connection and layer norm."""

  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, is_token):  # [B, L, D], [B, L] -> [B, L, D]
    y = SelfAttention(
      num_heads=self.num_heads, dtype=self.dtype, name='attention_layer'
    )(x, is_token)
    y = nn.Dense(x.shape[-1], dtype=self.dtype, name='dense_layer')(y)
    return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name='layer_norm')(
      x + y
    )


class Widening(nn.Module):
  """The first layer of an MLP, followed by GELU."""

  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, L, D] -> [B, L, M]
    return nn.gelu(
      nn.Dense(self.mlp_dim, dtype=self.dtype, name='dense_layer')(x)
    )


class MlpBlock(nn.Module):
  """Two dense layers, residual connection and layer norm."""

  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, L, D] -> [B, L, D]
    y = Widening(mlp_dim=self.mlp_dim, dtype=self.dtype, name='mlp')(x)
    y = nn.Dense(x.shape[-1], dtype=self.dtype, name='dense_layer')(y)
    return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name='layer_norm')(
      x + y
    )


class Layer(nn.Module):
  """One post-norm Transformer layer."""

  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, is_token):  # [B, L, D], [B, L] -> [B, L, D]
    x = AttentionBlock(
      num_heads=self.num_heads, dtype=self.dtype, name='attention_block'
    )(x, is_token)
    return MlpBlock(mlp_dim=self.mlp_dim, dtype=self.dtype, name='mlp_block')(x)


class Embedder(nn.Module):
  """The sum of token, position and segment embeddings; all segments are 0."""

  vocab_size: int
  hidden_size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens):  # [B, L] -> [B, L, D]
    def embed(size, ids, name):
      return nn.Embed(
        num_embeddings=size,
        features=self.hidden_size,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(0.02),
        name=f'embedders_{name}_ids',
      )(ids)

    return (
      embed(self.vocab_size, tokens, 'token')
      + embed(_MAX_TOKENS, jnp.arange(tokens.shape[1]), 'position')
      + embed(_SEGMENTS, jnp.zeros_like(tokens), 'segment')
    )


class LayerSequence(nn.Module):
  """All layers, one after another."""

  num_layers: int
  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, is_token):  # [B, L, D], [B, L] -> [B, L, D]
    for layer in range(self.num_layers):
      x = Layer(
        mlp_dim=self.mlp_dim,
        num_heads=self.num_heads,
        dtype=self.dtype,
        name=f'layers_{layer}',
      )(x, is_token)
    return x


class EncoderBlock(nn.Module):
  """A wrapper for `LayerSequence`; published parameter paths contain it."""

  num_layers: int
  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, is_token):  # [B, L, D], [B, L] -> [B, L, D]
    return LayerSequence(
      num_layers=self.num_layers,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dtype=self.dtype,
      name='layer_sequence',
    )(x, is_token)


class BertEncoder(nn.Module):
  """Embeddings, layer norm and layers; tokens with id 0 are padding."""

  vocab_size: int
  hidden_size: int
  mlp_dim: int
  num_heads: int
  num_layers: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens):  # [B, L] -> [B, L, D]
    x = Embedder(
      vocab_size=self.vocab_size,
      hidden_size=self.hidden_size,
      dtype=self.dtype,
      name='embedder',
    )(tokens)
    x = nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name='layer_norm')(x)
    return EncoderBlock(
      num_layers=self.num_layers,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dtype=self.dtype,
      name='encoder_block',
    )(x, tokens > 0)


class BertTower(nn.Module):
  """Embeds texts: BERT and a head on its first token.

  Attributes:
    out_dim: width of the embedding.
    vocab_size: number of word pieces; piece 0 is padding.
    hidden_size: D, width of a token.
    mlp_dim: M, width of the hidden layer in each MLP block.
    num_heads: H, attention heads in each layer.
    num_layers: number of encoder layers.
    dtype: dtype of the activations.
  """

  out_dim: int
  vocab_size: int
  hidden_size: int
  mlp_dim: int
  num_heads: int
  num_layers: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens):  # [B, L] -> [B, out_dim], activations
    x = BertEncoder(
      vocab_size=self.vocab_size,
      hidden_size=self.hidden_size,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      num_layers=self.num_layers,
      dtype=self.dtype,
      name='BertEncoder_0',
    )(tokens)
    out = {'transformed': x, 'pre_logits': x[:, 0]}
    logits = nn.Dense(self.out_dim, dtype=self.dtype, name='head')(x[:, 0])
    out['logits'] = logits.astype(jnp.float32)
    return out['logits'], out
