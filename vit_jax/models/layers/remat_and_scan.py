"""Runs the layers of a model in sequence, with rematerialization or a scan.

Rematerialization (Chen et al. 2016, arXiv 1604.06174) trades time for memory. A
scan compiles one layer instead of all. Both change only the order of float sums
in outputs and gradients. Both keep the names and shapes of the parameters.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# name: policy that selects the values kept for the backward pass
REMAT = {
  'none': jax.checkpoint_policies.everything_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_saveable,
  'dense': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check(remat: str) -> None:
  """Raises ValueError if `remat` is not in `REMAT`."""
  if remat not in REMAT:
    raise ValueError(f'remat={remat!r} is not one of {", ".join(REMAT)}.')


def rematerialized(
  block_class: type[nn.Module], remat: str, prevent_cse: bool = True
) -> type[nn.Module]:
  """Returns `block_class` with the rematerialization policy `remat`.

  'none' keeps everything that gradients need. 'dots' keeps all matrix products.
  'dense' keeps the products of dense layers, but not of attention. 'full' keeps
  only the layer input. A scan does not need `prevent_cse`, which costs time.
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
  """Applies all layers to `x`.

  Each layer keeps its parameters under its own name. A scan stacks them in the
  forward pass, which needs memory for one more copy. A scan would lose what
  layers sow and what `capture_intermediates` collects. So if the collection
  'intermediates' is mutable, the layers are unrolled.

  Args:
    parent: linen module that calls this function in an `@nn.compact` method.
    block_class: linen module of a layer: `(x, *per_layer, *shared) -> x`.
    settings: attributes of `block_class`, as a dict.
    names: names of the layers in `parent`.
    x: input of the first layer.
    per_layer: tuple of inputs. Each input has a leading axis over the layers,
      or is None.
    shared: tuple of inputs that are equal for all layers.
    remat: name of a policy in REMAT.
    scan: whether to loop with `jax.lax.scan`.
  """
  keeps_intermediates = parent.is_mutable_collection('intermediates')
  if not scan or parent.is_initializing() or keeps_intermediates:
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
