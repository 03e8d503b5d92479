"""FractalNet (Larsson et al. 2016, arXiv 1605.07648, sections 3 and 3.1).

A fractal with one column is a layer. A fractal with C + 1 columns joins a layer
with a sequence of two fractals with C columns. Column c (from 0) of a fractal
therefore has 2^c layers. A join takes the mean of the columns that meet there.
Successive joins without a layer between them count as one join. The layers are
Transformer blocks. They have residual connections, unlike the layers of
FractalNet.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def check(num_columns: int, num_layers: int) -> None:
  """Raises ValueError if the longest column cannot have `num_layers` layers."""
  if num_columns < 1:
    raise ValueError(f'fractal_columns={num_columns} must be 1 or more.')
  if num_layers % 2 ** (num_columns - 1):
    raise ValueError(
      f'num_layers={num_layers} must be a multiple of '
      f'{2 ** (num_columns - 1)}: one fractal with '
      f'fractal_columns={num_columns} has {2 ** (num_columns - 1)} layers in '
      'its longest column.'
    )


def drop_path(
  key: jax.Array, num_columns: int, local_rate: float, global_rate: float
) -> Callable:
  """Draws a subnetwork and returns the function that selects inputs of joins.

  With probability `global_rate`, the subnetwork is a single column, drawn
  uniformly ("global"). Otherwise, each join drops each of its inputs with
  probability `local_rate`, but keeps at least one input ("local").

  Returns:
    Function (index of the join, range of its columns) -> bool [columns].
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
  """Returns the mean of the kept inputs; 0 if this join keeps none."""
  weights = (kept / jnp.maximum(kept.sum(), 1)).astype(inputs[0].dtype)
  return sum(weight * x for weight, x in zip(weights, inputs, strict=True))


def run(
  x: jax.Array,
  num_columns: int,
  num_layers: int,
  layer: Callable,
  kept: Callable | None,
) -> jax.Array:
  """Applies a sequence of `num_layers` / 2^(C − 1) fractals to `x`.

  Args:
    x: input of the first fractal.
    num_columns: C, number of columns.
    num_layers: total number of layers of the longest column.
    layer: function (x, column, index of the layer in its column) -> x.
    kept: function from `drop_path`; None keeps all inputs of all joins.
  """
  num_used = [0] * num_columns  # layers of each column so far
  num_joins = 0

  def call(x, column):
    num_used[column] += 1
    return layer(x, column, num_used[column] - 1)

  def join(inputs):  # outputs of the last `len(inputs)` columns
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
    """Returns the inputs of the last join of columns `column` and higher."""
    inputs = [call(x, column)]
    if column + 1 < num_columns:
      half_way = join(fractal(x, column + 1))
      inputs += fractal(half_way, column + 1)
    return inputs

  for _ in range(num_layers // 2 ** (num_columns - 1)):
    x = join(fractal(x, 0))
  return x
