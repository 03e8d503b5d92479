"""The Transformer encoder (ViT paper, arXiv 2010.11929, section 3.1).

Shapes:  B batch · T tokens · D width of a token · M mlp_dim · K patches kept

Parameter names are those of the published checkpoints.
"""

import dataclasses
import functools
import operator
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import attention
from vit_jax.models.layers import dropout
from vit_jax.models.layers import fractal
from vit_jax.models.layers import linear
from vit_jax.models.layers import mlp
from vit_jax.models.layers import patches
from vit_jax.models.layers import positions
from vit_jax.models.layers import remat_and_scan
from vit_jax.models.layers import rotary

BLOCKS = ('sequential', 'parallel')


class LayerScale(nn.Module):
  """Scales channels (Touvron et al. 2021, arXiv 2103.17239, section 2)."""

  initial: float

  @nn.compact
  def __call__(self, x):  # [B, T, D] -> [B, T, D]
    scale = self.param(
      'scale', nn.initializers.constant(self.initial), x.shape[-1:], jnp.float32
    )
    return x * scale.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LayerSettings:
  """Settings of all layers of an encoder; see `VisionTransformer`.

  `layout` describes the token sequence. Layers need it for positions that are
  relative or added at 'every_layer'.
  """

  mlp_dim: int
  num_heads: int
  head_dim: int | None = None
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  drop_path_schedule: str = 'linear'
  layer_scale: float | None = None
  block: str = 'sequential'
  num_parallel: int = 1
  qkv_bias: bool = True
  key_bias: bool = True
  attention_out: bool = True
  out_bias: bool = True
  qk_norm: bool = False
  qk_norm_bias: bool = False
  attention_norm: bool = False
  gelu: str = 'tanh'
  gated_mlp: bool = False
  mlp_bias: bool = True
  mlp_norm: bool = False
  norm: str = 'layer'
  norm_after: bool = False
  norm_epsilon: float = 1e-6
  positions: str = 'none'
  positions_at: str = 'input'
  embedding_std: float | None = None
  relative_mlp_dim: int = 128
  rotation: rotary.Rotary | None = None
  layout: patches.Layout | None = None
  is_fused: bool = False
  dtype: Any = jnp.float32


class Shared(NamedTuple):
  """Inputs that are equal for all layers.

  Attributes:
    embedding: positions [1 or B, T, D] to add to the tokens first, or None.
    kept: indices of the patches that remain [B, K]; None is all patches.
    bias: relative positions [1 or B, H, T, T], or None.
    turns: rotary positions from `rotary.Rotary.turns`, or None.
  """

  embedding: jax.Array | None = None
  kept: jax.Array | None = None
  bias: jax.Array | None = None
  turns: tuple[jax.Array, ...] | None = None


NOTHING_SHARED = Shared()


def relative_bias(settings: LayerSettings) -> positions.RelativeBias:
  """Returns the module of relative positions; call it in a module."""
  return positions.RelativeBias(
    kind=settings.positions,
    layout=settings.layout,
    num_heads=settings.num_heads,
    mlp_dim=settings.relative_mlp_dim,
    dtype=settings.dtype,
    name='relative_positions',
  )


class EncoderBlock(nn.Module):
  """One Transformer layer: equations 2 and 3 of the paper.

  Layers side by side have the numbers 0, 10, 20 …, and two norms each: 0 and 1,
  10 and 11, …. Other numbers are names of published files (`npz_names`).
  """

  settings: LayerSettings

  @nn.compact
  def __call__(self, z, drop_path_rate=0.0, key=None, shared=NOTHING_SHARED):
    """[B, T, D] -> [B, T, D].

    Args:
      z: tokens.
      drop_path_rate: rate of drop path in this layer.
      key: random key of dropout and drop path; None, for evaluation, drops
        nothing.
      shared: inputs that are equal for all layers.
    """
    s = self.settings
    embedding, kept, *_ = shared
    if s.positions_at == 'every_layer':
      embedding = s.layout.select(
        positions.PositionEmbedding(
          kind=s.positions,
          layout=s.layout,
          std=s.embedding_std,
          name='posembed',
        )(z.shape[-1]),
        kept,
      )
    if embedding is not None:
      z = z + embedding.astype(z.dtype)
    shared = shared._replace(**self._within_attention(shared, z.shape[-1]))
    numbers = range(0, 10 * s.num_parallel, 10)
    draws = key is not None
    keys = {
      i: dropout.split(jax.random.fold_in(key, i) if draws and i else key, 5)
      for i in numbers
    }

    def attend(x, i):
      return self._attend(x, i, shared, keys[i][:2])

    def feed_forward(x, i):
      return self._feed_forward(x, i, keys[i][3])

    def scaled(y, i, last):
      if s.layer_scale is not None:
        name = f'LayerScale_{i + last}'
        y = LayerScale(initial=s.layer_scale, name=name)(y)
      if s.drop_path_rate:
        y = dropout.drop_path(y, drop_path_rate, keys[i][4 if last else 2])
      return y

    def branch(layer, x, i, last):
      if s.norm_after:
        return scaled(self._norm(layer(x, i), i + last), i, last)
      return scaled(layer(self._norm(x, i + last), i), i, last)

    def branches(layer, x, last):
      return functools.reduce(
        operator.add, [branch(layer, x, i, last) for i in numbers]
      )

    if s.block == 'parallel':
      x = self._norm(z, 0)
      return z + scaled(attend(x, 0) + feed_forward(x, 0), 0, 0)
    z = z + branches(attend, z, 0)  # eq. 2
    return z + branches(feed_forward, z, 1)  # eq. 3

  @nn.nowrap
  def _within_attention(self, shared, hidden_size):
    """Returns the layer's own relative positions or rotation, if any."""
    s, own = self.settings, {}
    if s.positions in positions.BIASES and shared.bias is None:
      own['bias'] = relative_bias(s)(shared.kept)
    if s.rotation is not None and s.rotation.kind == 'mixed':
      own['turns'] = rotary.MixedTurns(settings=s.rotation, name='rotary')(
        *shared.turns, s.num_heads, s.head_dim or hidden_size // s.num_heads
      )
    return own

  @nn.nowrap
  def _norm(self, x, number):
    s = self.settings
    return linear.norm(
      s.norm, f'LayerNorm_{number}', epsilon=s.norm_epsilon, dtype=s.dtype
    )(x)

  @nn.nowrap
  def _attend(self, x, number, shared, keys):
    """Returns multi-head attention, followed by dropout: [B, T, D]."""
    s = self.settings
    y = attention.MultiHeadAttention(
      num_heads=s.num_heads,
      head_dim=s.head_dim,
      dropout_rate=s.attention_dropout_rate,
      qkv_bias=s.qkv_bias,
      key_bias=s.key_bias,
      projects_out=s.attention_out,
      out_bias=s.out_bias,
      qk_norm=s.qk_norm,
      qk_norm_bias=s.qk_norm_bias,
      out_norm=s.attention_norm,
      norm=s.norm,
      norm_epsilon=s.norm_epsilon,
      dtype=s.dtype,
      relative=s.layout if s.positions == 'relative' else None,
      rotary_halves=s.rotation is not None and s.rotation.halves,
      is_fused=s.is_fused,
      name=f'MultiHeadDotProductAttention_{number}',
    )(x, kept=shared.kept, bias=shared.bias, turns=shared.turns, key=keys[0])
    return dropout.dropout(y, s.dropout_rate, keys[1])

  @nn.nowrap
  def _feed_forward(self, x, number, key):
    """Returns the MLP, which ends with dropout: [B, T, D]."""
    s = self.settings
    return mlp.MlpBlock(
      mlp_dim=s.mlp_dim,
      dropout_rate=s.dropout_rate,
      dtype=s.dtype,
      gelu=s.gelu,
      is_gated=s.gated_mlp,
      has_bias=s.mlp_bias,
      norm=s.norm if s.mlp_norm else None,
      norm_epsilon=s.norm_epsilon,
      name=f'MlpBlock_{number}',
    )(x, key)


def block_names(num_layers: int) -> list[str]:
  """Returns the names of the blocks of an `Encoder`, unless it is a fractal."""
  return [f'encoderblock_{i}' for i in range(num_layers)]


class Encoder(nn.Module):
  """Positions, `num_layers` blocks and the final norm.

  Attributes:
    num_layers: number of blocks. For a fractal, blocks of the longest column.
    layer: settings of all blocks. `drop_path_rate` is the rate of the last
      block or, in a fractal, of the joins.
    embedding_dropout_rate: dropout rate of the tokens, after the positions at
      the input are added.
    patch_dropout_rate: fraction of the patches that training removes.
    fractal_columns: number of columns; see `fractal`. None means no fractal.
    global_drop_path_rate: fraction of training passes with a single column.
    attention: 'auto', 'plain' or 'fused'.
    remat: values that layers keep for the backward pass; see `remat_and_scan`.
    scan: whether `jax.lax.scan` loops over the layers.
    pre_norm: whether a norm precedes the blocks.
    last_norm: whether a norm follows the blocks.
  """

  num_layers: int
  layer: LayerSettings
  pre_norm: bool = False
  last_norm: bool = True
  embedding_dropout_rate: float = 0.0
  patch_dropout_rate: float = 0.0
  fractal_columns: int | None = None
  global_drop_path_rate: float = 0.0
  attention: str = 'plain'
  remat: str = 'none'
  scan: bool = False

  @nn.compact
  def __call__(self, x, *, train, kept=None):
    """[B, T, D] -> [B, T', D].

    Args:
      x: tokens.
      train: whether dropout and patch dropout are on.
      kept: indices [B, K] of the patches that stay. None: all, or those that
        patch dropout keeps.
    """
    layer, layout = self.layer, self.layer.layout
    draws = train and any(
      (
        self.embedding_dropout_rate,
        self.patch_dropout_rate,
        self.global_drop_path_rate,
        layer.dropout_rate,
        layer.attention_dropout_rate,
        layer.drop_path_rate,
      )
    )
    keys = dropout.split(self.make_rng('dropout') if draws else None, 3)

    embedding = None
    if layer.positions in positions.ADDED and (
      layer.positions_at != 'every_layer'
    ):
      embedding = positions.PositionEmbedding(
        kind=layer.positions,
        layout=layout,
        std=layer.embedding_std,
        name='posembed_input',
      )(x.shape[-1])
    if embedding is not None and layer.positions_at == 'input':
      x, embedding = x + embedding.astype(x.dtype), None
    x = dropout.dropout(x, self.embedding_dropout_rate, keys[0])
    if kept is None and train and self.patch_dropout_rate:
      kept = layout.sample(keys[1], len(x), self.patch_dropout_rate)
    if kept is not None:
      x = layout.select(x, kept)
      if embedding is not None:
        embedding = layout.select(embedding, kept)
    bias, turns = self._bias_and_turns(x.shape[-1], kept)
    shared = Shared(embedding=embedding, kept=kept, bias=bias, turns=turns)

    norm = functools.partial(
      linear.norm, layer.norm, epsilon=layer.norm_epsilon, dtype=layer.dtype
    )
    if self.pre_norm:
      x = norm('pre_norm')(x)
    layer = dataclasses.replace(layer, is_fused=self._is_fused(x, train))
    run = self._run_fractal if self.fractal_columns else self._run
    x = run(x, layer, keys[2], shared)
    return norm('encoder_norm')(x) if self.last_norm else x

  @nn.nowrap
  def _bias_and_turns(self, hidden_size, kept):
    """Returns positions within attention that all layers share."""
    layer, bias, turns = self.layer, None, None
    if layer.positions in positions.BIASES and (
      layer.positions_at == 'every_layer_shared'
    ):
      bias = relative_bias(layer)(kept)
    if layer.rotation is not None:
      head_dim = layer.head_dim or hidden_size // layer.num_heads
      turns = tuple(
        layer.layout.select(x, kept)
        for x in layer.rotation.turns(layer.layout, head_dim)
      )
    return bias, turns

  @nn.nowrap
  def _run(self, x, layer, key, shared):
    rates = dropout.path_rates(
      layer.drop_path_rate, self.num_layers, layer.drop_path_schedule
    )
    keys = None if key is None else jax.random.split(key, self.num_layers)
    return remat_and_scan.run(
      self,
      EncoderBlock,
      {'settings': layer},
      block_names(self.num_layers),
      x,
      (rates, keys),
      (shared,),
      remat=self.remat,
      scan=self.scan,
    )

  @nn.nowrap
  def _run_fractal(self, x, layer, key, shared):
    path_key, key = dropout.split(key, 2)
    local_rate = layer.drop_path_rate
    layer = dataclasses.replace(layer, drop_path_rate=0.0)
    block_class = remat_and_scan.rematerialized(EncoderBlock, self.remat)
    kept = (
      None
      if key is None
      else fractal.drop_path(
        path_key, self.fractal_columns, local_rate, self.global_drop_path_rate
      )
    )

    def block(x, column, index):
      number = column * self.num_layers + index
      return block_class(settings=layer, name=f'encoderblock_{column}_{index}')(
        x, 0.0, None if key is None else jax.random.fold_in(key, number), shared
      )

    return fractal.run(x, self.fractal_columns, self.num_layers, block, kept)

  @nn.nowrap
  def _is_fused(self, x, train):
    """Returns whether attention uses the fused kernel.

    The kernel has no attention weights. If 'intermediates' is mutable, they are
    asked for, and the plain implementation computes them.

    Raises:
      ValueError: attention='fused' is requested, but the kernel cannot run.
    """
    if self.attention == 'plain':
      return False
    layer = self.layer
    reason = attention.why_not_fused(
      *attention.device(),
      dtype=layer.dtype,
      head_dim=layer.head_dim or x.shape[-1] // layer.num_heads,
      num_tokens=x.shape[1],
      has_bias=layer.positions in ('relative', *positions.BIASES),
      drops_weights=train and layer.attention_dropout_rate > 0,
      train=train,
    )
    if reason and self.attention == 'fused':
      raise ValueError(
        f"attention='fused' {reason}. Use attention='auto', which selects "
        "'plain' if the fused kernel cannot run."
      )
    return not reason and not self.is_mutable_collection('intermediates')
