"""Figures of the parameters of a model, and of its features of many images.

  figure = model_figures.make(trained, 'filters')
  figure = model_figures.make(trained, 'attention_distance', images)

Shapes:  B images · H, W image height, width · C channels · L blocks
         N patches · A attention heads
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checkpoint import trained_model
from vit_jax.figures import attention_maps
from vit_jax.figures import catalog
from vit_jax.figures import charts
from vit_jax.figures import drawing
from vit_jax.figures import features
from vit_jax.figures import filters
from vit_jax.figures import photo_figures
from vit_jax.models import block_outputs

_BATCH = 8
_BATCH_OF_CKA = 16


def make(
  trained: trained_model.TrainedModel,
  name: str,
  images: np.ndarray | None = None,
  options: catalog.Options = catalog.DEFAULT,
) -> catalog.Figure:
  """Returns a figure.

  Args:
    trained: the model.
    name: one of `catalog.OF_PARAMETERS` and `catalog.OF_IMAGES`.
    images: model inputs [B, H, W, C] in [−1, 1], for `catalog.OF_IMAGES`.
    options: what the figure shows.

  Raises:
    ValueError: the model has no such figure.
  """
  catalog.check(trained, name, options)
  return _MAKERS[name](trained, images, options)


def _filters(trained, images, options):
  del images, options
  path, kernel = filters.first_kernel(trained.params)
  found, fractions = filters.components(kernel)
  side, _, channels, count = kernel.shape
  title = f'{path}: {len(found)} components of {count} filters {side} x {side}'
  if channels not in (1, 3):
    shown = 'the first 3' if channels > 3 else 'the first'
    title += f'\n({shown} of {channels} channels)'
  plot = drawing.filters(found, fractions, title)
  return catalog.Figure(plot, {'components': found, 'variance': fractions})


def _positions(trained, images, options):
  del images, options
  model, size = trained.model, trained.image_size
  if model.positions == 'relative':
    norms = filters.offset_norms(trained.params)
    return catalog.Figure(charts.offset_norms(norms), {'norms': norms})
  grid = model.grid_size(*size)
  table = filters.position_table(model, trained.params, size)
  found = filters.similarities(table, grid)
  where = ', block 0' if model.positions_at == 'every_layer' else ''
  plot = drawing.position_tiles(found, f'positions: {model.positions}{where}')
  return catalog.Figure(plot, {'similarity': found})


def _attention_distance(trained, images, options):
  reduction = (
    attention_maps.renormalized_distance
    if options.renormalize
    else attention_maps.distance
  )
  found = photo_figures.reduce(trained, images, reduction, batch=_BATCH)
  values = np.stack([x.mean(0) for x in found])  # [L, A]
  model = trained.model
  uniform = attention_maps.pixel_distances(
    model.grid_size(*trained.image_size), model.stride
  ).mean()
  plot = charts.distances(
    values, len(images), options.renormalize, float(uniform)
  )
  return catalog.Figure(plot, {'distance': values, 'uniform': uniform})


def _outputs_of_blocks(trained, images, reduction, batch):
  """Returns the reduced outputs of all blocks, for each batch."""
  model = trained.model.clone(dtype=jnp.float32)
  blocks = list(range(len(model.block_names)))

  @jax.jit
  def run(params, x):
    found = block_outputs.get(model, params, x, blocks)
    return [reduction(found[block].grid) for block in blocks]

  return [
    jax.device_get(run(trained.params, images[i : i + batch]))
    for i in range(0, len(images), batch)
  ]


def _norms(trained, images, options):
  del options

  def norms(grid):
    return jnp.linalg.norm(grid, axis=-1).reshape(len(grid), -1)

  found = _outputs_of_blocks(trained, images, norms, _BATCH)
  values = [np.concatenate(x) for x in zip(*found, strict=True)]
  cutoff = features.outlier_cutoff(values[-1])
  plot = charts.norms(values, cutoff)
  numbers = {f'block_{i}': x for i, x in enumerate(values)}
  return catalog.Figure(plot, {**numbers, 'cutoff': cutoff})


def _cka(trained, images, options):
  del options
  batch = min(_BATCH_OF_CKA, len(images))
  count = len(images) // batch * batch  # minibatches of equal size
  found = _outputs_of_blocks(trained, images[:count], features.gram, batch)
  values = features.cka(sum(map(features.hsic_of_layers, found)))
  return catalog.Figure(charts.cka(values, count), {'cka': values})


_MAKERS = {
  'filters': _filters,
  'positions': _positions,
  'attention_distance': _attention_distance,
  'norms': _norms,
  'cka': _cka,
}
