"""Rotary positions (RoFormer: Su et al. 2021, arXiv 2104.09864, section 3.2).

Queries and keys are rotated by angles that are proportional to the position of
their patch. Their product then depends only on the offset between the patches.

Shapes:  B batch · T tokens · H heads · d width of a head
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.layers import patches

# {kind: default temperature}
KINDS = {'axial': 10_000.0, 'normalized': 100.0, 'mixed': 10.0}
AXES = ('ij', 'xy')


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Settings of rotary positions.

  The fields are those of `VisionTransformer`, without the prefix `rotary_`.

  Attributes:
    kind: 'axial': one half of the angles belongs to the row, the other half to
      the column (EVA-02, arXiv 2303.11331). 'normalized': also axial, but both
      coordinates are from -1 to 1 in every image (DINOv3, arXiv 2508.10104).
      'mixed': each angle is a learned combination of row and column, in each
      head of each block (RoPE-ViT, arXiv 2403.13298, section 3.2).
    temperature: base of the frequencies; for 'mixed', of their initial values.
      None is the default of the kind.
    grid: 'axial' only: (rows, columns) of the patches in pre-training. Other
      grids are stretched to this grid. None does not stretch.
    indexing: order of the coordinates, 'ij' (row, column) or 'xy' (column,
      row).
    offset: added to both coordinates, in patches.
    halves: whether channels i and i + d / 2 of a head are rotated together.
      Otherwise, channels 2i and 2i + 1 are.
  """

  kind: str | None
  temperature: float | None = None
  grid: tuple[int, int] | None = None
  indexing: str = 'ij'
  offset: float = 0.0
  halves: bool = False

  def check(self, head_dim: int) -> None:
    """Raises ValueError if the settings are wrong or do not fit together."""
    for name, value, known in (
      ('rotary', self.kind, KINDS),
      ('rotary_indexing', self.indexing, AXES),
    ):
      if value not in known:
        raise ValueError(f'{name}={value!r} is not one of {", ".join(known)}.')
    if head_dim % 4:
      raise ValueError(
        f'rotary={self.kind!r} needs heads with a width that is a multiple of '
        f'4, not {head_dim}. Change num_heads or head_dim.'
      )
    if self.temperature is not None and self.temperature <= 0:
      raise ValueError(
        f'rotary_temperature={self.temperature} must be above 0.'
      )
    if self.grid is not None and self.kind != 'axial':
      raise ValueError(
        f"rotary_grid={self.grid} needs rotary='axial', not {self.kind!r}. "
        'Remove rotary_grid.'
      )
    if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
      raise ValueError(
        f'rotary_grid={self.grid} must be (rows, columns), both 1 or more.'
      )

  def check_unused(self) -> None:
    """Raises ValueError if a setting has a value, but there is no kind."""
    for field in dataclasses.fields(self)[1:]:
      value = getattr(self, field.name)
      if value != field.default:
        raise ValueError(
          f'rotary_{field.name}={value!r} has no effect without rotary '
          f'positions. Remove it, or set rotary to {", ".join(KINDS)}.'
        )

  def coordinates(self, layout: patches.Layout) -> np.ndarray:  # -> [T, 2]
    """Returns the coordinates of all tokens.

    They are zero for class token and registers, which are not rotated.
    """
    axes = [np.arange(side) + self.offset for side in layout.grid]
    if self.kind == 'normalized':  # DINOv3: centers of patches
      axes = [
        2 * (axis + 0.5) / side - 1
        for axis, side in zip(axes, layout.grid, strict=True)
      ]
    elif self.grid is not None:
      axes = [
        axis / side * reference
        for axis, side, reference in zip(
          axes, layout.grid, self.grid, strict=True
        )
      ]
    grid = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, 2)
    if self.indexing == 'xy':
      grid = grid[:, ::-1]
    return np.pad(grid, (layout.around, (0, 0)))

  def frequencies(self, head_dim: int) -> np.ndarray:  # -> [2, d / 2]
    """Returns the factors from coordinates to angles (unless 'mixed').

    The first coordinate has the first half of the angles.
    """
    scales = self._scales(head_dim)
    if self.kind == 'normalized':
      scales = 2 * math.pi * scales
    none = np.zeros_like(scales)
    return np.stack(
      [np.concatenate([scales, none]), np.concatenate([none, scales])]
    )

  def _scales(self, head_dim):
    """Returns frequencies of one axis [d / 4] (RoFormer, equation 15)."""
    temperature = self.temperature or KINDS[self.kind]
    return temperature ** -(np.arange(head_dim // 4) / (head_dim // 4))

  def init_frequencies(
    self, key: jax.Array, shape: tuple[int, int, int], dtype: np.dtype
  ) -> jax.Array:  # -> [2, H, d / 2]
    """Returns initial frequencies: axial ones, turned at random in each head.

    RoPE-ViT's code; the paper does not describe initial values.
    """
    _, heads, half = shape
    scales = self._scales(2 * half)
    turn = jax.random.uniform(key, (heads, 1), maxval=2 * math.pi)
    turns = jnp.concatenate([turn, turn + math.pi / 2], axis=1)[..., None]
    waves = jnp.stack([jnp.cos(turns), jnp.sin(turns)]) * scales
    return waves.reshape(shape).astype(dtype)

  def turns(
    self, layout: patches.Layout, head_dim: int
  ) -> tuple[jax.Array, ...]:
    """Returns what all blocks share, computed once.

    The result is (cosines, sines) of the angles, both [1, T, d / 2]. For
    'mixed', it is the coordinates ([1, T, 2],).
    """
    where = self.coordinates(layout)
    if self.kind == 'mixed':
      return (jnp.asarray(where[None], jnp.float32),)
    angles = (where @ self.frequencies(head_dim))[None]
    return tuple(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))


class MixedTurns(nn.Module):
  """Cosines and sines of learned angles (RoPE-ViT, equation 14)."""

  settings: Rotary

  @nn.compact
  def __call__(self, coordinates, num_heads, head_dim):
    """[B or 1, T, 2] -> two arrays [B or 1, T, H, d / 2]."""
    frequencies = self.param(
      'frequencies',
      self.settings.init_frequencies,
      (2, num_heads, head_dim // 2),
      jnp.float32,
    )
    # Sums of products in float32; a matrix product may be less precise.
    angles = (
      coordinates[..., 0, None, None] * frequencies[0]
      + coordinates[..., 1, None, None] * frequencies[1]
    )
    # XLA fuses elementwise functions into their uses, and would evaluate these
    # for each image. A matrix product is not fused. With the identity, it is
    # exact. On a CPU, a training step of a small model is 5 % faster.
    identity = jnp.eye(head_dim // 2)
    return tuple(
      jnp.matmul(f(angles), identity, precision='highest')
      for f in (jnp.cos, jnp.sin)
    )


def rotate(
  x: jax.Array, cosines: jax.Array, sines: jax.Array, halves: bool
) -> jax.Array:
  """Rotates pairs of channels (RoFormer, equation 34), in float32.

  Args:
    x: queries or keys [B, T, H, d].
    cosines: cosines of the angles [B or 1, T, d / 2] or [B or 1, T, H, d / 2].
    sines: their sines.
    halves: which channels are a pair; see `Rotary`.
  """
  if cosines.ndim == 3:
    cosines, sines = cosines[:, :, None], sines[:, :, None]
  y = x.astype(jnp.float32)
  if halves:
    first, second = jnp.split(y, 2, axis=-1)
  else:
    first, second = y[..., ::2], y[..., 1::2]
  turned = (first * cosines - second * sines, second * cosines + first * sines)
  if halves:
    y = jnp.concatenate(turned, axis=-1)
  else:
    y = jnp.stack(turned, axis=-1).reshape(x.shape)
  return y.astype(x.dtype)
