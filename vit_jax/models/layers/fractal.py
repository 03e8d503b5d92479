"""FractalNet (Larsson et al. 2016, arXiv 1605.07648, sections 3 and 3.1).

A fractal of one column is a layer; one of C + 1 columns joins a layer with two
fractals of C columns, one after the other. So column c has 2^c layers from one
end to the other, and a join takes the mean of the columns that meet there;
joins that follow on each other are one. The layers are Transformer blocks,
with the residuals of their own that FractalNet does without.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def check(num_columns: int, num_layers: int) -> None:
  """Raises a ValueError where no whole number of fractals gives the depth."""
  if num_columns < 1:
    raise ValueError(f'fractal_columns {num_columns} must be 1 or more')
  if num_layers % 2 ** (num_columns - 1):
    raise ValueError(
      f'num_layers {num_layers} is not a multiple of '
      f'{2 ** (num_columns - 1)}, the layers of the longest of '
      f'fractal_columns {num_columns}'
    )


def drop_path(
  key: jax.Array, num_columns: int, local_rate: float, global_rate: float
) -> Callable:
  """A subnetwork of one pass: function from a join's number to what it keeps.

  With probability `global_rate` it is one single column, any with the same
  probability ("global"); else each join drops each of its inputs with
  probability `local_rate`, but keeps at least one ("local").

  Returns:
    (index of the join, its columns as a range) -> bool [columns].
  """
  kind_key, column_key, local_key = jax.random.split(key, 3)
  is_global = jax.random.bernoulli(kind_key, global_rate)
  column = jax.random.randint(column_key, (), 0, num_columns)

  def kept(index, columns):
    drop_key, survivor_key = jax.random.split(
      jax.random.fold_in(local_key, index)
    )
    columns = jnp.arange(columns.start, columns.stop)
    local = jax.random.bernoulli(drop_key, 1 - local_rate, columns.shape)
    survivor = jax.random.choice(survivor_key, columns)
    local = jnp.where(local.any(), local, columns == survivor)
    return jnp.where(is_global, columns == column, local)

  return kept


def _mean(inputs, kept):
  """Mean of the inputs that are kept; 0 where the one column is not here."""
  weights = (kept / jnp.maximum(kept.sum(), 1)).astype(inputs[0].dtype)
  return sum(weight * x for weight, x in zip(weights, inputs, strict=True))


def run(
  x: jax.Array,
  num_columns: int,
  num_layers: int,
  layer: Callable,
  kept: Callable | None,
) -> jax.Array:
  """`x` after `num_layers` / 2^(C − 1) fractals, one after the other.

  Args:
    x: the input.
    num_columns: C.
    num_layers: of the longest column.
    layer: (x, column, index of the layer in its column) -> x.
    kept: from `drop_path`; None joins all columns everywhere.
  """
  num_used = [0] * num_columns  # layers of each column so far
  num_joins = 0

  def call(x, column):
    num_used[column] += 1
    return layer(x, column, num_used[column] - 1)

  def join(inputs):  # of the last columns
    nonlocal num_joins
    if len(inputs) == 1:
      return inputs[0]
    columns = range(num_columns - len(inputs), num_columns)
    num_joins += 1
    return _mean(
      inputs,
      jnp.ones(len(inputs), bool)
      if kept is None
      else kept(num_joins - 1, columns),
    )

  def fractal(x, column):
    """What the last join of the columns from `column` on takes the mean of."""
    inputs = [call(x, column)]
    if column + 1 < num_columns:
      half_way = join(fractal(x, column + 1))
      inputs += fractal(half_way, column + 1)
    return inputs

  for _ in range(num_layers // 2 ** (num_columns - 1)):
    x = join(fractal(x, 0))
  return x
