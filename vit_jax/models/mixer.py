"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601, section 2).

Shapes:  B batch · H, W image height, width · C channels · P patch size
         N tokens · D hidden_size · K classes

Parameter names are those of the published checkpoints.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import input_checks
from vit_jax.models.layers import dropout
from vit_jax.models.layers import image_scale
from vit_jax.models.layers import linear
from vit_jax.models.layers import mlp
from vit_jax.models.layers import patches
from vit_jax.models.layers import remat_and_scan


class MixingMlp(nn.Module):
  """Two dense layers with a GELU between them, along the last axis."""

  mlp_dim: int
  gelu: str = 'tanh'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [..., n] -> [..., n]
    y = linear.Dense(self.mlp_dim, dtype=self.dtype, name='Dense_0')(x)
    return linear.Dense(x.shape[-1], dtype=self.dtype, name='Dense_1')(
      mlp.gelu(y, self.gelu)
    )


class MixerBlock(nn.Module):
  """Mixes tokens, then channels: equation 1 of the paper."""

  tokens_mlp_dim: int
  mlp_dim: int
  gelu: str = 'tanh'
  norm_epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, drop_path_rate=0.0, key=None):
    """[B, N, D] -> [B, N, D]; without a key, drop path drops nothing."""
    keys = dropout.split(key, 2)
    y = nn.LayerNorm(
      epsilon=self.norm_epsilon, dtype=self.dtype, name='LayerNorm_0'
    )(x)
    y = MixingMlp(
      mlp_dim=self.tokens_mlp_dim,
      gelu=self.gelu,
      dtype=self.dtype,
      name='token_mixing',
    )(y.swapaxes(1, 2))
    x = x + dropout.drop_path(y.swapaxes(1, 2), drop_path_rate, keys[0])
    y = nn.LayerNorm(
      epsilon=self.norm_epsilon, dtype=self.dtype, name='LayerNorm_1'
    )(x)
    y = MixingMlp(
      mlp_dim=self.mlp_dim,
      gelu=self.gelu,
      dtype=self.dtype,
      name='channel_mixing',
    )(y)
    return x + dropout.drop_path(y, drop_path_rate, keys[1])


class MlpMixer(nn.Module):
  """Classifies images: `apply({'params': p}, images, train=False) -> logits`.

  Attributes:
    num_classes: K, number of classes. 0 removes the head; the model then
      returns the mean token [B, D].
    patch_size: P, side of a square patch in pixels.
    hidden_size: D, width of the residual stream.
    num_layers: number of blocks. Each block mixes tokens, then channels.
    tokens_mlp_dim: width of the hidden layer in the MLPs over tokens.
    mlp_dim: width of the hidden layer in the MLPs over channels.
    drop_path_rate: stochastic depth: the probability that a branch of the last
      block is skipped for a sample.
    drop_path_schedule: 'linear': this probability rises from 0 in the first
      block. 'constant': it is the same in all blocks.
    gelu: 'tanh' for published weights, 'exact' for weights from PyTorch.
    norm_epsilon: term added to the variance in layer norms.
    image_mean: mean of each channel in training, for pixels in [0, 1]; see
      `layers.image_scale`. None, as in published weights: 0.5.
    image_std: standard deviation of each channel; None: 0.5.
    remat: values that layers keep for the backward pass. From most to least
      memory: 'none' keeps all, 'dots' and 'dense' keep matrix products, 'full'
      keeps only the layer input.
    scan: whether one layer is compiled and runs in a loop. Otherwise, all
      layers are compiled.
    dtype: dtype of the activations. Parameters and returned logits are float32.
  """

  num_classes: int
  patch_size: int
  hidden_size: int
  num_layers: int
  tokens_mlp_dim: int
  mlp_dim: int
  drop_path_rate: float = 0.0
  drop_path_schedule: str = 'linear'
  gelu: str = 'tanh'
  norm_epsilon: float = 1e-6
  image_mean: tuple[float, ...] | None = None
  image_std: tuple[float, ...] | None = None
  remat: str = 'none'
  scan: bool = False
  dtype: Any = jnp.float32

  def __post_init__(self):
    if not 0 <= self.drop_path_rate < 1:
      raise ValueError(
        f'drop_path_rate={self.drop_path_rate} must be at least 0 and below 1.'
      )
    dropout.check_schedule(self.drop_path_schedule)
    mlp.check(self.gelu)
    image_scale.check(self.image_mean, self.image_std)
    remat_and_scan.check(self.remat)
    super().__post_init__()

  @nn.nowrap
  def grid_size(self, height: int, width: int) -> tuple[int, int]:
    """Returns the number of patches, (down, across).

    Raises:
      ValueError: an image side is not a multiple of the patch size.
    """
    return patches.grid_size(height, width, self.patch_size)

  @nn.nowrap
  def layout(self, height: int, width: int) -> patches.Layout:
    """Returns the order of the tokens; raises ValueError as `grid_size`."""
    return patches.Layout(grid=self.grid_size(height, width))

  @property
  def block_names(self) -> list[str]:
    """Returns the names of the blocks, in order."""
    return [f'MixerBlock_{i}' for i in range(self.num_layers)]

  @nn.compact
  def __call__(self, images, *, train):  # [B, H, W, C] -> [B, K]
    input_checks.check_model_input(self, images, 'stem', self.patch_size)
    x = patches.PatchEmbedding(
      hidden_size=self.hidden_size,
      patch_size=self.patch_size,
      dtype=self.dtype,
      name='stem',
    )(image_scale.standardize(images, self.image_mean, self.image_std))
    keys = None
    # `jax.eval_shape` may trace `train`, so initialization ignores it.
    if not self.is_initializing() and train and self.drop_path_rate:
      keys = jax.random.split(self.make_rng('dropout'), self.num_layers)
    rates = dropout.path_rates(
      self.drop_path_rate, self.num_layers, self.drop_path_schedule
    )
    x = remat_and_scan.run(
      self,
      MixerBlock,
      dict(
        tokens_mlp_dim=self.tokens_mlp_dim,
        mlp_dim=self.mlp_dim,
        gelu=self.gelu,
        norm_epsilon=self.norm_epsilon,
        dtype=self.dtype,
      ),
      self.block_names,
      x,
      (rates, keys),
      remat=self.remat,
      scan=self.scan,
    )
    x = nn.LayerNorm(
      epsilon=self.norm_epsilon, dtype=self.dtype, name='pre_head_layer_norm'
    )(x)
    x = jnp.mean(x, axis=1)  # [B, D]
    if self.num_classes:
      x = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        name='head',
        kernel_init=nn.initializers.zeros,
      )(x)
    return x.astype(jnp.float32)
