"""Predicts the classes of images, with the preprocessing of evaluation."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import math
import os
from typing import Any

import jax
import numpy as np

from vit_jax import console
from vit_jax.checkpoint import trained_model
from vit_jax.data import preprocess
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.image_files import image_kinds
from vit_jax.files import regular_files
from vit_jax.inference import inputs
from vit_jax.inference import outputs
from vit_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The most likely classes of one image, in order of probability.

  If the output of the model is 'identity', `classes` are the indices of all
  outputs, and `probabilities` are the outputs.
  """

  path: str  # or 'images[3]' for the fourth image, if it is not a file
  classes: Sequence[int] | None  # None if the image cannot be decoded
  probabilities: Sequence[float] | None
  # With several labels per image, (class, probability) of all classes above
  # their thresholds, in order of probability; else None.
  predicted: Sequence[tuple[int, float]] | None = None


def find_images(arguments: Iterable[str]) -> dict[str, str | None]:
  """Returns {path: name of the folder that may be its class, or None}.

  An argument is a file with any suffix, or a folder with all images below it.
  The order of the arguments is kept. An image FOLDER/NAME/… has the folder name
  NAME. A file with several paths counts once. Its name is None if its
  paths have different folder names.

  Raises:
    ValueError: a file or folder does not exist, or a folder has no images.
  """
  path_of, folders_of, repeated = {}, {}, []
  hidden, unread = [], []
  for path, folder in _paths_and_folders(arguments, hidden, unread):
    first = path_of.setdefault(image_folder.identity(path), path)
    repeated += [path] if first in folders_of else []
    folders_of.setdefault(first, set()).update([folder] if folder else [])
  image_folder.warn_unread(unread)
  if repeated:
    console.log_info(
      f'warning: {len(repeated)} path(s) repeat images of the list, such as '
      f'{repeated[0]}; each file counts once'
    )
  if hidden:
    console.log_info(
      'skipped: hidden folders and folders of runs: '
      + listing.some(dict.fromkeys(hidden))
    )
  return {
    path: next(iter(folders)) if len(folders) == 1 else None
    for path, folders in folders_of.items()
  }


def _paths_and_folders(arguments, hidden, unread):
  """Yields (path of an image, name of its folder or None).

  The paths of hidden folders are added to `hidden`, and files of kinds that
  are not read to `unread`.
  """
  for argument in map(os.path.expanduser, arguments):
    if not os.path.isdir(argument):
      if not os.path.exists(argument):
        raise ValueError(f'{argument}: no such file or folder. Check the path.')
      regular_files.check(argument)
      yield argument, None
      continue
    below = image_folder.images_below(argument, hidden, unread)
    if not below:
      image_folder.warn_unread(unread)
      raise ValueError(
        f'{argument}: no images in this folder. The names of images must end '
        f'in {", ".join(image_kinds.SUFFIXES)}.'
      )
    for path in below:
      folder, *rest = os.path.relpath(path, argument).split(os.sep)
      yield path, folder if rest else None


def classify(
  trained: trained_model.TrainedModel,
  images: Sequence,
  *,
  prepare: Callable | None = None,
  top: int = 5,
  batch: int = 64,
  params: Any = None,
) -> Iterator[Prediction]:
  """Yields the `Prediction` of each image, in the order of `images`.

  Only local devices are used. So each process gets all predictions for its own
  images, and never waits for other processes. A second call with the same model
  and as many images compiles nothing.

  Args:
    trained: a `trained_model.TrainedModel`.
    images: paths of image files, or other images from `inputs.read`.
    prepare: (decoded image, (height, width)) -> input of the model. None: as
      in evaluation of this model.
    top: number of classes to return per image, at most all classes.
    batch: images per batch, rounded up to a multiple of the device count. For
      fewer images, it is the next power of two.
    params: the parameters on the devices, from `put_on_devices`. None: they are
      copied to the devices in each call.

  Raises:
    ValueError: `trained` has no head.
  """
  num_classes = trained.model.num_classes
  if not num_classes:
    raise ValueError(
      f'{trained.source}: the weights have no head, so no classes can be '
      'predicted. Use weights with a head.'
    )
  mesh = sharding.make_mesh(jax.local_devices())
  batch = batch_size(len(images), batch, mesh.size)
  top = min(top, num_classes)
  has_several = trained.output == 'sigmoid'  # then all classes are needed
  predict = _make_predict_fn(
    trained.model, mesh, num_classes if has_several else top, trained.output
  )
  if params is None:
    params = put_on_devices(trained.params)
  done = 0
  names = [inputs.name_of(image, i) for i, image in enumerate(images)]
  for indices, rows in inputs.batches(
    images,
    trained.image_size,
    batch,
    prepare or preprocess.evaluation_of(trained.resizing),
    trained.decoding,
  ):
    classes, values = jax.device_get(
      predict(params, sharding.put_batch(pad(rows, batch), mesh))
    )
    for i, index in enumerate(indices):
      for missing in range(done, index):
        yield Prediction(names[missing], None, None)
      shown = slice(top if has_several else None)
      yield Prediction(
        names[index],
        classes[i][shown].tolist(),
        values[i][shown].tolist(),
        outputs.above_thresholds(trained, classes[i], values[i]),
      )
      done = index + 1
  for missing in range(done, len(images)):
    yield Prediction(names[missing], None, None)


def put_on_devices(params: Any) -> Any:
  """Returns parameters that every local device has."""
  mesh = sharding.make_mesh(jax.local_devices())
  return jax.device_put(params, sharding.replicated(mesh))


def batch_size(num_images: int, largest: int, num_devices: int) -> int:
  """Returns the number of rows of a batch, a multiple of the device count.

  For few images, it is the next power of two, so that few sizes are compiled.
  """
  size = min(largest, 1 << max(0, num_images - 1).bit_length())
  return math.ceil(size / num_devices) * num_devices


def pad(rows: np.ndarray, size: int) -> np.ndarray:
  """Appends zeros to rows [b, …], so that there are `size` rows."""
  return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


@functools.lru_cache(maxsize=8)
def _make_predict_fn(model, mesh, top, output):
  """Returns the compiled `(params, images) -> (classes, values)`."""

  def predict(params, images):
    logits = model.apply({'params': params}, images, train=False)
    return outputs.strongest(logits, output, top)

  return jax.jit(
    predict, in_shardings=(sharding.replicated(mesh), sharding.by_rows(mesh))
  )
