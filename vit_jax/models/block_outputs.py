"""Outputs of single blocks of a model, with the patches as a grid.

  outputs = block_outputs.get(model, params, images, blocks=[3, -1])
  outputs[3].grid  # [B, h, w, D]

Shapes:  B batch · h, w rows, columns of the grid · D width of a token
         R registers
"""

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp


class BlockOutput(NamedTuple):
  """The output of one block in float32, before the final norm of the model."""

  grid: jax.Array  # patches [B, h, w, D]; for BiT, the output of a stage
  class_token: jax.Array | None  # [B, D]
  registers: jax.Array | None  # [B, R, D]
  distillation_token: jax.Array | None = None  # [B, D]


def get(
  model: nn.Module, params: Any, images: jax.Array, blocks: Sequence[int]
) -> dict[int, BlockOutput]:
  """Returns {block: its output in evaluation}, compiled.

  Args:
    model: a VisionTransformer, MlpMixer or BitResNet.
    params: parameters of the model.
    images: images [B, H, W, C] in [−1, 1].
    blocks: numbers of blocks from 0; −1 is the last block. For BiT, the blocks
      are the stages.

  Raises:
    ValueError: a block does not exist, or the model is a fractal, whose blocks
      have no single sequence.
  """
  names = resolve(model, blocks)
  outputs = _apply(model, params, images, tuple(sorted(set(names.values()))))
  return {block: outputs[name] for block, name in names.items()}


def resolve(model: nn.Module, blocks: Sequence[int]) -> dict[int, str]:
  """Returns {number of a block: its name}; raises ValueError as `get` does."""
  names = model.block_names
  if not isinstance(blocks, Sequence) or isinstance(blocks, str):
    raise ValueError(
      f'blocks={blocks!r} is not a list. Use a list such as blocks=[0, -1].'
    )
  if not blocks:
    raise ValueError(f'blocks={blocks!r} is empty. Use at least one block.')
  for block in blocks:
    if (
      isinstance(block, bool)
      or not isinstance(block, int)
      or not -len(names) <= block < len(names)
    ):
      raise ValueError(
        f'blocks={blocks!r}: there is no block {block!r}. The model has '
        f'{len(names)} blocks: 0 to {len(names) - 1}, or -{len(names)} to -1 '
        'from the end.'
      )
  return {block: names[block] for block in blocks}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(model, params, images, names):
  """Returns {name: `BlockOutput`}."""
  _, state = model.apply(
    {'params': params},
    images,
    train=False,
    mutable='intermediates',
    capture_intermediates=lambda module, method: (
      method == '__call__' and module.name in names
    ),
  )
  found = traverse_util.flatten_dict(state['intermediates'])
  outputs = {
    path[-2]: value
    for path, (value, *_) in found.items()
    if path[-1] == '__call__'
  }
  layout = model.layout(*images.shape[1:3])
  return {name: _split(outputs[name], layout) for name in names}


def _split(x, layout):
  """Splits tokens [B, T, D] into a `BlockOutput`."""
  x = x.astype(jnp.float32)
  if x.ndim == 4:
    return BlockOutput(grid=x, class_token=None, registers=None)
  before, after = layout.around
  batch, _, width = x.shape
  return BlockOutput(
    grid=layout.patches(x).reshape(batch, *layout.grid, width),
    class_token=x[:, 0] if before else None,
    registers=x[:, x.shape[1] - after :] if after else None,
    distillation_token=x[:, 1] if before > 1 else None,
  )
