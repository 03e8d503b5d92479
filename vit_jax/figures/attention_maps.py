"""Maps of the patches from attention weights, as functions of arrays.

`rollout`, `last_block`, `relevance` and `distance` are reductions for
`attention_weights.reduce`.

Shapes:  B batch · L blocks · H heads · T tokens · N patches
         h, w rows and columns of patches
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.figures import attention_weights
from vit_jax.models.layers import patches

_TOKEN = ('token', 'token_unpooled')


def grid(rows: jax.Array, layout: patches.Layout) -> jax.Array:
  """Returns the patches of rows over tokens: [B, ..., T] -> [B, ..., h, w]."""
  before, after = layout.around
  rows = rows[..., before : rows.shape[-1] - after]
  return rows.reshape(*rows.shape[:-1], *layout.grid)


def fractions(maps: jax.Array) -> jax.Array:
  """Returns maps [..., h, w] that sum to 1; zeros stay zeros."""
  total = maps.sum((-2, -1), keepdims=True)
  return jnp.where(total > 0, maps / jnp.where(total > 0, total, 1), 0)


def readout(
  tokens: attention_weights.Tokens, probe: jax.Array | None = None
) -> jax.Array:
  """Returns how much of each token the head reads, [1 or B, T]; sums to 1.

  Args:
    tokens: what the tokens of the model mean.
    probe: attention of the pooling [B, S], over patches or over all tokens.
  """
  classifier = tokens.classifier
  before, after = tokens.layout.around
  count = tokens.layout.num_patches
  if probe is not None:
    if probe.shape[1] == count:
      probe = jnp.pad(probe, ((0, 0), (before, after)))
    return probe
  row = np.zeros((1, before + count + after), np.float32)
  if classifier in _TOKEN:
    row[:, : before if classifier == 'token' else 1] = 1
  elif tokens.reads_all:
    row[:] = 1
  else:
    row[:, before : before + count] = 1 / count
    if classifier == 'token_gap':
      row[:, 0] = 1
  return jnp.asarray(row / row.sum())


def rolled_out(blocks: tuple[jax.Array, ...], row: jax.Array) -> jax.Array:
  """Returns a row of attention rollout [B, T] (Abnar & Zuidema, 2005.00928).

  R = Â_L · … · Â_1 with Â = (mean over heads + I) / 2. The identity stands for
  the residual connection. The row is `row` · R.

  Args:
    blocks: attention weights [B, H, T, T] of each block, from the first.
    row: what is read of each output token [1 or B, T].
  """
  for weights in reversed(blocks):
    row = (row + _times(row, weights.mean(1))) / 2
  return row


def _times(row, matrix):
  """Returns row · matrix of each image: [1 or B, T], [B, T, S] -> [B, S]."""
  row = jnp.broadcast_to(row, matrix.shape[:2])
  return jnp.einsum('bt,bts->bs', row, matrix)


def rollout(
  attention: attention_weights.Attention, tokens: attention_weights.Tokens
) -> jax.Array:
  """Returns the attention rollout of what the head reads, [B, h, w].

  The maps sum to 1 over the patches. A map is 0 if nothing comes from patches.
  """
  probe = attention.probe
  row = readout(tokens, None if probe is None else probe.mean(1))
  rows = rolled_out(attention.blocks, row)
  return fractions(grid(rows, tokens.layout))


def last_block(
  attention: attention_weights.Attention, tokens: attention_weights.Tokens
) -> dict[str, jax.Array]:
  """Returns the rows of the last attention, from which a figure is chosen.

  `patches` [B, H, N, h, w] are the rows of all patches in the last block. With
  a class token, `token` [B, H, h, w] is its row there. With attention pooling,
  `probe` [B, H, h, w] is the row of the probe. These are parts of rows that sum
  to 1 over all tokens.
  """
  layout, last = tokens.layout, attention.blocks[-1]
  before, _ = layout.around
  rows = {'patches': last[:, :, before : before + layout.num_patches]}
  if before:
    rows['token'] = last[:, :, 0]
  found = {name: grid(x, layout) for name, x in rows.items()}
  if attention.probe is not None:
    probe = attention.probe
    if probe.shape[-1] == layout.num_patches:
      found['probe'] = probe.reshape(*probe.shape[:2], *layout.grid)
    else:
      found['probe'] = grid(probe, layout)
  return found


def smallest_set(maps: np.ndarray, mass: float = 0.6) -> np.ndarray:
  """Returns the fewest patches that hold a fraction of a map: bool [..., h, w].

  Args:
    maps: nonnegative values [..., h, w].
    mass: the fraction, in (0, 1].
  """
  flat = np.asarray(maps, np.float64).reshape(*maps.shape[:-2], -1)
  order = np.argsort(-flat, axis=-1, kind='stable')
  sums = np.cumsum(np.take_along_axis(flat, order, -1), -1)
  total = sums[..., -1:]
  # A patch is needed if those before it hold less.
  before = np.pad(sums, [(0, 0)] * (sums.ndim - 1) + [(1, 0)])[..., :-1]
  needed = (before < mass * total * (1 - 1e-9)) & (total > 0)
  chosen = np.zeros_like(needed)
  np.put_along_axis(chosen, order, needed, -1)
  return chosen.reshape(maps.shape)


def relevance_row(
  blocks: tuple[jax.Array, ...],
  gradients: tuple[jax.Array, ...],
  row: jax.Array,
) -> jax.Array:
  """Returns a row of gradient-weighted relevance [B, T] (2103.15679, eq. 5, 6).

  R ← I, then R ← R + Ā_l · R from the first block to the last, where Ā_l is the
  mean over heads of max(gradient ⊙ weights, 0). The row is `row` · R.

  Args:
    blocks: attention weights [B, H, T, T] of each block.
    gradients: gradients of a logit with respect to the weights.
    row: what is read of each output token [1 or B, T].
  """
  for weights, gradient in zip(
    reversed(blocks), reversed(gradients), strict=True
  ):
    row = row + _times(row, _positive(weights, gradient))
  return row


def _positive(weights, gradients):
  return jnp.maximum(weights * gradients, 0).mean(1)


def relevance(
  attention: attention_weights.Attention,
  gradients: attention_weights.Attention,
  tokens: attention_weights.Tokens,
) -> jax.Array:
  """Returns the relevance of the patches for a class, [B, h, w].

  With a mean over the patches, the identity gives each patch the same constant,
  which is subtracted. So a head of zeros gives zeros.
  """
  layout, probe = tokens.layout, None
  if attention.probe is not None:
    probe = _positive(attention.probe, gradients.probe)
  row = readout(tokens, probe)
  found = relevance_row(attention.blocks, gradients.blocks, row)
  return grid(found if probe is not None else found - row, layout)


def pixel_distances(size: tuple[int, int], stride: int) -> np.ndarray:
  """Returns the distances between all patches of a grid in pixels [N, N]."""
  places = np.stack(np.mgrid[: size[0], : size[1]], -1).reshape(-1, 2)
  offsets = places[:, None] - places[None]
  return (stride * np.sqrt((offsets**2).sum(-1))).astype(np.float32)


def mean_distance(
  weights: jax.Array,
  layout: patches.Layout,
  stride: int,
  renormalize: bool = False,
) -> jax.Array:
  """Returns the mean attention distance of each head in pixels: [B, H].

  This is figure 7 (right) and appendix D.7 of the ViT paper. As in the code of
  its authors, attention to other tokens than patches counts as distance 0.

  Args:
    weights: attention weights [B, H, T, T] of a block.
    layout: layout of the tokens.
    stride: pixels between two neighboring patches.
    renormalize: whether the weights of each patch are divided by their sum over
      the patches.
  """
  before, _ = layout.around
  own = slice(before, before + layout.num_patches)
  weights = weights[:, :, own, own]
  if renormalize:
    weights = weights / weights.sum(-1, keepdims=True)
  distances = pixel_distances(layout.grid, stride)
  return jnp.einsum('bhpq,pq->bhp', weights, distances).mean(-1)


def distance(
  attention: attention_weights.Attention,
  tokens: attention_weights.Tokens,
  renormalize: bool = False,
) -> tuple[jax.Array, ...]:
  """Returns the mean attention distance of each block, L times [B, H]."""
  return tuple(
    mean_distance(weights, tokens.layout, tokens.stride, renormalize)
    for weights in attention.blocks
  )


# One object, so that it is compiled once.
renormalized_distance = functools.partial(distance, renormalize=True)
