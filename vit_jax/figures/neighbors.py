"""Figures of the nearest images of photos, by the input of the head.

They show wrong labels and near copies of one's own data.

Shapes:  B photos · M files · D width of the features
"""

from collections.abc import Sequence
import os

import jax
import numpy as np

from vit_jax import console
from vit_jax.checkpoint import trained_model
from vit_jax.data import preprocess
from vit_jax.figures import catalog
from vit_jax.figures import drawing
from vit_jax.inference import image_features
from vit_jax.inference import inputs
from vit_jax.inference import nearest


def read(
  trained: trained_model.TrainedModel, paths: Sequence[str], batch: int = 64
) -> np.ndarray:
  """Returns the model inputs of files [B, H, W, C], as in evaluation.

  Raises:
    ValueError: an image cannot be decoded.
  """
  return np.concatenate(list(_batches(trained, paths, batch)))


def _batches(trained, paths, batch):
  return inputs.all_batches(
    paths,
    trained.image_size,
    batch,
    preprocess.evaluation_of(trained.resizing),
    trained.decoding,
  )


def make(
  trained: trained_model.TrainedModel,
  images: np.ndarray,
  photos: Sequence[str],
  paths: Sequence[str],
  count: int = 5,
  batch: int = 64,
) -> list[catalog.Figure]:
  """Returns a figure of each photo and its nearest files.

  Args:
    trained: the model.
    images: model inputs of the photos [B, H, W, C].
    photos: paths of the photos. A photo is not its own neighbor.
    paths: files to search.
    count: number of neighbors to draw.
    batch: largest number of images in a batch.
  """
  encode = jax.jit(image_features.make(trained.model, 'head'))

  def rows(batches):
    found = [np.asarray(encode(trained.params, x)) for x in batches]
    return nearest.normalized(np.concatenate(found))

  queries = rows(images[i : i + 1] for i in range(len(images)))
  with console.counter(len(paths), 0, 'searching', ' images') as progress:

    def counted():
      for x in _batches(trained, paths, batch):
        yield x
        progress(len(x))

    stored = rows(counted())
  # The photo itself may be the nearest file.
  indices, cosines = nearest.nearest(
    queries, stored, min(count + 1, len(stored))
  )
  figures = []
  for i, photo in enumerate(photos):
    own = os.path.realpath(photo)
    kept = [
      k for k, j in enumerate(indices[i]) if os.path.realpath(paths[j]) != own
    ][:count]
    files = [paths[indices[i, k]] for k in kept]
    figures.append(
      _draw(images[i], read(trained, files), files, cosines[i, kept])
    )
  return figures


def _draw(image, found, files, cosines):
  titles = [
    f'{os.path.basename(os.path.dirname(os.path.abspath(file)))}/\n'
    f'{os.path.basename(file)}\ncosine {cosine:.3f}'
    for file, cosine in zip(files, cosines, strict=True)
  ]
  plot = drawing.row_of_images([image, *found], ['photo', *titles])
  return catalog.Figure(plot, {'path': np.asarray(files), 'cosine': cosines})
