"""Muon for the kernels of the blocks, and Adam for all other parameters.

The momentum of a kernel is orthogonalized as a matrix [inputs, outputs]: Jordan
et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et
al. 2025, arXiv 2502.16982.
Embeddings, positions, norms, biases and the head stay in Adam, as the authors
recommend.

Shapes:  D width · H heads · d width of a head · M hidden width of an MLP
"""

import math
from typing import Any

import jax
from ml_collections import ConfigDict
import optax
from optax import contrib

from vit_jax.models import param_paths
from vit_jax.optim import rules
from vit_jax.optim import weight_decay


def dimensions(path: str, num_axes: int) -> contrib.MuonDimensionNumbers | None:
  """Returns which axes are inputs and outputs; None if Adam trains the array.

  Args:
    path: path of a parameter.
    num_axes: its number of axes.
  """
  if not weight_decay.is_kernel(path) or not param_paths.in_block(path):
    return None
  if f'/{param_paths.RELATIVE_MODULE}/' in path:
    return None
  if num_axes == 2:  # [D, M]
    return contrib.MuonDimensionNumbers(0, 1)
  if path.endswith('out/kernel'):  # [H, d, D]
    return contrib.MuonDimensionNumbers((0, 1), 2)
  return contrib.MuonDimensionNumbers(0, (1, 2))  # query, key, value [D, H, d]


def _dimensions_of(tree):
  return jax.tree.map_with_path(
    lambda path, x: dimensions(rules.path_of(path), x.ndim), tree
  )


def is_hidden(params: Any) -> Any:
  """Returns a tree with True for the parameters that Muon trains."""
  return jax.tree.map_with_path(
    lambda path, x: dimensions(rules.path_of(path), x.ndim) is not None, params
  )


def _is_other(params):
  return jax.tree.map(lambda hidden: not hidden, is_hidden(params))


def scale_by_shape(rms: float) -> optax.GradientTransformation:
  """Returns a transformation that scales orthogonal updates by their shapes.

  With a root mean square `rms` (0.2), the rates and the weight decay of AdamW
  can be used: arXiv 2502.16982, section 2.2. With 0, the factor is √max(1,
  outputs / inputs), as in the code of Jordan et al.
  """

  def scale(path, update):
    axes = dimensions(rules.path_of(path), update.ndim)
    inputs, outputs = (
      math.prod(update.shape[i] for i in ([x] if isinstance(x, int) else x))
      for x in axes
    )
    if rms:
      return update * (rms * max(inputs, outputs) ** 0.5)
    return update * max(1, outputs / inputs) ** 0.5

  return optax.stateless(
    lambda updates, params: jax.tree.map_with_path(scale, updates)
  )


def make(
  config: ConfigDict, decay: weight_decay.WeightDecay
) -> optax.GradientTransformation:
  """Returns Muon with Adam and weight decay, without a learning rate.

  Args:
    config: settings under "optimizer" in `base_config`.
    decay: weight decay of all parameters.

  Raises:
    ValueError: later, in `init`: the model has no kernels in blocks.
  """
  hidden = optax.chain(
    contrib.scale_by_muon(
      beta=config.muon_momentum,
      mu_dtype=config.momentum_dtype,
      weight_dimension_numbers=_dimensions_of,
    ),
    scale_by_shape(config.muon_rms),
  )
  other = optax.scale_by_adam(
    b1=config.adam_b1, b2=config.adam_b2, mu_dtype=config.momentum_dtype
  )
  tx = optax.chain(
    optax.masked(hidden, is_hidden), optax.masked(other, _is_other), decay.add()
  )

  def init(params):
    if not any(jax.tree.leaves(is_hidden(params))):
      raise ValueError(
        'config.optimizer=muon trains the kernels in blocks, such as '
        f'{param_paths.block(0)}, but this run trains none. Use another '
        'optimizer, such as adamw'
      )
    return tx.init(params)

  return optax.GradientTransformation(init, tx.update)
