"""Position embeddings of patches: ViT paper (arXiv 2010.11929), appendix D.4.

Rotary positions are in `rotary`.

Shapes:  B batch · N patches · T tokens · K patches kept · D width of a token
         H heads · d width of a head · h, w rows and columns of patches
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.models.layers import patches

ADDED = ('learned', 'learned_2d', 'sincos2d')  # added to the tokens
BIASES = ('relative_table', 'relative_mlp')  # added to the attention logits
POSITIONS = (*ADDED, 'relative', *BIASES, 'none')
PLACES = ('input', 'every_layer', 'every_layer_shared')


def check(positions: str, positions_at: str, hidden_size: int) -> None:
  """Raises ValueError if a value is unknown or the values are incompatible."""
  for name, value, known in (
    ('positions', positions, POSITIONS),
    ('positions_at', positions_at, PLACES),
  ):
    if value not in known:
      raise ValueError(f'{name}={value!r} is not one of {", ".join(known)}.')
  is_shared_bias = positions in BIASES and positions_at == 'every_layer_shared'
  if positions_at != 'input' and positions not in ADDED and not is_shared_bias:
    raise ValueError(
      f'positions={positions!r} adds no vectors to the tokens, so '
      f"positions_at={positions_at!r} has no meaning. Use positions_at='input'."
    )
  divisor = {'learned_2d': 2, 'sincos2d': 4}.get(positions, 1)
  if hidden_size % divisor or hidden_size < 2 * divisor:
    raise ValueError(
      f'hidden_size={hidden_size} does not work with '
      f'positions={positions!r}: it must be a multiple of {divisor} and at '
      f'least {2 * divisor}.'
    )


def sincos_2d(
  grid: tuple[int, int], width: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Returns fixed embeddings of the patches [N, D] (arXiv 2205.01580).

  sin x, cos x, sin y and cos y have a quarter of the width each. Frequencies
  fall from 1 to 1 / temperature in a geometric series.
  """
  rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
  frequencies = temperature ** -np.linspace(0, 1, width // 4)
  x, y = columns * frequencies, rows * frequencies
  return np.concatenate(
    [np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1
  ).astype(np.float32)


class PositionEmbedding(nn.Module):
  """Vectors [1, T, D] to add to the tokens; vectors of registers are zero.

  'learned' has one vector for each patch and for the class token, like the
  published weights. 'learned_2d' concatenates two learned vectors of width
  D / 2, for the row and the column of the grid. With 'learned_2d' and
  'sincos2d', the vector of the class token is zero.

  Attributes:
    kind: one of ADDED.
    layout: layout of the tokens.
    std: standard deviation of the initial values; None is 0.02.
  """

  kind: str
  layout: patches.Layout
  std: float | None = None

  @nn.compact
  def __call__(self, hidden_size):  # -> [1, T, D]
    grid, (before, after) = self.layout.grid, self.layout.around

    def table(name, shape):
      std = 0.02 if self.std is None else self.std
      return self.param(
        name, nn.initializers.normal(stddev=std), shape, jnp.float32
      )

    if self.kind == 'learned':
      embedding = table(
        'pos_embedding', (1, before + self.layout.num_patches, hidden_size)
      )
      return jnp.pad(embedding, ((0, 0), (0, after), (0, 0)))
    if self.kind == 'learned_2d':
      shape = (*grid, hidden_size // 2)
      rows = table('rows', (grid[0], hidden_size // 2))
      columns = table('columns', (grid[1], hidden_size // 2))
      embedding = jnp.concatenate(
        [
          jnp.broadcast_to(rows[:, None], shape),
          jnp.broadcast_to(columns[None], shape),
        ],
        axis=-1,
      )
    else:
      embedding = jnp.asarray(sincos_2d(grid, hidden_size))
    embedding = embedding.reshape(1, -1, hidden_size)
    return jnp.pad(embedding, ((0, 0), (before, after), (0, 0)))


class RelativePositions(nn.Module):
  """Attention logits that depend on the offsets between patches.

  As in the paper, offsets are one-dimensional: patches are numbered row by row.
  The logit is the product of the query and a learned vector. The vector belongs
  to the offset from the query's patch to the key's patch. All heads share the
  vectors. Class token and registers have no position; their logits are 0.

  Attributes:
    layout: layout of the tokens.
    dtype: dtype of the products.
  """

  layout: patches.Layout
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, query, kept=None):  # [B, T, H, d] -> [B, H, T, T]
    num_patches, width = self.layout.num_patches, query.shape[-1]
    embedding = self.param(
      'embedding',
      nn.initializers.normal(stddev=0.02),
      (2 * num_patches - 1, width),
      jnp.float32,
    ).astype(self.dtype)
    logits = jnp.einsum(
      'bqhd,md->bhqm', self.layout.patches(query), embedding
    ) / math.sqrt(width)
    if kept is None:
      logits = _by_key(logits)
    else:
      offset = kept[:, None, :] - kept[:, :, None]  # [B, K, K]
      logits = jnp.take_along_axis(
        logits, (offset + num_patches - 1)[:, None], axis=-1
      )
    around = self.layout.around
    return jnp.pad(logits, ((0, 0), (0, 0), around, around))


def _by_key(x):  # [..., N, 2N - 1] -> [..., N, N]
  """Returns y with y[q, k] = x[q, k − q + N − 1]: from offsets to keys.

  Row q of `y` starts at column N − 1 − q of `x`: one column earlier than row
  q − 1. With one more column in `x`, a reshape shifts the rows in this way. A
  reshape is faster than a gather.
  """
  *batch, n, _ = x.shape
  x = jnp.pad(x, [(0, 0)] * (len(batch) + 1) + [(0, 1)])
  x = x.reshape(*batch, -1)[..., : 2 * n * n - n]
  return x.reshape(*batch, n, 2 * n - 1)[..., n - 1 :]


class RelativeBias(nn.Module):
  """Attention logits that depend on the 2-D offset between two patches.

  Each head has one logit for each offset. 'relative_table' learns all logits
  (BEiT, arXiv 2106.08254, appendix), and, with a class token, three more: for
  class token to patch, patch to class token, and class token to itself.
  'relative_mlp' computes them with an MLP from the logarithm of the offset
  (Swin V2, arXiv 2111.09883, equations 3 and 4). The logits of other pairs of
  tokens are 0.

  Attributes:
    kind: one of BIASES.
    layout: layout of the tokens.
    num_heads: H, number of heads.
    mlp_dim: width of the hidden layer of 'relative_mlp'.
    dtype: dtype of the logits.
  """

  kind: str
  layout: patches.Layout
  num_heads: int
  mlp_dim: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, kept=None):  # -> [1 or B, H, T, T]
    has_entries = self.kind == 'relative_table' and self.layout.num_tokens > 0
    if self.kind == 'relative_table':
      offsets = (2 * side - 1 for side in self.layout.grid)
      table = self.param(
        'table',
        nn.initializers.zeros,
        (math.prod(offsets) + 3 * has_entries, self.num_heads),
        jnp.float32,
      )
    else:
      table = self._mlp()
    bias = self._of_pairs(table[:-3] if has_entries else table)[None]
    if kept is not None:
      bias = bias[0][:, kept[:, :, None], kept[:, None, :]].swapaxes(0, 1)
    around = before, after = self.layout.around
    bias = jnp.pad(bias, ((0, 0), (0, 0), around, around))
    if has_entries:
      patch = slice(before, bias.shape[-1] - after)
      for where, logits in zip(
        ((0, patch), (patch, 0), (0, slice(1))), table[-3:], strict=True
      ):
        bias = bias.at[:, :, *where].set(logits[:, None])
    return bias.astype(self.dtype)

  @nn.nowrap
  def _mlp(self):
    """Returns the logits of all offsets [(2h - 1) · (2w - 1), H]."""
    axes = [
      np.sign(offset) * np.log1p(np.abs(offset))
      for offset in (np.arange(1 - side, side) for side in self.layout.grid)
    ]
    x = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, 2)
    x = nn.Dense(self.mlp_dim, name='Dense_0')(jnp.asarray(x, jnp.float32))
    return nn.Dense(self.num_heads, name='Dense_1')(nn.relu(x))

  @nn.nowrap
  def _of_pairs(self, table):
    """Returns the logits of all pairs of patches [H, N, N].

    Offsets of the table are from key to query, sorted by row, then by column.
    """
    h, w = self.layout.grid
    table = table[::-1].T.reshape(-1, 2 * h - 1, 1, 2 * w - 1)
    table = jnp.broadcast_to(table, (len(table), 2 * h - 1, w, 2 * w - 1))
    columns = _by_key(table).reshape(-1, 2 * h - 1, w * w)
    columns = columns.swapaxes(1, 2)[:, :, None]  # [H, w · w, 1, 2h - 1]
    rows = _by_key(
      jnp.broadcast_to(columns, (len(table), w * w, h, 2 * h - 1))
    ).reshape(-1, w, w, h, h)  # [H, query column, key column, query row, …]
    return rows.transpose(0, 3, 1, 4, 2).reshape(-1, h * w, h * w)
