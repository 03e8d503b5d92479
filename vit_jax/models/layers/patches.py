"""Patches of an image, and their place in the sequence of tokens."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def grid_size(
  height: int, width: int, stride: int, drop_remainder: bool = False
) -> tuple[int, int]:
  """Returns the number of patches, (down, across), of an image.

  Args:
    height: height of the image in pixels.
    width: width of the image in pixels.
    stride: distance between the centers of neighboring patches in pixels.
    drop_remainder: whether pixels right of the last patch, and below it, are
      dropped. Then a side only has to be at least one patch long.

  Raises:
    ValueError: a side is not a multiple of the stride. The message lists the
      nearest multiples.
  """
  for side, pixels in (('height', height), ('width', width)):
    is_whole = drop_remainder or pixels % stride == 0
    if pixels < stride or not is_whole:
      lower = pixels // stride * stride
      sizes = [size for size in (lower, lower + stride) if size]
      raise ValueError(
        f'image {side} {pixels} is not a multiple of the patch size '
        f'{stride}. Use {" or ".join(map(str, sizes))}.'
      )
  return height // stride, width // stride


def patchify(images: jax.Array, side: int) -> jax.Array:
  """Returns the pixels of patches, row by row: [B, H, W, C] -> [B, N, P²·C].

  Pixels of a patch are in the order (row, column, channel).

  Args:
    images: images whose sides are multiples of P.
    side: P, side of a patch in pixels.
  """
  batch, height, width, channels = images.shape
  down, across = height // side, width // side
  pixels = images.reshape(batch, down, side, across, side, channels)
  return pixels.swapaxes(2, 3).reshape(batch, down * across, -1)


def unpatchify(
  pixels: jax.Array, grid: tuple[int, int], side: int
) -> jax.Array:
  """Returns the images of patches; the inverse of `patchify`.

  Args:
    pixels: [B, N, P²·C].
    grid: number of patches (down, across).
    side: P, side of a patch in pixels.
  """
  batch, (down, across) = len(pixels), grid
  pixels = pixels.reshape(batch, down, across, side, side, -1)
  return pixels.swapaxes(2, 3).reshape(batch, down * side, across * side, -1)


class PatchEmbedding(nn.Module):
  """Embeds the patches of images, row by row (ViT paper, equation 1).

  The published kernel [P, P, C, D] belongs to a convolution with stride P. This
  module computes the convolution as one product of matrices. On CPUs, XLA runs
  convolutions slowly in a loop over micro-batches (docs/benchmarks.md).

  Attributes:
    hidden_size: D, width of a token.
    patch_size: P, side of a square patch in pixels.
    has_bias: whether a bias is added.
    drop_remainder: see `grid_size`.
    pixel_norm: norm of the pixels of each patch, or None.
    dtype: dtype of the tokens.
  """

  hidden_size: int
  patch_size: int
  has_bias: bool = True
  drop_remainder: bool = False
  pixel_norm: nn.Module | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images):  # [B, H, W, C] -> [B, N, D]
    batch, height, width, channels = images.shape
    side = self.patch_size
    down, across = grid_size(height, width, side, self.drop_remainder)
    if self.drop_remainder:
      images = images[:, : down * side, : across * side]
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (side, side, channels, self.hidden_size),
      jnp.float32,
    )
    images, kernel = nn.dtypes.promote_dtype(images, kernel, dtype=self.dtype)
    pixels = patchify(images, side).reshape(batch * down * across, -1)
    if self.pixel_norm is not None:
      pixels = self.pixel_norm(pixels)
    tokens = pixels @ kernel.reshape(-1, self.hidden_size)
    if self.has_bias:
      bias = self.param(
        'bias', nn.initializers.zeros, (self.hidden_size,), jnp.float32
      )
      tokens = tokens + bias.astype(tokens.dtype)
    return tokens.reshape(batch, down * across, self.hidden_size)


@dataclasses.dataclass(frozen=True)
class Layout:
  """The order of tokens in a sequence of T tokens.

  The class token comes first, if there is one, and then a distillation token.
  The patches follow, row by row.
  The registers are last.

  Attributes:
    grid: number of patches (down, across); N is the product.
    num_tokens: number of class tokens.
    num_registers: number of tokens after the patches.
  """

  grid: tuple[int, int]
  num_tokens: int = 0
  num_registers: int = 0

  @property
  def num_patches(self) -> int:
    return self.grid[0] * self.grid[1]

  @property
  def around(self) -> tuple[int, int]:
    """Returns the number of tokens (before, after) the patches."""
    return self.num_tokens, self.num_registers

  def patches(self, x: jax.Array) -> jax.Array:  # [B, T, ...] -> [B, N, ...]
    """Returns the tokens of patches, even if some patches were removed."""
    before, after = self.around
    return x[:, before : x.shape[1] - after]

  def select(
    self, x: jax.Array, kept: jax.Array | None
  ) -> jax.Array:  # [B or 1, T, D], [B, K] -> [B, T', D]
    """Removes the patches that are not in `kept`; None keeps all patches."""
    if kept is None:
      return x
    before, after = self.around
    patches = jnp.take_along_axis(self.patches(x), kept[..., None], axis=1)
    x = jnp.broadcast_to(x, (len(kept), *x.shape[1:]))
    return jnp.concatenate(
      [x[:, :before], patches, x[:, x.shape[1] - after :]], axis=1
    )

  def sample(
    self, key: jax.Array, batch_size: int, drop_rate: float
  ) -> jax.Array:  # -> [B, K]
    """Returns sorted indices of the patches that each sample keeps.

    This is patch dropout (arXiv 2212.00794, section 3). Each sample loses an
    equal number of random patches. It keeps at least one patch.
    """
    num_kept = max(1, round(self.num_patches * (1 - drop_rate)))
    noise = jax.random.uniform(key, (batch_size, self.num_patches))
    return jnp.sort(jnp.argsort(noise, axis=1)[:, :num_kept], axis=1)
