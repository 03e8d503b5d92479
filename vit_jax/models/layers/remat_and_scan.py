"""Runs the layers of a model one after another, in one of several ways.

Rematerialisation (Chen et al. 2016, arXiv 1604.06174) trades time for memory;
a scan compiles one layer instead of all. Neither changes parameters, outputs or
gradients, but for the order of float sums.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# name: what a layer keeps from the forward pass for the backward one
REMAT = {
  'none': jax.checkpoint_policies.everything_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_saveable,
  'dense': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check(remat: str) -> None:
  """Raises a ValueError for a policy that does not exist."""
  if remat not in REMAT:
    raise ValueError(f'remat {remat!r} is not one of ' + ', '.join(REMAT))


def rematerialized(
  block_class: type[nn.Module], remat: str, prevent_cse: bool = True
) -> type[nn.Module]:
  """`block_class`, keeping what the policy `remat` says.

  'none' keeps everything that gradients need, 'dots' the matrix products,
  'dense' those of dense layers but not those of attention, 'full' nothing.
  Within a scan, `prevent_cse` is not needed, and would cost time.
  """
  if remat == 'none':
    return block_class
  return nn.remat(block_class, policy=REMAT[remat], prevent_cse=prevent_cse)


def run(
  parent: nn.Module,
  block_class: type[nn.Module],
  settings: Mapping[str, Any],
  names: Sequence[str],
  x: jax.Array,
  per_layer: tuple,
  shared: tuple = (),
  *,
  remat: str,
  scan: bool,
) -> jax.Array:
  """`x` after all layers.

  The parameters of each layer stay under its own name. A scan stacks them
  in the forward pass, which takes the memory of one more copy; what a layer
  sows is then lost.

  Args:
    parent: linen module, in whose `@nn.compact` method this is called.
    block_class: linen module of a layer: `(x, *per_layer, *shared) -> x`.
    settings: its attributes, as a dict.
    names: of the layers in `parent`.
    x: input of the first layer.
    per_layer: tuple of inputs with a leading axis over the layers, or None.
    shared: tuple of inputs that all layers have.
    remat: name of a policy in REMAT.
    scan: whether to loop by `jax.lax.scan`.
  """
  if not scan or parent.is_initializing():
    block_class = rematerialized(block_class, remat)
    for i, name in enumerate(names):
      own = jax.tree.map(operator.itemgetter(i), per_layer)
      x = block_class(**settings, name=name)(x, *own, *shared)
    return x

  block = rematerialized(block_class, remat, prevent_cse=False)(
    **settings, parent=None
  )

  def layer(x, inputs):
    params, own = inputs
    return block.apply({'params': params}, x, *own, *shared), None

  params = parent.variables['params']
  stacked = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), *[params[name] for name in names]
  )
  x, _ = jax.lax.scan(layer, x, (stacked, per_layer))
  return x
