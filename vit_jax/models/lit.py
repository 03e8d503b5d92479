"""LiT: an image tower and a text tower (Zhai et al. 2021, arXiv 2111.07991).

Shapes:  B batch · L tokens · D width of a tower · E width of the embeddings

Parameter names are those of the published checkpoints.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models.layers import encoder

_EPSILON = 1e-8  # added to the norm of an embedding
_FIRST_TEMPERATURE = 10.0  # initial value; section 3.2 of the paper


class TextTransformer(nn.Module):
  """Embeds texts: a ViT encoder and a head on its last token.

  Attributes:
    out_dim: E, width of the embedding.
    vocab_size: number of pieces. The end-of-sentence piece is also the padding.
    hidden_size: D, width of a token.
    mlp_dim: width of the hidden layer in each MLP block.
    num_heads: attention heads in each block.
    num_layers: number of encoder blocks.
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
  def __call__(self, tokens):  # [B, L] -> [B, E], activations
    x = nn.Embed(
      num_embeddings=self.vocab_size,
      features=self.hidden_size,
      dtype=self.dtype,
      name='Embed_0',
    )(tokens)
    out = {'embedded': x}
    x = x + self.param(
      'pos_embedding',
      nn.initializers.normal(self.hidden_size**-0.5),
      (1, *x.shape[1:]),
      jnp.float32,
    ).astype(x.dtype)
    layer = encoder.LayerSettings(
      mlp_dim=self.mlp_dim, num_heads=self.num_heads, dtype=self.dtype
    )
    x = encoder.Encoder(
      num_layers=self.num_layers, layer=layer, name='Encoder_0'
    )(x, train=False)
    out['pre_logits'] = x[:, -1]
    logits = nn.Dense(self.out_dim, dtype=self.dtype, name='head')(x[:, -1])
    out['logits'] = logits.astype(jnp.float32)
    return out['logits'], out


class TwoTowers(nn.Module):
  """Embeds images and texts in one space.

  `apply(variables, images=…, tokens=…) -> (zimg, ztxt, out)`. Embeddings have
  norm one. The logit of an image-text pair is the dot product of the two
  embeddings times exp(t), with a learned parameter t. Images or texts are
  optional; the embedding of a missing input is None.

  Attributes:
    img: image tower: images [B, H, W, 3] -> [B, E].
    txt: text tower: tokens [B, L] -> ([B, E], dict of its activations).
  """

  img: nn.Module
  txt: nn.Module

  @nn.compact
  def __call__(self, *, images=None, tokens=None, train=False):
    out = {}

    def normalized(side, z):  # [B, E] -> [B, E]
      norm = jnp.linalg.norm(z, axis=-1, keepdims=True)
      out[f'{side}/norm'] = norm
      out[f'{side}/normalized'] = z / (norm + _EPSILON)
      return out[f'{side}/normalized']

    zimg = ztxt = None
    if images is not None:
      zimg = normalized('img', self.img(images, train=train))
    if tokens is not None:
      ztxt, details = self.txt(tokens)
      out.update({f'txt/{name}': x for name, x in details.items()})
      ztxt = normalized('txt', ztxt)
    log_temperature = self.param(
      't',
      nn.initializers.constant(math.log(_FIRST_TEMPERATURE)),
      (1,),
      jnp.float32,
    )
    out['t'] = jnp.exp(log_temperature)
    return zimg, ztxt, out
