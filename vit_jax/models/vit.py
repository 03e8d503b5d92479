"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1).

Shapes:  B batch · H, W image height, width · C channels · P patch size
         N patches · T tokens · D hidden_size · M mlp_dim · K classes

Parameter names are those of the published checkpoints. Every sub-module
therefore has an explicit name. A renamed sub-module could not load published
weights.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import input_checks
from vit_jax.models import vit_checks
from vit_jax.models.layers import encoder
from vit_jax.models.layers import image_scale
from vit_jax.models.layers import linear
from vit_jax.models.layers import patches
from vit_jax.models.layers import pooling
from vit_jax.models.layers import resnet
from vit_jax.models.layers import rotary


class VisionTransformer(nn.Module):
  """Classifies images: `apply({'params': p}, images, train=False) -> logits`.

  Images may have any number of channels. This number is fixed when the
  parameters are initialized. Training needs a random key for dropout:
  `rngs={'dropout': key}`.

  Attributes:
    num_classes: K, number of classes. 0 removes the head; the model then
      returns the features before the head.
    patch_size: P, side of a square patch, in pixels. With a stem, it is counted
      in positions of the stem's output.
    hidden_size: D, width of the residual stream. Without `head_dim`, it must
      be a multiple of `num_heads`.
    mlp_dim: M, width of the hidden layer in each MLP block.
    num_heads: attention heads in each block.
    num_layers: number of encoder blocks.
    head_dim: width of a head; None is hidden_size / num_heads.
    dropout_rate: dropout rate on the embeddings, after attention, and after
      both MLP layers.
    attention_dropout_rate: dropout rate of the attention weights.
    embedding_dropout_rate: dropout rate of the embeddings; None is
      `dropout_rate`.
    drop_path_rate: stochastic depth (arXiv 1603.09382). The probability that
      a branch of the last block is skipped for a sample. With
      `fractal_columns`, it is "local drop-path": the probability that a join
      drops an input.
    drop_path_schedule: 'linear': the rate rises from 0 in the first block.
      'constant': all blocks have the same rate (DeiT III, arXiv 2204.07118).
    global_drop_path_rate: "global drop-path", with `fractal_columns` only: the
      fraction of training passes that run a single column.
    fractal_columns: number of columns if the blocks form a FractalNet (arXiv
      1605.07648). The longest column has `num_layers` blocks. None means a
      plain sequence.
    patch_dropout_rate: fraction of the patches that training removes from each
      image (arXiv 2212.00794). Class token and registers stay.
    classifier: input of the head. 'token': a class token before the patches.
      'gap': the mean over the patches. 'map': attention pooling with a learned
      probe (arXiv 2106.04560). 'probe': the same without query projection and
      MLP (AIMv2, arXiv 2411.14402). 'token_gap': class token and mean of the
      patches, [B, 2·D] (DINOv2, arXiv 2304.07193, linear classifiers).
      'unpooled': every patch; logits are [B, N, K].
      'token_unpooled': the class token and every patch: [B, 1 + N, K].
    class_token: whether the sequence has a class token; None adds one only if
      the classifier reads it.
    distilled: whether a distillation token follows the class token (DeiT, arXiv
      2012.12877). The head reads both. It is the mean of DeiT's two heads.
    num_registers: learned tokens after the patches. The classifiers do not
      read them (Darcet et al. 2023, arXiv 2309.16588).
    pool_heads: attention heads of 'map' and 'probe'; None is `num_heads`.
    pool_mlp_dim: width of the hidden layer in the MLP of 'map'; None is
      `mlp_dim`.
    pool_all_tokens: whether 'gap', 'map' and 'probe' also read class token and
      registers.
    pixel_norm: whether the pixels of each patch are normalized before the patch
      embedding (vit-pytorch).
    patch_bias: whether the patch embedding has a bias.
    patch_norm: whether the embeddings of patches are normalized before
      positions are added (AIMv2, vit-pytorch).
    embedding_std: standard deviation of the initial values of the class token
      and of added positions. None is 0 for the token and 0.02 for positions.
    drop_remainder: whether the image side need not be a multiple of the patch
      size. The pixels after the last whole patch are then not read.
    positions: 'learned', 'learned_2d', 'sincos2d', 'relative' or 'none'; see
      `layers.positions` (appendix D.4; for 'sincos2d', arXiv 2205.01580).
      'relative_table' (BEiT, arXiv 2106.08254) and 'relative_mlp' (Swin V2,
      arXiv 2111.09883) add a term to the attention logits.
    positions_at: where positions are added (appendix D.4, table 8): 'input',
      'every_layer' (one table for each layer), or 'every_layer_shared'. Layers
      have their own 'relative_table' and 'relative_mlp', unless it is
      'every_layer_shared'.
    relative_mlp_dim: width of the hidden layer of 'relative_mlp'.
    rotary: 'axial' (EVA-02, arXiv 2303.11331), 'normalized' (DINOv3, arXiv
      2508.10104) or 'mixed' (RoPE-ViT, arXiv 2403.13298) rotates queries and
      keys of patches; see `layers.rotary.Rotary`. It is independent of
      `positions`. None is no rotation.
    rotary_temperature: base of the frequencies. None is 10 000 for 'axial', 100
      for 'normalized' and 10 for 'mixed'.
    rotary_grid: 'axial' only: grid (rows, columns) to which the coordinates of
      all images are stretched. None does not stretch.
    rotary_indexing: order of the coordinates: 'ij' (row, column) or 'xy'.
    rotary_offset: added to the coordinates, in patches.
    rotary_halves: whether channels i and i + d / 2 of a head of width d are
      rotated together. Otherwise, channels 2i and 2i + 1 are.
    layer_scale: initial value of LayerScale in each branch (arXiv 2103.17239),
      such as 1e-4; None means no LayerScale.
    block: 'sequential', or 'parallel': attention and MLP have the same input,
      after one norm, and one sum (arXiv 2302.05442, section 2.1).
    num_parallel: number of attention layers whose outputs are added, and of MLP
      layers after them, in each sequential block (arXiv 2203.09795, section 3).
    qkv_bias: whether queries, keys and values have a bias.
    key_bias: with `qkv_bias`, whether keys have a bias, too. BEiT (arXiv
      2106.08254) and EVA have none.
    attention_out: whether attention ends with a projection. Without it, the
      outputs of all heads are added to the tokens (vit-pytorch, one head).
    out_bias: whether this projection has a bias.
    qk_norm: whether queries and keys are normalized (arXiv 2302.05442).
    qk_norm_bias: whether these norms, if they are LayerNorms, have a bias.
    attention_norm: whether the outputs of all heads are normalized before the
      last projection of attention (arXiv 2210.06423).
    gelu: 'tanh' for published weights, 'exact' for most weights from PyTorch,
      'quick' for OpenAI's CLIP; not used by a gated MLP.
    gated_mlp: whether the hidden layer of an MLP is SwiGLU (arXiv 2002.05202).
    mlp_bias: whether both layers of an MLP have a bias.
    mlp_norm: whether an MLP normalizes its hidden layer (arXiv 2210.06423).
    norm: kind of all norms: 'layer', or 'rms' (arXiv 1910.07467).
    norm_after: whether norms follow attention and MLP, before the sum, instead
      of preceding them (arXiv 2111.09883, section 3.2).
    norm_epsilon: term added to the variance in norms.
    pre_norm: whether a norm precedes the blocks, as in CLIP (arXiv 2103.00020).
    encoder_norm: whether a norm follows the blocks.
    head_norm: whether a norm follows the pooling, before the head.
    representation_size: width of a dense layer with tanh before the head
      (appendix D.3 of the paper); None means no such layer.
    stem_units: hybrids only: bottleneck units in each stage of the
      convolutional stem. () means the root only; None means no stem.
    stem_width: channels after the stem's root.
    stem_epsilons: 'original' or 'timm': how the stem avoids divisions by 0.
    image_mean: mean of each channel in training, for pixels in [0, 1]; see
      `layers.image_scale`. None, as in published weights: 0.5.
    image_std: standard deviation of each channel; None: 0.5.
    attention: 'plain', 'fused' (cuDNN) or 'auto'. 'auto' uses the fused kernel
      if device, dtype and shapes allow it.
    remat: values that layers keep for the backward pass. From most to least
      memory: 'none' keeps all, 'dots' keeps all matrix products, 'dense' keeps
      products of dense layers, 'full' keeps only the layer input.
    scan: whether one layer is compiled and runs in a loop. Otherwise, all
      layers are compiled.
    dtype: dtype of the activations. Parameters, softmax, norm statistics and
      returned logits are float32.
    head_init: initializer of the head's kernel.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  mlp_dim: int
  num_heads: int
  num_layers: int
  head_dim: int | None = None
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  embedding_dropout_rate: float | None = None
  drop_path_rate: float = 0.0
  drop_path_schedule: str = 'linear'
  global_drop_path_rate: float = 0.0
  fractal_columns: int | None = None
  patch_dropout_rate: float = 0.0
  classifier: str = 'token'
  class_token: bool | None = None
  distilled: bool = False
  num_registers: int = 0
  pool_heads: int | None = None
  pool_mlp_dim: int | None = None
  pool_all_tokens: bool = False
  pixel_norm: bool = False
  patch_bias: bool = True
  patch_norm: bool = False
  embedding_std: float | None = None
  drop_remainder: bool = False
  positions: str = 'learned'
  positions_at: str = 'input'
  relative_mlp_dim: int = 128
  rotary: str | None = None
  rotary_temperature: float | None = None
  rotary_grid: tuple[int, int] | None = None
  rotary_indexing: str = 'ij'
  rotary_offset: float = 0.0
  rotary_halves: bool = False
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
  pre_norm: bool = False
  encoder_norm: bool = True
  head_norm: bool = False
  representation_size: int | None = None
  stem_units: tuple[int, ...] | None = None
  stem_width: int = 64
  stem_epsilons: str = 'original'
  image_mean: tuple[float, ...] | None = None
  image_std: tuple[float, ...] | None = None
  attention: str = 'auto'
  remat: str = 'none'
  scan: bool = False
  dtype: Any = jnp.float32
  head_init: Callable = nn.initializers.zeros

  def __post_init__(self):
    vit_checks.check(self)
    if self.rotary is not None:
      self._rotary().check(self.head_dim or self.hidden_size // self.num_heads)
    else:
      self._rotary().check_unused()
    super().__post_init__()

  @property
  def reads_token(self) -> bool:
    """Returns whether the classifier reads a class token."""
    return self.classifier in ('token', 'token_gap', 'token_unpooled')

  @property
  def has_token(self) -> bool:
    """Returns whether a class token precedes the patches."""
    return self.reads_token if self.class_token is None else self.class_token

  @nn.nowrap
  def grid_size(self, height: int, width: int) -> tuple[int, int]:
    """Returns the number of patches, (down, across).

    Raises:
      ValueError: an image side is not a multiple of the patch size.
    """
    return patches.grid_size(height, width, self.stride, self.drop_remainder)

  @nn.nowrap
  def layout(self, height: int, width: int) -> patches.Layout:
    """Returns the order of the tokens; raises ValueError as `grid_size`."""
    return patches.Layout(
      grid=self.grid_size(height, width),
      num_tokens=self.has_token + self.distilled,
      num_registers=self.num_registers,
    )

  @property
  def block_names(self) -> list[str]:
    """Returns the names of the encoder blocks, in order.

    Raises:
      ValueError: the model is a fractal.
    """
    if self.fractal_columns is not None:
      raise ValueError(
        f'fractal_columns={self.fractal_columns}: the blocks of a fractal are '
        'not one sequence, so they have no numbers. Read their outputs with '
        'capture_intermediates (docs/models.md).'
      )
    return encoder.block_names(self.num_layers)

  @property
  def stride(self) -> int:
    """Returns the pixels between two neighboring patches."""
    if self.stem_units is None:
      return self.patch_size
    return self.patch_size * resnet.stem_stride(self.stem_units)

  @nn.compact
  def __call__(self, images, *, train, corrupt=None, kept=None):
    """[B, H, W, C] -> [B, K].

    Args:
      images: images in [-1, 1].
      train: whether dropout is on.
      corrupt: function of the embeddings of all patches, before positions are
        added: [B, N, D] -> [B, N, D]. None changes nothing.
      kept: indices [B, K] of the patches that the blocks read; None: all.
    """
    # `jax.eval_shape` may trace `train`, so initialization ignores it.
    # Parameters do not depend on `train`.
    train = not self.is_initializing() and train
    first_layer = 'embedding' if self.stem_units is None else 'conv_root'
    input_checks.check_model_input(self, images, first_layer, self.stride)
    layout = self.layout(*images.shape[1:3])
    x = image_scale.standardize(images, self.image_mean, self.image_std)
    if self.stem_units is not None:
      x = resnet.stem(
        x, self.stem_units, self.stem_width, self.dtype, self.stem_epsilons
      )
    x = patches.PatchEmbedding(
      hidden_size=self.hidden_size,
      patch_size=self.patch_size,
      has_bias=self.patch_bias,
      drop_remainder=self.drop_remainder,
      pixel_norm=self._norm('pixel_norm') if self.pixel_norm else None,
      dtype=self.dtype,
      name='embedding',
    )(x)
    if self.patch_norm:
      x = self._norm('patch_norm')(x)
    if corrupt is not None:
      x = corrupt(x)
    if self.has_token:
      init = nn.initializers.zeros
      if self.embedding_std is not None:
        init = nn.initializers.normal(stddev=self.embedding_std)
      x = jnp.concatenate(
        [self._tokens('cls', layout.num_tokens, init, x), x], axis=1
      )
    if self.num_registers:
      x = jnp.concatenate(
        [
          x,
          self._tokens(
            'registers',
            self.num_registers,
            nn.initializers.normal(stddev=0.02),
            x,
          ),
        ],
        axis=1,
      )

    x = self._encoder(layout)(x, train=train, kept=kept)  # [B, T, D]
    x = self._pool(x, layout)
    if self.head_norm:
      x = self._norm('head_norm')(x)

    if self.representation_size is not None:
      x = nn.tanh(
        nn.Dense(self.representation_size, dtype=self.dtype, name='pre_logits')(
          x
        )
      )
    if self.num_classes:
      x = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        name='head',
        kernel_init=self.head_init,
      )(x)
    return x.astype(jnp.float32)

  @nn.nowrap
  def _norm(self, name):
    return linear.norm(
      self.norm, name, epsilon=self.norm_epsilon, dtype=self.dtype
    )

  @nn.nowrap
  def _tokens(self, name, number, init, like):
    """Returns learned tokens, repeated for every image: [B, number, D]."""
    shape = number, like.shape[-1]
    tokens = self.param(name, init, (1, *shape), jnp.float32).astype(like.dtype)
    return jnp.broadcast_to(tokens, (like.shape[0], *shape))

  @nn.nowrap
  def _rotary(self):
    return rotary.Rotary(
      kind=self.rotary,
      temperature=self.rotary_temperature,
      grid=self.rotary_grid and tuple(self.rotary_grid),
      indexing=self.rotary_indexing,
      offset=self.rotary_offset,
      halves=self.rotary_halves,
    )

  @nn.nowrap
  def _encoder(self, layout):
    embedding_dropout_rate = self.embedding_dropout_rate
    if embedding_dropout_rate is None:
      embedding_dropout_rate = self.dropout_rate
    given = {field.name for field in dataclasses.fields(self)}
    layer = encoder.LayerSettings(
      rotation=self._rotary() if self.rotary else None,
      layout=layout,
      **{
        field.name: getattr(self, field.name)
        for field in dataclasses.fields(encoder.LayerSettings)
        if field.name in given
      },
    )
    return encoder.Encoder(
      num_layers=self.num_layers,
      layer=layer,
      embedding_dropout_rate=embedding_dropout_rate,
      patch_dropout_rate=self.patch_dropout_rate,
      fractal_columns=self.fractal_columns,
      global_drop_path_rate=self.global_drop_path_rate,
      attention=self.attention,
      remat=self.remat,
      scan=self.scan,
      pre_norm=self.pre_norm,
      last_norm=self.encoder_norm,
      name='Transformer',
    )

  @nn.nowrap
  def _pool(self, x, layout):
    """Returns the input of the head from the encoder's output [B, T, D]."""
    if self.classifier == 'token':
      # [B, D], equation 4; with a distillation token, [B, 2·D].
      return x[:, : layout.num_tokens].reshape(x.shape[0], -1)
    if self.classifier == 'token_gap':
      mean = jnp.mean(layout.patches(x), axis=1)
      return jnp.concatenate([x[:, 0], mean], axis=1)  # [B, 2·D]
    if self.classifier == 'token_unpooled':
      return x[:, : x.shape[1] - self.num_registers]  # [B, 1 + N, D]
    if not self.pool_all_tokens:
      x = layout.patches(x)  # [B, N, D]
    if self.classifier == 'gap':
      return jnp.mean(x, axis=1)  # [B, D]
    if self.classifier in ('map', 'probe'):
      return pooling.AttentionPooling(
        mlp_dim=self.pool_mlp_dim or self.mlp_dim,
        num_heads=self.pool_heads or self.num_heads,
        head_dim=self.head_dim,
        gelu=self.gelu,
        norm=self.norm,
        norm_epsilon=self.norm_epsilon,
        is_probe_only=self.classifier == 'probe',
        qkv_bias=self.qkv_bias or self.classifier == 'map',
        dtype=self.dtype,
        name='MAPHead_0',
      )(x)
    return x
