"""Orders of training examples: balanced classes, and repeated examples."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.in_memory import shuffle


@dataclasses.dataclass(frozen=True, eq=False)
class Balanced:
  """The order of an endless training stream with balanced classes.

  An epoch is a sequence of blocks. A block has one example of each class, in a
  random order. If a class has fewer examples than there are blocks, its
  examples are repeated, each almost equally often. If a class has more
  examples, the epoch has a random part of them.

  Attributes:
    labels: class numbers [N] of all training examples.
    seed: seed of the run.
  """

  labels: np.ndarray
  seed: int

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Returns the examples at positions of the stream.

    Args:
      positions: [B] integers, at least 0.

    Returns:
      [B] int64, indices of examples from 0 to N − 1.
    """
    epochs, places = np.divmod(np.asarray(positions, np.int64), self.epoch_size)
    found = np.empty_like(places)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      found[here] = self._epoch(int(epoch))[places[here]]
    return found

  @functools.cached_property
  def _classes(self) -> list[np.ndarray]:
    """The indices of the examples of each class that has examples."""
    order = np.argsort(self.labels, kind='stable')
    _, starts = np.unique(self.labels[order], return_index=True)
    return np.split(order, starts[1:])

  @functools.cached_property
  def images_per_class(self) -> int:
    """Number of examples of each class in an epoch: that of its blocks."""
    return math.ceil(len(self.labels) / len(self._classes))

  @property
  def epoch_size(self) -> int:
    """Number of positions in an epoch: N, rounded up to whole blocks."""
    return self.images_per_class * len(self._classes)

  @functools.lru_cache(maxsize=2)  # noqa: B019  (one object for each run)
  def _epoch(self, epoch):
    """Returns the indices of one epoch [epoch_size]."""
    rng = np.random.Generator(
      np.random.Philox(key=[self.seed & 0xFFFFFFFF, epoch])
    )
    blocks = np.stack([self._repeated(rows, rng) for rows in self._classes], 1)
    return rng.permuted(blocks, axis=1).ravel()

  def _repeated(self, rows, rng):
    """Returns examples of a class for all blocks of an epoch."""
    times = math.ceil(self.images_per_class / len(rows))
    parts = [rng.permutation(rows) for _ in range(times)]
    return np.concatenate(parts)[: self.images_per_class]


@dataclasses.dataclass(frozen=True)
class Repeated:
  """An order in which each example follows itself, as in DeiT.

  Hoffer et al. 2019, "Augment your batch" (arXiv 1901.09335). An epoch has as
  many positions as without repeats, so it has fewer examples.
  """

  order: Callable  # positions [n] -> indices [n], without repeats
  times: int

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    return self.order(np.asarray(positions) // self.times)


def arrange(source: examples.Source, settings: DataSettings) -> examples.Source:
  """Returns the training source in the order of the settings.

  A source without random access keeps its order; `input_pipeline` repeats the
  examples of a stream.

  Raises:
    ValueError: the source cannot be balanced or repeated.
  """
  source = _balanced(source, settings)
  if settings.repeats == 1 or source.stream:
    return source
  if not source.read:
    raise ValueError(
      f'config.repeats={settings.repeats} cannot be used with batches from '
      'Python. Repeat the examples yourself'
    )
  order = Repeated(order_of(source, settings), settings.repeats)
  return dataclasses.replace(source, order=order)


def order_of(source: examples.Source, settings: DataSettings) -> Callable:
  """Returns the order (positions [n]) -> indices [n] of a training source."""
  return source.order or functools.partial(
    shuffle.examples_at, seed=settings.seed, num_examples=source.num_examples
  )


def _balanced(source, settings):
  """Returns the training source in the order of `settings.sampling`."""
  if settings.sampling == 'uniform':
    return source
  labels = check_classes(source, "config.sampling='balanced'")
  if not source.read:
    raise ValueError(
      "config.sampling='balanced' needs random access to the images, which "
      'tar files do not have. Use a folder of images, or '
      "config.class_weights='balanced'"
    )
  return dataclasses.replace(source, order=Balanced(labels, settings.seed))


def check_classes(source: examples.Source, setting: str) -> Any:
  """Returns the class numbers [N] of all examples of a source.

  Args:
    source: a training source.
    setting: the setting that needs them, for the message.

  Raises:
    ValueError: the class numbers are not known.
  """
  if source.labels is None:
    raise ValueError(
      f'{setting} needs the labels of all training examples. A streamed '
      'dataset and batches from Python have no list of labels. Raise '
      'config.in_memory_bytes above the size of the dataset, or balance the '
      'batches yourself'
    )
  if not examples.are_classes(source.labels):
    raise ValueError(
      f'{setting} needs one class for each image, but the labels have the '
      f'shape {list(source.labels.shape)} and the type {source.labels.dtype}. '
      'Remove this setting'
    )
  return source.labels
