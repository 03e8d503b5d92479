"""The examples of one part of a data set, whatever they are stored in."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib
import os
from typing import Any

import numpy as np

from vit_jax.data import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Source:
  """The examples of one split.

  An example is {'image': encoded bytes, or pixels uint8 [H, W, C],
  'label': int64 []}. Exactly one of `read` and `stream` is given: a streamed
  source gives one share of its examples.
  """

  num_examples: int
  class_names: tuple[str, ...]
  # index [] int64 -> example
  read: Callable | None = None
  # seed int64 [2], shuffle buffer size -> Dataset of all examples, in an order
  # that depends on the seed alone; None for both: as stored
  stream: Callable | None = None
  share: int | None = None  # how many examples `stream` gives
  fingerprint: str = ''  # of the list of examples, where there is one


def check_labels(labels: Any, num_classes: int) -> None:
  """Raises a ValueError unless integers are from 0 to `num_classes` - 1."""
  wrong = labels[(labels < 0) | (labels >= num_classes)]
  if wrong.size:
    raise ValueError(
      f'config.dataset: {wrong.size} of {labels.size} labels, such as '
      f'{wrong[0]}, are not from 0 to {num_classes - 1}, as those of '
      f'{num_classes} classes. Correct the data set, or take another split: '
      '-1 often stands for a label that is kept secret'
    )


def read_from(images: Any, labels: Any) -> Callable:
  """`read` over arrays held in memory."""
  images, labels = tf.constant(images), tf.constant(labels, tf.int64)
  return lambda index: {'image': images[index], 'label': labels[index]}


def hash_fraction(text: str) -> float:
  """A number in [0, 1) that depends on the text alone."""
  digest = hashlib.sha256(os.fsencode(text)).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


def count_held_out(validation: float | int, num_examples: int) -> int:
  """How many training examples `config.validation` sets apart.

  Args:
    validation: a fraction below 1, or a number of examples.
    num_examples: of the training part.

  Raises:
    ValueError: nothing would be left on one side.
  """
  count = validation if validation >= 1 else round(validation * num_examples)
  if not 0 < count < num_examples or count != int(count):
    raise ValueError(
      f'config.validation={validation} would set {count:.0f} of '
      f'{num_examples} training examples apart: give a fraction or a number '
      'that leaves some for both'
    )
  return int(count)


def hold_out(
  source: Source, validation: float | int, keys: Sequence
) -> tuple[Source, Source]:
  """(rest, held out) of a source with random access.

  An example is held out by the hash of its key, so that others decide nothing.

  Args:
    source: a `Source` with `read`.
    validation: see `count_held_out`.
    keys: a text for each example, such as its path.
  """
  count = count_held_out(validation, source.num_examples)
  ranks = np.argsort([hash_fraction(f'validation {key}') for key in keys])
  held, kept = np.sort(ranks[:count]), np.sort(ranks[count:])
  return _subset(source, kept), dataclasses.replace(
    _subset(source, held), fingerprint=''
  )


def _subset(source, indices: Sequence[int]):
  where = tf.constant(indices, tf.int64)
  return dataclasses.replace(
    source,
    num_examples=len(indices),
    read=lambda index: source.read(tf.gather(where, index)),
  )
