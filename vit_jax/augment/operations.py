"""The operations of policies, as numbers that a compiled function applies.

Each operation is an affine map, a table of grey levels, a blend with a
degenerate image, a blur or a box. The rows of a batch have different
operations, and a compiled function computes all branches for each row. So there
is one pass for each form, not one for each operation.

Shapes:  H, W height and width
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.augment import affine
from vit_jax.augment import blends
from vit_jax.augment import tables


class Operation(NamedTuple):
  """What the passes do to one image. The defaults do nothing."""

  matrix: jax.typing.ArrayLike = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
  table: jax.typing.ArrayLike = tables.KEEP
  argument: jax.typing.ArrayLike = 0  # of the table
  blend: jax.typing.ArrayLike = blends.KEEP
  factor: jax.typing.ArrayLike = 1.0  # of the blend
  sigma: jax.typing.ArrayLike = 0.0  # of the blur, in pixels
  box: jax.typing.ArrayLike = (0, 0, 0, 0)  # filled: first, last row; columns

  def arrays(self) -> 'Operation':
    """Returns the same operation with arrays of fixed types."""
    types = (jnp.float32, *(jnp.int32,) * 3, *(jnp.float32,) * 2, jnp.int32)
    return Operation(
      *(jnp.asarray(x, t) for x, t in zip(self, types, strict=True))
    )


class Maker(NamedTuple):
  """Makes an operation from random numbers.

  Attributes:
    form: name of the pass that the operation needs.
    kind: kind of the table or of the blend.
    make: function of a `policies.Draw` -> `Operation`.
  """

  form: str
  kind: int
  make: Callable


def _value(given, draw):
  """Returns a value that may be a function of the draw."""
  return given(draw) if callable(given) else given


def of_nothing() -> Maker:
  """Returns the maker of the operation that changes nothing."""
  return Maker('none', 0, lambda draw: Operation())


def of_map(matrix: Callable) -> Maker:
  """Returns the maker of an affine map; `matrix` is a function of a draw."""
  return Maker('map', 0, lambda draw: Operation(matrix=matrix(draw)))


def of_table(kind: int, argument: Any = 0) -> Maker:
  """Returns the maker of a change of grey levels; see `tables.change`."""
  return Maker(
    'table',
    kind,
    lambda draw: Operation(table=kind, argument=_value(argument, draw)),
  )


def of_blend(kind: int, factor: Any) -> Maker:
  """Returns the maker of a blend; see `blends.blend`."""
  return Maker(
    'blend',
    kind,
    lambda draw: Operation(blend=kind, factor=_value(factor, draw)),
  )


def of_blur(sigma: Callable) -> Maker:
  """Returns the maker of a Gaussian blur; see `blends.blur`."""
  return Maker('blur', 0, lambda draw: Operation(sigma=sigma(draw)))


def of_cutout(half_side: Callable) -> Maker:
  """Returns the maker of a filled square with a uniform center.

  Args:
    half_side: function of a draw -> half of the side in pixels, int32 [] or
      int32 [2] for rows and columns.
  """

  def box(draw):
    center = jnp.floor(draw.place * jnp.array(draw.size)).astype(jnp.int32)
    sides = half_side(draw)
    return jnp.stack([center - sides, center + sides], axis=1).ravel()

  return Maker('box', 0, lambda draw: Operation(box=box(draw)))


def in_box(box: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Returns which pixels are in a box, bool [H, W].

  Args:
    box: int32 [4]: first row, end of the rows, first column, end of the
      columns. A box that ends before its start is empty.
    size: (H, W).
  """
  row, column = jnp.mgrid[: size[0], : size[1]]
  inside = (row >= box[0]) & (row < box[1])
  return inside & (column >= box[2]) & (column < box[3])


def make_passes(
  makers: Iterable[Maker], fill: int, bilinear: bool
) -> list[Callable]:
  """Returns the functions (image, operation) -> image, one for each form.

  One after the other, they apply each operation of these makers to an image,
  uint8 [H, W, 3].

  Args:
    makers: makers of the operations.
    fill: value of pixels that a map uncovers, and of boxes.
    bilinear: see `affine.resample`.
  """
  kinds = {}
  for maker in makers:
    kinds.setdefault(maker.form, set()).add(maker.kind)

  def read(image, x):
    return affine.resample(image, x.matrix, fill, bilinear)

  def look_up(image, x):
    return tables.change(image, x.table, x.argument, kinds['table'])

  def blend(image, x):
    return blends.blend(image, x.blend, x.factor, kinds['blend'])

  def blur(image, x):
    return blends.blur(image, x.sigma)

  def cover(image, x):
    inside = in_box(x.box, image.shape[:2])[..., None]
    return jnp.where(inside, jnp.uint8(fill), image)

  passes = dict(map=read, table=look_up, blend=blend, blur=blur, box=cover)
  return [apply for form, apply in passes.items() if form in kinds]
