"""The convolutional stem of hybrids: a ResNet-v2 as in BiT (arXiv 1912.11370).

Convolutions have standardized weights (Qiao et al. 2019, arXiv 1903.10520).
Group norm follows each of them. See appendix B.2 of the ViT paper.

Shapes:  B batch · H, W height, width · C, F channels

Parameter names are those of the published checkpoints.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# {name: epsilon of group norms}
EPSILONS = {'original': 1e-6, 'timm': 1e-5}


def standardize(kernel: jax.Array, epsilons: str = 'original') -> jax.Array:
  """Returns a kernel [h, w, C, F] whose F filters have mean 0, deviation 1.

  The original code adds 1e-5 to the deviation, timm adds 1e-8 to its square.
  """
  axes = (0, 1, 2)
  kernel = kernel - jnp.mean(kernel, axes)
  if epsilons == 'timm':
    return kernel * jax.lax.rsqrt(jnp.var(kernel, axes) + 1e-8)
  return kernel / (jnp.std(kernel, axes) + 1e-5)


class StdConv(nn.Conv):
  """A convolution that standardizes its kernel."""

  epsilons: str = 'original'

  @nn.nowrap
  def param(self, name: str, *args: Any, **kwargs: Any) -> jax.Array:
    value = super().param(name, *args, **kwargs)
    return standardize(value, self.epsilons) if name == 'kernel' else value


class ResidualUnit(nn.Module):
  """A bottleneck of three convolutions: C -> F -> F -> 4F channels."""

  features: int
  strides: int
  epsilons: str = 'original'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, H, W, C] -> [B, H / strides, W / strides, 4F]
    conv = functools.partial(
      StdConv, use_bias=False, epsilons=self.epsilons, dtype=self.dtype
    )
    norm = functools.partial(
      nn.GroupNorm, epsilon=EPSILONS[self.epsilons], dtype=self.dtype
    )
    width, strides = 4 * self.features, (self.strides,) * 2

    residual = x
    if x.shape[-1] != width or self.strides != 1:
      residual = conv(width, (1, 1), strides=strides, name='conv_proj')(
        residual
      )
      residual = norm(name='gn_proj')(residual)

    y = conv(self.features, (1, 1), name='conv1')(x)
    y = nn.relu(norm(name='gn1')(y))
    y = conv(self.features, (3, 3), strides=strides, name='conv2')(y)
    y = nn.relu(norm(name='gn2')(y))
    y = conv(width, (1, 1), name='conv3')(y)
    y = norm(name='gn3', scale_init=nn.initializers.zeros)(y)
    return nn.relu(residual + y)


class Stage(nn.Module):
  """Residual units of one width; the first unit may halve the image size."""

  num_units: int
  features: int
  strides: int
  epsilons: str = 'original'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):  # [B, H, W, C] -> [B, H / strides, W / strides, 4F]
    for unit in range(self.num_units):
      x = ResidualUnit(
        features=self.features,
        strides=1 if unit else self.strides,
        epsilons=self.epsilons,
        dtype=self.dtype,
        name=f'unit{unit + 1}',
      )(x)
    return x


def stem_stride(num_units: Sequence[int]) -> int:
  """Returns the pixels between two neighboring positions of the output."""
  return 4 * 2 ** max(len(num_units) - 1, 0)


def stem(
  images: jax.Array,
  num_units: Sequence[int],
  width: int,
  dtype: Any,
  epsilons: str = 'original',
) -> jax.Array:
  """Applies the root and the stages; their modules belong to the caller.

  Args:
    images: images [B, H, W, C].
    num_units: bottleneck units in each stage; () is the root only.
    width: channels after the root.
    dtype: dtype of the activations.
    epsilons: one of `EPSILONS`.

  Returns:
    Features [B, H / stride, W / stride, F]; see `stem_stride`.
  """
  x = StdConv(
    width,
    (7, 7),
    strides=(2, 2),
    use_bias=False,
    epsilons=epsilons,
    dtype=dtype,
    name='conv_root',
  )(images)
  norm = nn.GroupNorm(epsilon=EPSILONS[epsilons], dtype=dtype, name='gn_root')
  x = nn.relu(norm(x))
  x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
  for stage, units in enumerate(num_units):
    x = Stage(
      num_units=units,
      features=width * 2**stage,
      strides=2 if stage else 1,
      epsilons=epsilons,
      dtype=dtype,
      name=f'block{stage + 1}',
    )(x)
  return x
