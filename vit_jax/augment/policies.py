"""A policy draws operations for each image, and applies them.

Shapes:  B batch · H, W height and width
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.augment import operations


class Draw(NamedTuple):
  """The random numbers of one operation of one image."""

  level: jax.Array  # strength, float32 []
  sign: jax.Array  # -1 or 1, float32 []
  place: jax.Array  # uniform in [0, 1), float32 [2]
  size: tuple[int, int]  # (H, W)


@dataclasses.dataclass(frozen=True)
class Policy:
  """A distribution over operations.

  Attributes:
    table: operations by name. Each layer draws one.
    layers: number of operations for an image.
    level: random key -> strength.
    rate: fraction of the drawn operations that are applied.
    fill: grey level of pixels that an affine map or a box replaces.
    bilinear: whether affine maps interpolate; see `affine.resample`.
  """

  table: Mapping[str, operations.Maker]
  layers: int
  level: Callable
  rate: float = 1.0
  fill: int = 128
  bilinear: bool = False

  def draw(
    self, key: jax.Array, size: tuple[int, int]
  ) -> tuple[jax.Array, operations.Operation]:
    """Returns the operation of one layer for one image of size (H, W).

    Returns:
      Its index in `table`, or the length of `table` if nothing is applied, and
      the operation.
    """
    keys = jax.random.split(key)
    choice, applied, sign, *place = jax.random.uniform(keys[0], (5,))
    draw = Draw(
      level=jnp.float32(self.level(keys[1])),
      sign=jnp.where(sign < 0.5, -1.0, 1.0),
      place=jnp.stack(place),
      size=size,
    )
    found = [maker.make(draw) for maker in self.table.values()]
    arrays = [x.arrays() for x in (*found, operations.Operation())]
    choice = jnp.floor(choice * len(found)).astype(jnp.int32)
    choice = jnp.where(applied < self.rate, choice, len(found))
    return choice, jax.tree.map(lambda *x: jnp.stack(x)[choice], *arrays)

  def apply(self, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Returns the changed images, uint8 [B, H, W, 3].

    Args:
      keys: random key of each image [B].
      images: uint8 [B, H, W, 3].
    """
    size = images.shape[1:3]
    passes = operations.make_passes(
      self.table.values(), self.fill, self.bilinear
    )
    passes = [jax.vmap(apply) for apply in passes]

    def draw(layer):
      of_layer = jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
      return jax.vmap(lambda key: self.draw(key, size)[1])(of_layer)

    def apply_all(images, operation):
      # A loop over the passes stores the images between them. Without it, XLA
      # computes earlier passes again for each pixel that a pass reads, which
      # takes five times as long on CPU.
      def apply_one(images, index):
        return jax.lax.switch(index, passes, images, operation), None

      return jax.lax.scan(apply_one, images, jnp.arange(len(passes)))

    drawn = jax.vmap(draw)(jnp.arange(self.layers))  # [layers, B]
    return jax.lax.scan(apply_all, images, drawn)[0]
