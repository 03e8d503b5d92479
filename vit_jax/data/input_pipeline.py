"""From examples to batches: order, augmentation, batching, resuming.

Batch k of a run is a function of (seed, k). The stream of training examples is
one epoch after another, each in an order of its own; position p of the stream
decides the order within epoch p // n and the augmentation. So a resumed run
sees what an undisturbed one would, and getting there costs no reading where a
source has random access (see `Source`).

Of several processes, each makes its rows of these batches and no others. A
streamed source has no random access: there each group of processes has an equal
share of the examples, and a stream of its own over them.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import math

import numpy as np

from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data import preprocess
from vit_jax.data import sources
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings
from vit_jax.parallel import sharding

_LABEL = 'label as stored'  # in batches on their way to `_checked`


@dataclasses.dataclass(frozen=True)
class Datasets:
  """What a run trains on and is measured on.

  Batches are dicts of NumPy arrays, as `prepare` makes them of each example:
  by default image [B, H, W, 3] float32 in [−1, 1] and label [B] int32. In
  evaluation there is also mask [B] float32, 0 where a row only fills up the
  last batch.

  Attributes:
    sources: {'train', 'test' and perhaps 'validation': `examples.Source`}.
    settings: `DataSettings`.
    share: which rows of each batch this process makes.
    prepare: see `task.Task`.
    watch: passes batches of an evaluation on; it may stop it.
  """

  sources: dict[str, examples.Source]
  settings: data_settings.DataSettings
  share: sharding.Share
  prepare: Callable
  watch: Callable = iter

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.sources['train'].class_names

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the model's images in pixels."""
    return self.settings.image_size

  @property
  def fingerprint(self) -> str:
    """Of the list of examples; '' where there is none."""
    return ''.join(source.fingerprint for source in self.sources.values())

  @property
  def num_examples(self) -> dict[str, int]:
    """{split: how many examples it has}."""
    return {name: source.num_examples for name, source in self.sources.items()}

  @property
  def num_train(self) -> int:
    return self.sources['train'].num_examples

  @property
  def num_test(self) -> int:
    return self.sources['test'].num_examples

  def train(self, first_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches for training, after `first_step` of them."""
    return _train_batches(
      self.sources['train'], self.settings, first_step, self.share, self.prepare
    )

  def evaluate(self, split: str) -> Iterator[dict[str, np.ndarray]]:
    """Batches with each example of a split once."""
    return self.watch(
      _eval_batches(
        self.sources[split], self.settings, self.share, self.prepare
      )
    )

  def num_batches(self, split: str) -> int:
    """How many batches `evaluate` has."""
    return math.ceil(self.num_examples[split] / self.settings.batch_eval)

  def test(self) -> Iterator[dict[str, np.ndarray]]:
    """Batches with each test example once."""
    return self.evaluate('test')

  def spec(self) -> dict[str, tuple]:
    """{name: (shape, dtype)} of a training example, as `prepare` makes it."""
    dataset = _prepared(
      self.sources['train'], self.settings, 0, self.share, self.prepare
    )
    return {
      name: (tuple(spec.shape), spec.dtype.as_numpy_dtype)
      for name, spec in dataset.element_spec.items()
      if name != _LABEL
    }


def get_datasets(
  settings: DataSettings,
  share: sharding.Share | None = None,
  prepare: Callable | None = None,
  check_images: bool = True,
) -> Datasets:
  """The `Datasets` that settings name.

  Args:
    settings: `DataSettings`.
    share: which rows of each batch this process makes; None: all.
    prepare: see `task.Task`; None: `preprocess.make_prepare`.
    check_images: see `sources.get_sources`.
  """
  share = share or sharding.Share()
  found = sources.get_sources(
    settings, share.group, share.num_groups, check_images
  )
  prepare = prepare or preprocess.make_prepare(
    settings.image_size, settings.min_area, settings.flip
  )
  return Datasets(found, settings, share, prepare)


def _rows_of_stream(source, batch, share):
  """(rows of a batch to make, its size) in the stream that a source gives."""
  if source.read or share.num_groups == 1:
    return share.rows(batch), batch
  # The source is its group's alone, and each of its examples to be made.
  size = batch // share.num_groups
  return np.arange(size), size


def _ordered(source, seed, first_step, batch, share, buffer_size):
  """Dataset of (position, example) of this process's rows of all batches."""
  whole_batch = batch
  rows, batch = _rows_of_stream(source, batch, share)
  start = first_step * batch
  if source.read:
    n = source.num_examples

    def example_at(i):
      position = i // len(rows) * batch + tf.gather(rows, i % len(rows))
      epoch_seed = tf.stack([tf.constant(seed, tf.int64), position // n])
      index = tf.random.experimental.index_shuffle(
        position % n, epoch_seed, n - 1
      )
      return position, source.read(index)

    return tf.data.Dataset.range(
      first_step * len(rows), np.iinfo(np.int64).max
    ).map(example_at, num_parallel_calls=tf.data.AUTOTUNE)

  n = source.share or source.num_examples

  def epoch(number):
    examples = source.stream(
      tf.stack([tf.constant(seed, tf.int64), number]), buffer_size
    )
    skipped = tf.maximum(start - number * n, 0)
    first = number * n + skipped
    return tf.data.Dataset.zip(
      tf.data.Dataset.range(first, np.iinfo(np.int64).max),
      examples.skip(skipped),
    )

  stream = tf.data.Dataset.range(start // n, np.iinfo(np.int64).max).flat_map(
    epoch
  )
  stream = _own(stream, lambda position, _: position, rows, batch)
  if batch == whole_batch:
    return stream
  whole_rows = share.rows(whole_batch)

  def in_whole_stream(position, example):  # no two processes draw alike
    return (
      position // batch * whole_batch + tf.gather(whole_rows, position % batch)
    ), example

  return stream.map(in_whole_stream)


def _own(dataset, position_of, rows, batch):
  """The elements of a dataset that are this process's rows of a batch."""
  if len(rows) == batch:
    return dataset
  return dataset.filter(
    lambda *x: tf.reduce_any(tf.equal(rows, position_of(*x) % batch))
  )


def _prepare(prepare, example, seed):
  """What `prepare` makes of an example, and its label for `_checked`."""
  label = {_LABEL: example['label']} if 'label' in example else {}
  return {**prepare(example, seed), **label}


def _prepared(source, settings, first_step, share, prepare):
  """Dataset of this process's training examples, from `first_step` on."""

  def at_position(position, example):
    # Other draws than those of the order, which uses (seed, epoch).
    seed = tf.stack([tf.constant(~settings.seed, tf.int64), position])
    return _prepare(prepare, example, seed)

  dataset = _ordered(
    source,
    settings.seed,
    first_step,
    settings.batch,
    share,
    settings.shuffle_buffer,
  )
  return dataset.map(at_position, num_parallel_calls=tf.data.AUTOTUNE)


def _train_batches(source, settings, first_step, share, prepare):
  dataset = _prepared(source, settings, first_step, share, prepare)
  dataset = dataset.batch(len(share.rows(settings.batch)), drop_remainder=True)
  return _checked(
    _with_options(dataset).prefetch(tf.data.AUTOTUNE).as_numpy_iterator(),
    len(source.class_names),
  )


def _eval_batches(source, settings, share, prepare):
  rows, batch = _rows_of_stream(source, settings.batch_eval, share)
  if source.read:
    dataset = _own(
      tf.data.Dataset.range(source.num_examples), lambda i: i, rows, batch
    )
    dataset = dataset.map(source.read, num_parallel_calls=tf.data.AUTOTUNE)
  else:
    dataset = _own(
      source.stream(None, None).enumerate(), lambda i, _: i, rows, batch
    ).map(lambda _, example: example)
  dataset = dataset.map(
    lambda example: {**_prepare(prepare, example, None), 'mask': tf.ones(())},
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  dataset = dataset.batch(len(rows)).prefetch(tf.data.AUTOTUNE)
  batches = _checked(
    _with_options(dataset).as_numpy_iterator(), len(source.class_names)
  )
  empty = {
    name: np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
    for name, spec in dataset.element_spec.items()
    if name != _LABEL
  }
  # As many on every process, also where this one's share is shorter.
  for _ in range(math.ceil(source.num_examples / settings.batch_eval)):
    own = next(batches, empty)
    missing = len(rows) - len(own['mask'])
    yield {
      name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
      for name, x in own.items()
    }


def _checked(batches, num_classes):
  """Batches without the stored labels, once these are seen to be classes.

  Raises:
    ValueError: a label is of no class.
  """
  for batch in batches:
    if _LABEL in batch:
      examples.check_labels(batch.pop(_LABEL), num_classes)
    yield batch


def _with_options(dataset):
  options = tf.data.Options()
  options.deterministic = True
  return dataset.with_options(options)
