"""Figures of photos: attention, relevance and features of each image.

  figures = photo_figures.make(trained, 'rollout', images)  # one for each

Shapes:  B images · H, W image height, width · C channels · K classes
         h, w rows and columns of patches · A attention heads
"""

from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint import trained_model
from vit_jax.figures import attention_maps
from vit_jax.figures import attention_weights
from vit_jax.figures import catalog
from vit_jax.figures import drawing
from vit_jax.figures import features
from vit_jax.inference import image_features
from vit_jax.inference import outputs

_MASS = 0.6  # of the outlined patches, as in DINO (2104.14294)


def make(
  trained: trained_model.TrainedModel,
  name: str,
  images: np.ndarray,
  options: catalog.Options = catalog.DEFAULT,
) -> list[catalog.Figure]:
  """Returns a figure of each image.

  Args:
    trained: the model.
    name: one of `catalog.OF_PHOTOS`, but not 'nearest'; see `neighbors`.
    images: model inputs [B, H, W, C] in [−1, 1].
    options: what the figures show.

  Raises:
    ValueError: the model has no such figure.
  """
  catalog.check(trained, name, options)
  return _MAKERS[name](trained, np.asarray(images), options)


def reduce(
  trained: trained_model.TrainedModel,
  images: np.ndarray,
  reduction: Any,
  classes: np.ndarray | None = None,
  batch: int = 8,
) -> Any:
  """Returns `attention_weights.reduce` of many images, as NumPy arrays."""
  parts = []
  for first in range(0, len(images), batch):
    rows = slice(first, first + batch)
    parts.append(
      jax.device_get(
        attention_weights.reduce(
          trained.model,
          trained.params,
          images[rows],
          reduction,
          None if classes is None else classes[rows],
        )
      )
    )
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _covered(model, images):
  """Returns the pixels of images that are in a patch."""
  if not getattr(model, 'drop_remainder', False):
    return images
  h, w = model.grid_size(*images.shape[1:3])
  return images[:, : h * model.stride, : w * model.stride]


def _rollout(trained, images, options):
  del options
  found = reduce(trained, images, attention_maps.rollout)
  figures = []
  for image, values in zip(_covered(trained.model, images), found, strict=True):
    ratio = values * values.size
    plot = drawing.maps(
      image,
      [('attention rollout', ratio)],
      label='ratio to uniform',
      limits=(0, max(1, ratio.max())),
    )
    figures.append(catalog.Figure(plot, {'rollout': values}))
  return figures


def _attention(trained, images, options):
  found = reduce(trained, images, attention_maps.last_block)
  if options.patch is not None:
    row, column = options.patch
    width = found['patches'].shape[-1]
    rows = found['patches'][:, :, row * width + column]
    title = f'last block: attention of patch {row}, {column}'
  elif 'probe' in found:
    rows, title = found['probe'], 'attention of the pooling'
  else:
    rows, title = found['token'], 'last block: attention of the class token'
  figures = []
  for image, heads in zip(_covered(trained.model, images), rows, strict=True):
    most = heads.max((1, 2), keepdims=True)
    plot = drawing.maps(
      image,
      [
        (f'head {i}, up to {top:.1%}', values)
        for i, (top, values) in enumerate(
          zip(most.ravel(), heads / np.where(most > 0, most, 1), strict=True)
        )
      ],
      label='fraction of the maximum',
      title=f'{title} (outlined: {_MASS:.0%} of it)',
      outlines=attention_maps.smallest_set(heads, _MASS),
      patch=options.patch,
    )
    figures.append(catalog.Figure(plot, {'attention': heads}))
  return figures


def _relevance(trained, images, options):
  logits = np.concatenate(
    [
      attention_weights.outputs(
        trained.model, trained.params, images[i : i + 1]
      )
      for i in range(len(images))
    ]
  )
  classes = logits.argmax(-1)
  if options.class_index is not None:
    classes = np.full(len(images), options.class_index)
  found = reduce(trained, images, attention_maps.relevance, classes)
  predictions = outputs.predictions(trained, logits)
  figures = []
  for i, image in enumerate(_covered(trained.model, images)):
    label = classes[i]
    name, value = trained.shown_class_names[label], predictions[i, label]
    shown = f'{value:.4g}' if trained.output == 'identity' else f'{value:.1%}'
    plot = drawing.maps(
      image,
      [(f'relevance for\n{name} ({shown})', _scaled(found[i]))],
      label='fraction of the maximum',
    )
    numbers = {'relevance': found[i], 'class': label, 'name': name}
    figures.append(catalog.Figure(plot, numbers))
  return figures


def _scaled(values):
  return values / (values.max() or 1)


def grids(
  trained: trained_model.TrainedModel, images: np.ndarray
) -> np.ndarray:
  """Returns the features of patches after the final norm, [B, h, w, D]."""
  encode = jax.jit(image_features.make(trained.model, 'grid'))
  return np.concatenate(
    [encode(trained.params, images[i : i + 1]) for i in range(len(images))]
  )


def _features(trained, images, options):
  found = grids(trained, images)
  mask = features.foreground(found, options.invert)
  colors = features.colors(found, mask)
  return [
    catalog.Figure(
      drawing.components(image, mask[i], colors[i]),
      {'foreground': mask[i], 'colors': colors[i]},
    )
    for i, image in enumerate(_covered(trained.model, images))
  ]


def _similarity(trained, images, options):
  found = grids(trained, images)
  patch = options.patch or tuple(size // 2 for size in found.shape[1:3])
  cosines = features.similarity(found, patch)
  return [
    catalog.Figure(
      drawing.maps(
        image,
        [('similarity to the patch', cosines[i])],
        label='cosine similarity',
        limits=(-1, 1),
        is_cosine=True,
        patch=patch,
      ),
      {'similarity': cosines[i], 'patch': patch},
    )
    for i, image in enumerate(_covered(trained.model, images))
  ]


_MAKERS = {
  'rollout': _rollout,
  'attention': _attention,
  'relevance': _relevance,
  'features': _features,
  'similarity': _similarity,
}
