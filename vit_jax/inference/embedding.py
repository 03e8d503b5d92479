"""Features of many images, in files, so that a computation can resume.

Shapes:  B batch · D width of the features · n images of a batch, in their order
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import os

import jax
import numpy as np

from vit_jax import console
from vit_jax.checkpoint import trained_model
from vit_jax.data import examples
from vit_jax.data import input_pipeline
from vit_jax.data import preprocess
from vit_jax.inference import classify
from vit_jax.inference import feature_files
from vit_jax.inference import image_features
from vit_jax.inference import inputs
from vit_jax.parallel import sharding

# Arrays of a file: features [n, …], class numbers (−1: none), and whether the
# image could be decoded. The features of other images are 0.
ARRAYS = ('feature', 'label', 'decoded')
SPLIT = 'images'  # name of the files; see `feature_files`


def of_files(
  trained: trained_model.TrainedModel,
  paths: Sequence[str],
  first: int,
  batch: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields (images [b, H, W, 3], decoded [n], labels [n]) from `first` on.

  The b images are those of the next n files that could be decoded.
  """
  paths = paths[first:]
  prepare = preprocess.evaluation_of(trained.resizing)
  done, nothing = 0, np.zeros((0, *trained.image_size, 3), np.float32)
  for indices, rows in inputs.batches(
    paths, trained.image_size, batch, prepare, trained.decoding
  ):
    decoded = np.zeros(indices[-1] + 1 - done, bool)
    decoded[np.asarray(indices) - done] = True
    yield rows, decoded, np.full(len(decoded), -1)
    done += len(decoded)
  if done < len(paths):  # the last files could not be decoded
    decoded = np.zeros(len(paths) - done, bool)
    yield nothing, decoded, np.full(len(decoded), -1)


def of_dataset(
  data: input_pipeline.Datasets, split: str, first: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields what `of_files` yields, for the images of a split.

  Labels that are not class numbers become −1.
  """
  for batch in data.evaluate(split):
    rows = np.flatnonzero(batch['mask'] > 0)
    rows, first = rows[first:], max(0, first - len(rows))
    labels = batch.get('label', np.zeros(0))
    if labels.size and examples.are_classes(labels):
      labels = labels[rows]
    else:
      labels = np.full(len(rows), -1)
    if len(rows):
      yield batch['image'][rows], np.ones(len(rows), bool), labels


def compute(
  folder: str,
  images: Callable,
  total: int,
  trained: trained_model.TrainedModel,
  kind: str,
  batch: int,
) -> None:
  """Computes the features of images that are not yet in a folder.

  Args:
    folder: from `feature_files.use_folder`.
    images: first -> iterator of images from number `first` on, such as
      `of_files`, in batches of at most `batch` images.
    total: number of images.
    trained: the model.
    kind: one of `image_features.KINDS`.
    batch: largest number of images in a batch.

  Raises:
    ValueError: the model has no such features, or they are not finite.
  """
  mesh = sharding.make_mesh(jax.local_devices())
  encode = jax.jit(
    image_features.make(trained.model, kind),
    in_shardings=(sharding.replicated(mesh), sharding.by_rows(mesh)),
    out_shardings=sharding.replicated(mesh),
  )
  size = classify.batch_size(total, batch, mesh.size)
  params = classify.put_on_devices(trained.params)
  first = count(folder)

  def started(rows, decoded, labels):
    x = sharding.put_batch(classify.pad(rows, size), mesh)
    return encode(params, x), decoded, labels

  def finished(features, decoded, labels):
    found = jax.device_get(features)[: decoded.sum()]
    feature_files.check_finite(found, f'a batch, with {trained.source},')
    features = np.zeros((len(decoded), *found.shape[1:]), np.float32)
    features[decoded] = found
    return {'feature': features, 'label': labels, 'decoded': decoded}

  with (
    feature_files.Writer(folder, SPLIT, first) as writer,
    console.counter(total, first, 'embedding', ' images') as progress,
  ):
    pending = None  # while the devices compute a batch, the next one is read
    for arrays in images(first) if first < total else ():
      arrays, pending = pending, started(*arrays)
      if arrays:
        writer.add(finished(*arrays))
        progress(len(arrays[1]))
    if pending:
      writer.add(finished(*pending))


def count(folder: str) -> int:
  """Returns the number of images whose features are in a folder."""
  return sum(
    len(x['decoded']) for x in feature_files.parts(folder, SPLIT, ('decoded',))
  )


def describe_paths(paths: Sequence[str]) -> str:
  """Returns a hash of the names, sizes and times of files."""
  digest = hashlib.sha256()
  for path in paths:
    found = os.stat(path)
    digest.update(
      os.fsencode(path) + f' {found.st_size} {found.st_mtime_ns}\n'.encode()
    )
  return digest.hexdigest()
