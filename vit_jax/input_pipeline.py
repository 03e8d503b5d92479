"""From examples to batches: order, augmentation, batching, resuming.

Batch k of a run is a function of (seed, k). The stream of training examples is
one epoch after another, each in an order of its own; position p of the stream
decides the order within epoch p // n and the augmentation. So a resumed run
sees what an undisturbed one would, and getting there costs no reading where a
source has random access (see `Source`).
"""

from collections.abc import Callable
import dataclasses

import numpy as np
import tensorflow as tf

from vit_jax import preprocess
from vit_jax import sources

tf.config.set_visible_devices([], 'GPU')  # the GPU's memory is for JAX


@dataclasses.dataclass(frozen=True)
class Datasets:
  """What a run trains on and is measured on."""

  class_names: tuple[str, ...]
  num_train: int
  num_test: int
  # number of completed steps -> endless batches {'image', 'label'}
  train: Callable
  # () -> batches {'image', 'label', 'mask'} with each test example once
  test: Callable


def get_datasets(config, cache_dir=None,
                 for_testing=preprocess.for_evaluation):
  """Training and test batches of `config.dataset`.

  Batches are dicts of NumPy arrays: image [B, H, W, 3] float32 in [−1, 1],
  label [B, K] float32, one-hot; for testing also mask [B] float32, 0 where a
  row only fills up the last batch.

  Args:
    config: see `base_config`.
    cache_dir: see `sources.get_sources`.
    for_testing: (image, (height, width)) -> the model's image, of a test image.
  """
  train, test = sources.get_sources(config, cache_dir)
  return Datasets(
      train.class_names, train.num_examples, test.num_examples,
      train=lambda first_step=0: _train_batches(train, config, first_step),
      test=lambda: _test_batches(test, config, for_testing))


def image_size(config):
  """(height, width) of the model's images in pixels."""
  return config.pp.crop, config.pp.crop_width or config.pp.crop


def _ordered(source, seed, start, buffer_size):
  """Dataset of (position, example) from stream position `start` on."""
  n = source.num_examples
  if source.read:
    def example_at(position):
      epoch_seed = tf.stack([tf.constant(seed, tf.int64), position // n])
      index = tf.random.experimental.index_shuffle(
          position % n, epoch_seed, n - 1)
      return position, source.read(index)

    return tf.data.Dataset.range(start, np.iinfo(np.int64).max).map(
        example_at, num_parallel_calls=tf.data.AUTOTUNE)

  def epoch(number):
    examples = source.stream(
        tf.stack([tf.constant(seed, tf.int64), number]), buffer_size)
    skipped = tf.maximum(start - number * n, 0)
    first = number * n + skipped
    return tf.data.Dataset.zip(
        tf.data.Dataset.range(first, np.iinfo(np.int64).max),
        examples.skip(skipped))

  return tf.data.Dataset.range(
      start // n, np.iinfo(np.int64).max).flat_map(epoch)


def _train_batches(source, config, first_step):
  size, num_classes = image_size(config), len(source.class_names)

  def augment(position, example):
    # Other draws than those of the order, which uses (seed, epoch).
    seed = tf.stack([tf.constant(~config.seed, tf.int64), position])
    image = preprocess.for_training(
        example['image'], size, seed, min_area=config.pp.min_area,
        flip=config.pp.flip)
    return {'image': image, 'label': tf.one_hot(example['label'], num_classes)}

  dataset = _ordered(
      source, config.seed, first_step * config.batch, config.shuffle_buffer)
  dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(config.batch, drop_remainder=True)
  return _with_options(dataset).prefetch(
      tf.data.AUTOTUNE).as_numpy_iterator()


def _test_batches(source, config, for_testing):
  size, num_classes = image_size(config), len(source.class_names)

  def prepare(example):
    return {'image': for_testing(example['image'], size),
            'label': tf.one_hot(example['label'], num_classes),
            'mask': tf.ones(())}

  if source.read:
    dataset = tf.data.Dataset.range(source.num_examples).map(
        source.read, num_parallel_calls=tf.data.AUTOTUNE)
  else:
    dataset = source.stream(None, None)
  dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(config.batch_eval).prefetch(tf.data.AUTOTUNE)
  for batch in _with_options(dataset).as_numpy_iterator():
    missing = config.batch_eval - len(batch['mask'])
    yield {name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
           for name, x in batch.items()}


def _with_options(dataset):
  options = tf.data.Options()
  options.deterministic = True
  return dataset.with_options(options)
