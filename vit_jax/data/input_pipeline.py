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
import dataclasses
import math

import numpy as np

from vit_jax.data import preprocess
from vit_jax.data import sources
from vit_jax.data import tensorflow as tf
from vit_jax.parallel import sharding

_INDEX = 'index of the label'  # in batches on their way to `_checked`


@dataclasses.dataclass(frozen=True)
class Datasets:
  """What a run trains on and is measured on."""

  class_names: tuple[str, ...]
  num_train: int
  num_test: int
  fingerprint: str  # of the list of examples, where there is one
  # number of completed steps -> endless batches {'image', 'label'}
  train: Callable
  # () -> batches {'image', 'label', 'mask'} with each test example once
  test: Callable


def get_datasets(
  config,
  share=sharding.Share(),
  for_testing=preprocess.for_evaluation,
  check_images=True,
):
  """Training and test batches of `config.dataset`.

  Batches are dicts of NumPy arrays: image [B, H, W, 3] float32 in [−1, 1],
  label [B, K] float32, one-hot; for testing also mask [B] float32, 0 where a
  row only fills up the last batch.

  Args:
    config: see `base_config`.
    share: which rows of each batch this process makes.
    for_testing: (image, (height, width)) -> the model's image, of a test image.
    check_images: see `sources.get_sources`.
  """
  train, test = sources.get_sources(
    config, share.group, share.num_groups, check_images
  )
  return Datasets(
    train.class_names,
    train.num_examples,
    test.num_examples,
    train.fingerprint + test.fingerprint,
    train=lambda first_step=0: _train_batches(train, config, first_step, share),
    test=lambda: _test_batches(test, config, share, for_testing),
  )


def streaming(config):
  """The settings with which no data set is read into memory for one pass."""
  config = config.copy_and_resolve_references()
  config.in_memory_bytes = 0
  return config


def image_size(config):
  """(height, width) of the model's images in pixels."""
  return config.pp.crop, config.pp.crop_width or config.pp.crop


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


def _train_batches(source, config, first_step, share):
  size, num_classes = image_size(config), len(source.class_names)

  def augment(position, example):
    # Other draws than those of the order, which uses (seed, epoch).
    seed = tf.stack([tf.constant(~config.seed, tf.int64), position])
    image = preprocess.for_training(
      example['image'],
      size,
      seed,
      min_area=config.pp.min_area,
      flip=config.pp.flip,
    )
    return {'image': image, **_label(example, num_classes)}

  dataset = _ordered(
    source, config.seed, first_step, config.batch, share, config.shuffle_buffer
  )
  dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(len(share.rows(config.batch)), drop_remainder=True)
  return _checked(
    _with_options(dataset).prefetch(tf.data.AUTOTUNE).as_numpy_iterator(),
    num_classes,
  )


def _test_batches(source, config, share, for_testing):
  size, num_classes = image_size(config), len(source.class_names)
  rows, batch = _rows_of_stream(source, config.batch_eval, share)

  def prepare(example):
    return {
      'image': for_testing(example['image'], size),
      **_label(example, num_classes),
      'mask': tf.ones(()),
    }

  if source.read:
    dataset = _own(
      tf.data.Dataset.range(source.num_examples), lambda i: i, rows, batch
    )
    dataset = dataset.map(source.read, num_parallel_calls=tf.data.AUTOTUNE)
  else:
    dataset = _own(
      source.stream(None, None).enumerate(), lambda i, _: i, rows, batch
    ).map(lambda _, example: example)
  dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(len(rows)).prefetch(tf.data.AUTOTUNE)
  batches = _checked(_with_options(dataset).as_numpy_iterator(), num_classes)
  empty = {
    name: np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
    for name, spec in dataset.element_spec.items()
    if name != _INDEX
  }
  # As many on every process, also where this one's share is shorter.
  for _ in range(math.ceil(source.num_examples / config.batch_eval)):
    own = next(batches, empty)
    missing = len(rows) - len(own['mask'])
    yield {
      name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
      for name, x in own.items()
    }


def _label(example, num_classes):
  """The one-hot label of an example, and its integer for `_checked`."""
  return {
    'label': tf.one_hot(example['label'], num_classes),
    _INDEX: example['label'],
  }


def _checked(batches, num_classes):
  """Batches without the integers, which `tf.one_hot` takes whatever they are.

  Raises:
    ValueError: a label is of no class; its one-hot row would be zeros.
  """
  for batch in batches:
    sources.check_labels(batch.pop(_INDEX), num_classes)
    yield batch


def _with_options(dataset):
  options = tf.data.Options()
  options.deterministic = True
  return dataset.with_options(options)
