"""The examples of one split, independent of their storage format."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import os
from typing import Any
from typing import NamedTuple

import numpy as np

from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings


@dataclasses.dataclass(frozen=True)
class Source:
  """The examples of one split.

  An example is {'image': encoded bytes, or pixels uint8 [H, W, C],
  'label': int64 []}. Given arrays may have other names and other kinds of
  labels. A source has exactly one of `read`, `stream` and `batches`. A streamed
  source yields only one shard of the split.
  """

  num_examples: int | None  # None: unknown, only for given training batches
  class_names: tuple[str, ...]
  # index [] int64 -> example
  read: Callable | None = None
  # (seed int64 [2], shuffle buffer size) -> Dataset of the shard's examples;
  # both determine the order, and (None, None) requests the stored order
  stream: Callable | None = None
  share: int | None = None  # number of examples in the shard
  fingerprint: str = ''  # hash of the list of examples; '' if there is no list
  labels: np.ndarray | None = None  # of all examples, in the stored order
  names: tuple[str, ...] | None = None  # paths of all examples, in this order
  # positions [B] in the training stream -> indices [B] of examples, for `read`;
  # None: each epoch has all examples, in a random order
  order: Callable | None = None
  # whether an image can have several classes: labels are rows of 0 and 1
  several_classes: bool = False
  # {name: array [N, …]} of all examples, if they are in arrays: of the caller,
  # or on the devices
  arrays: Mapping[str, Any] | None = None
  batches: Callable | None = None  # see `given.batches`
  sample: Any = None  # the first batch of `batches`
  # what `check` finds in a folder, as values of JSON, for the training split
  findings: dict[str, Any] | None = None
  own_files: bool = True  # whether 'auto' means own files; `decoding.resolve`


class Pipeline(NamedTuple):
  """Functions that make the batches of sources of one kind.

  The arguments are (source, settings, share, prepare), which are described in
  `input_pipeline.Datasets`. An iterator gives the rows of this process, in
  dicts of NumPy arrays.
  """

  train: Callable  # (…, first_step) -> endless iterator of training batches
  evaluate: Callable  # (…) -> iterator of batches with a `mask`
  spec: Callable  # (…) -> {name: (shape, dtype)} of a training example
  prepares: bool = True  # whether examples go through `prepare`
  make_prepare: Callable | None = None  # None: `preprocess.make_prepare`
  # (feed, settings) -> batch. If it is given, `train` yields feeds, from which
  # the compiled step makes the batches; see `device_pipeline` and
  # `device_resizing`.
  make_batch: Callable | None = None


def check_labels(
  labels: Any, num_classes: int, name: str = 'config.dataset'
) -> None:
  """Raises ValueError unless all labels are from 0 to `num_classes` - 1.

  Args:
    labels: class numbers, integers of any shape.
    num_classes: number of classes.
    name: start of the message, the argument that gave the labels.
  """
  wrong = labels[(labels < 0) | (labels >= num_classes)]
  if wrong.size:
    raise ValueError(
      f'{name}: {wrong.size} of {labels.size} labels are not between '
      f'0 and {num_classes - 1}, for example {wrong[0]}. The dataset has '
      f'{num_classes} classes. Correct the labels or use another split. The '
      'label -1 often marks examples with unpublished labels.'
    )


def without_labels(source: Source) -> Source:
  """Returns a source whose examples have no labels, and which has no classes.

  Raises:
    ValueError: the source has batches, which are used as they are.
  """
  if source.batches:
    raise ValueError(
      'config.labels=none cannot remove the labels of given batches. Leave '
      'them out of the batches'
    )

  def strip(example):
    return {name: x for name, x in example.items() if name != 'label'}

  read, stream = source.read, source.stream
  return dataclasses.replace(
    source,
    class_names=(),
    labels=None,
    several_classes=False,
    read=read and (lambda index: strip(read(index))),
    stream=stream and (lambda *order: stream(*order).map(strip)),
    arrays=source.arrays and strip(source.arrays),
  )


def check_default_splits(settings: DataSettings) -> None:
  """Raises ValueError if a dataset with fixed splits is to have others."""
  if (settings.train_split, settings.test_split) != ('train', 'test'):
    raise ValueError(
      f'config.dataset={settings.dataset!r} has only the splits '
      "'train' and 'test', not "
      f'config.train_split={settings.train_split!r} and '
      f'config.test_split={settings.test_split!r}. Use the default splits.'
    )


def are_classes(labels: Any) -> bool:
  """Returns whether an array has class numbers [N], not other labels."""
  return labels.ndim == 1 and labels.dtype.kind in 'iu'


def read_from(images: Any, labels: Any = None, **others: Any) -> Callable:
  """Returns the function `read` of a `Source` over arrays in memory.

  Args:
    images: images, or paths of images.
    labels: a label for each image; class numbers become int64.
    **others: other arrays with a row for each image.
  """
  arrays = {'image': images, **others}
  if labels is not None:
    labels = np.asarray(labels)
    arrays['label'] = labels.astype(np.int64) if are_classes(labels) else labels
  arrays = {name: tf.constant(x) for name, x in arrays.items()}
  return lambda index: {name: x[index] for name, x in arrays.items()}


def fingerprint(arrays: Mapping[str, np.ndarray], text: str = '') -> str:
  """Returns the SHA-256 of a text and of arrays with names and types."""
  digest = hashlib.sha256(text.encode())
  for name, x in sorted(arrays.items()):
    digest.update(f'{name} {x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).data)
  return digest.hexdigest()


def hash_fraction(text: str) -> float:
  """Returns a number in [0, 1) that depends only on the text."""
  digest = hashlib.sha256(os.fsencode(text)).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


def count_held_out(validation: float | int, num_examples: int) -> int:
  """Returns how many training examples `config.validation` holds out.

  Args:
    validation: a fraction below 1, or a number of examples.
    num_examples: number of examples in the training split.

  Raises:
    ValueError: a split would be empty, or the number is not an integer.
  """
  count = validation if validation >= 1 else round(validation * num_examples)
  if not 0 < count < num_examples or count != int(count):
    raise ValueError(
      f'config.validation={validation} would hold out {count:.0f} of '
      f'{num_examples} training examples. Training and validation each need at '
      'least one example. Use a fraction between 0 and 1, or an integer from 1 '
      f'to {num_examples - 1}.'
    )
  return int(count)


def split_indices(
  validation: float | int, keys: Sequence
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the sorted indices of (other, held-out) examples.

  Args:
    validation: see `count_held_out`.
    keys: a unique text for each example, such as its path.
  """
  count = count_held_out(validation, len(keys))
  ranks = np.argsort([hash_fraction(f'validation {key}') for key in keys])
  return np.sort(ranks[count:]), np.sort(ranks[:count])


def hold_out(
  source: Source, validation: float | int, keys: Sequence
) -> tuple[Source, Source]:
  """Splits a source with random access into (rest, held out).

  Examples are ranked by the hash of their key, and the first ones are held out.
  So adding or removing an example moves at most one other example.

  Args:
    source: a `Source` with `read`.
    validation: see `count_held_out`.
    keys: a unique text for each example, such as its path.
  """
  kept, held = split_indices(validation, keys)
  return _subset(source, kept), dataclasses.replace(
    _subset(source, held), fingerprint=''
  )


def _subset(source, indices: Sequence[int]):
  where = tf.constant(indices, tf.int64)
  return dataclasses.replace(
    source,
    num_examples=len(indices),
    labels=None if source.labels is None else source.labels[indices],
    names=source.names and tuple(source.names[i] for i in indices),
    read=lambda index: source.read(tf.gather(where, index)),
  )
