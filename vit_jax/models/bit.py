"""Big Transfer (BiT, Kolesnikov et al. 2020, arXiv 1912.11370): a ResNet-v2.

Each unit starts with norm and ReLU (He et al. 2016, arXiv 1603.05027). Norms
are group norms. Convolutions have standardized kernels (section 2.1, table 6).
As in the published code, convolutions pad symmetrically. The root pads its max
pool with zeros. The pooled values may be negative, so 0 can be the maximum.

Shapes:  B batch · H, W height, width · C, F channels · K classes

Parameters have the same names as in the stem of hybrids (`layers.resnet`).
`checkpoint.npz_names` maps the published names to them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import input_checks

_CONV_EPSILON = 1e-10  # added to the variance of a kernel
_NORM_EPSILON = 1e-5  # added to the variance of a group


class StdConv(nn.Conv):
  """A convolution without bias; its kernel [h, w, C, F] is standardized.

  For each of the F outputs, the kernel has mean 0 and variance 1.
  """

  use_bias: bool = False

  @nn.nowrap
  def param(self, name: str, *args: Any, **kwargs: Any) -> jax.Array:
    kernel = super().param(name, *args, **kwargs)
    kernel = kernel - jnp.mean(kernel, (0, 1, 2))
    return kernel / jnp.sqrt(jnp.var(kernel, (0, 1, 2)) + _CONV_EPSILON)


class Unit(nn.Module):
  """A bottleneck of three convolutions: C -> F -> F -> 4F channels."""

  features: int
  strides: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, H, W, C] -> [B, H / strides, W / strides, 4F]
    conv = functools.partial(StdConv, dtype=self.dtype)
    width, strides = 4 * self.features, (self.strides,) * 2

    def activated(name, x):
      return nn.relu(
        nn.GroupNorm(epsilon=_NORM_EPSILON, dtype=self.dtype, name=name)(x)
      )

    y = activated('gn1', x)
    if x.shape[-1] != width or self.strides != 1:
      x = conv(width, (1, 1), strides=strides, name='conv_proj')(y)
    y = conv(self.features, (1, 1), name='conv1')(y)
    y = conv(self.features, (3, 3), strides=strides, padding=1, name='conv2')(
      activated('gn2', y)
    )
    y = conv(width, (1, 1), name='conv3')(activated('gn3', y))
    return x + y


class Stage(nn.Module):
  """Units of one width; the first unit may halve the image size."""

  num_units: int
  features: int
  strides: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, H, W, C] -> [B, H / strides, W / strides, 4F]
    for unit in range(self.num_units):
      x = Unit(
        features=self.features,
        strides=1 if unit else self.strides,
        dtype=self.dtype,
        name=f'unit{unit + 1}',
      )(x)
    return x


class BitResNet(nn.Module):
  """Classifies images: `apply({'params': p}, images, train=False) -> logits`.

  Attributes:
    num_classes: K, number of classes. 0 removes the head; the model then
      returns the features before the head.
    num_units: bottleneck units in each stage.
    width_factor: multiplier of all channels. The root has 64 × width_factor.
    dtype: dtype of the activations. Parameters and returned logits are float32.
  """

  num_classes: int
  num_units: tuple[int, ...]
  width_factor: int
  dtype: Any = jnp.float32

  @property
  def _stride(self):
    """Returns the pixels between two neighboring positions of the grid."""
    return 2 ** (1 + len(self.num_units))

  @nn.nowrap
  def grid_size(self, height: int, width: int) -> tuple[int, int]:
    """Returns the number of positions, (down, across), for any image size."""
    stride = self._stride
    return -(-height // stride), -(-width // stride)

  @nn.nowrap
  def layout(self, height: int, width: int) -> None:
    """Returns None: the outputs of blocks are grids, not tokens."""

  @property
  def block_names(self) -> list[str]:
    """Returns the names of the stages, in order."""
    return [f'block{stage + 1}' for stage in range(len(self.num_units))]

  @nn.compact
  def __call__(self, images, *, train):  # [B, H, W, C] -> [B, K]
    del train  # training and evaluation do not differ
    input_checks.check_model_input(self, images, 'conv_root', self._stride)
    width = 64 * self.width_factor
    x = StdConv(
      width,
      (7, 7),
      strides=(2, 2),
      padding=3,
      dtype=self.dtype,
      name='conv_root',
    )(images)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = nn.max_pool(x, (3, 3), strides=(2, 2))
    for stage, (name, units) in enumerate(
      zip(self.block_names, self.num_units, strict=True)
    ):
      x = Stage(
        num_units=units,
        features=width * 2**stage,
        strides=2 if stage else 1,
        dtype=self.dtype,
        name=name,
      )(x)
    x = nn.relu(
      nn.GroupNorm(epsilon=_NORM_EPSILON, dtype=self.dtype, name='gn_head')(x)
    )
    x = jnp.mean(x, axis=(1, 2))  # [B, F]
    if self.num_classes:
      x = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        name='head',
        kernel_init=nn.initializers.zeros,
      )(x)
    return x.astype(jnp.float32)
