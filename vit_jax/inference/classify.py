"""The likeliest classes of images in files, as evaluation would see them."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import os

import jax
import numpy as np

from vit_jax import console
from vit_jax.checkpoint import trained_model
from vit_jax.data import image_folder
from vit_jax.data import preprocess
from vit_jax.data import tensorflow as tf
from vit_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The likeliest classes of one image, the likeliest first."""

  path: str
  classes: Sequence[int] | None  # None where the image cannot be decoded
  probabilities: Sequence[float] | None


def find_images(arguments: Iterable[str]) -> dict[str, str | None]:
  """{path: name of the folder that may be its class, or None}, in order.

  A file stands for itself, whatever its suffix; a folder for all images below
  it. An image in FOLDER/NAME/… has the NAME. A file that is reached twice
  counts once; in two folders, it has neither name.

  Raises:
    ValueError: no such file or folder, or no image in a folder.
  """
  path_of, folders_of, repeated = {}, {}, []
  for path, folder in _paths_and_folders(arguments):
    first = path_of.setdefault(image_folder.identity(path), path)
    repeated += [path] if first in folders_of else []
    folders_of.setdefault(first, set()).update([folder] if folder else [])
  if repeated:
    console.log_info(
      f'warning: {len(repeated)} path(s) lead to images that are in '
      f'the list already, such as {repeated[0]}; each file counts '
      'once'
    )
  return {
    path: next(iter(folders)) if len(folders) == 1 else None
    for path, folders in folders_of.items()
  }


def _paths_and_folders(arguments):
  """Yields (path of an image, name of its folder or None)."""
  for argument in map(os.path.expanduser, arguments):
    if not os.path.isdir(argument):
      if not os.path.exists(argument):
        raise ValueError(f'{argument}: no such file or folder')
      yield argument, None
      continue
    below = image_folder.images_below(argument)
    if not below:
      raise ValueError(
        f'{argument}: no images in this folder, whose names end '
        f'in {", ".join(image_folder.IMAGE_SUFFIXES)}'
      )
    for path in below:
      folder, *rest = os.path.relpath(path, argument).split(os.sep)
      yield path, folder if rest else None


def classify(
  trained: trained_model.TrainedModel,
  paths: Sequence[str],
  *,
  prepare: Callable = preprocess.for_evaluation,
  top: int = 5,
  batch: int = 64,
) -> Iterator[Prediction]:
  """Yields the `Prediction` of each image, in the order given.

  Only the devices of this process take part. So each process of several gets
  all answers for the images that it gives, and needs to wait for no other.

  Args:
    trained: a `trained_model.TrainedModel`.
    paths: of images.
    prepare: (encoded image, (height, width)) -> the model's image.
    top: classes to tell of each; where it has fewer, the model's all.
    batch: images at a time; more where there are more devices.

  Raises:
    ValueError: `trained` has no head.
  """
  num_classes = trained.model.num_classes
  if not num_classes:
    raise ValueError(
      f'{trained.source}: the weights have no head, and so no '
      'classes to predict'
    )
  mesh = sharding.make_mesh(jax.local_devices())
  batch = math.ceil(batch / mesh.size) * mesh.size
  predict = _make_predict_fn(
    trained.model, mesh, min(top, num_classes), trained.output
  )
  params = jax.device_put(trained.params, sharding.replicated(mesh))
  done = 0
  for indices, images in _batches(paths, trained.image_size, batch, prepare):
    fill = [(0, batch - len(images))] + [(0, 0)] * 3
    classes, values = jax.device_get(
      predict(params, sharding.put_batch(np.pad(images, fill), mesh))
    )
    for i, index in enumerate(indices):
      for missing in range(done, index):
        yield Prediction(paths[missing], None, None)
      yield Prediction(paths[index], classes[i].tolist(), values[i].tolist())
      done = index + 1
  for missing in range(done, len(paths)):
    yield Prediction(paths[missing], None, None)


def probabilities(logits: jax.Array, output: str) -> jax.Array:
  """Probabilities of classes from logits [B, K].

  Args:
    logits: of a model.
    output: see `metadata.Description`.

  Raises:
    ValueError: the model's answers are no probabilities.
  """
  if output == 'identity':
    raise ValueError("the model's output is 'identity': it tells no classes")
  return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[output](logits)


def _make_predict_fn(model, mesh, top, output):
  """Returns the compiled `(params, images) -> (classes, probabilities)`."""

  def predict(params, images):
    logits = model.apply({'params': params}, images, train=False)
    _, classes = jax.lax.top_k(logits, top)  # the lower index first, of equals
    return classes, jax.numpy.take_along_axis(
      probabilities(logits, output), classes, axis=-1
    )

  return jax.jit(
    predict, in_shardings=(sharding.replicated(mesh), sharding.by_rows(mesh))
  )


def _batches(paths, image_size, batch, prepare):
  """Batches (indices [b], images [b, H, W, 3]); what no decoder reads lacks."""

  def read(index, path):
    return index, prepare(tf.io.read_file(path), image_size)

  dataset = tf.data.Dataset.from_tensor_slices(
    [os.fsencode(path) for path in paths]
  ).enumerate()
  dataset = dataset.map(
    read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )
  return dataset.ignore_errors().batch(batch).prefetch(2).as_numpy_iterator()
