"""Loads datasets of TensorFlow Datasets (TFDS), in memory or streamed."""

import difflib
import functools
import math
import operator
import os
import re

import numpy as np

from vit_jax import console
from vit_jax.data import examples
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.streams import tfds_checks
from vit_jax.data.streams import tfds_label

# NAME, NAMESPACE:NAME, NAME/CONFIG, NAME:VERSION, NAME/CONFIG:VERSION
_NAME = re.compile(r'(\w+:)?[A-Za-z]\w*(/[\w.+-]+)?(:[\d.*]+)?(/.+=.+)?')
_READ_AT_ONCE = 4096  # batch size when a split is read into memory
_CHECKED_LABELS = 32  # of a streamed split, before training


def get_sources(
  settings: DataSettings, part: int, num_parts: int
) -> dict[str, examples.Source]:
  """Returns {split: `examples.Source`}; see `sources.get_sources`."""
  builder = _make_builder(
    settings.dataset, os.path.expanduser(settings.tfds_data_dir) or None
  )
  features = dict(builder.info.features)
  if 'label' not in features and 'real_label' in features:
    features['label'] = features['real_label']  # of imagenet2012_real
  label = tfds_label.NO_LABEL
  if settings.labels != 'none':
    label = tfds_label.read_label(features.get('label'))
  if 'image' not in features or label is None:
    raise ValueError(
      f'config.dataset={settings.dataset!r} cannot be used. vit_jax needs the '
      'features image and label: a ClassLabel, a Sequence of ClassLabels, or a '
      'number (with config.labels=none, only image). This TFDS dataset has the '
      f'features {", ".join(map(tfds_label.describe, features.items()))}. '
      'Use another dataset.'
    )
  tfds_checks.check_image(features['image'], settings)
  splits = {'train': settings.train_split, 'test': settings.test_split}
  if isinstance(settings.validation, str) and settings.validation:
    splits['validation'] = settings.validation
  elif settings.validation:
    splits['train'], splits['validation'] = _cut(
      builder, settings.train_split, settings.validation
    )
  return {
    name: _make_source(
      builder, split, label, settings.in_memory_bytes, part, num_parts
    )
    for name, split in splits.items()
  }


def _cut(builder, split, validation):
  """Cuts a TFDS split into (rest, held out): the last examples are held out."""
  import tensorflow_datasets as tfds

  def sum_of(pieces):
    return functools.reduce(
      operator.add,
      [
        tfds.core.ReadInstruction(name, from_=start, to=stop, unit='abs')
        for name, start, stop in pieces
        if start < stop
      ],
    )

  count = examples.count_held_out(
    validation, _get_info(builder, split).num_examples
  )
  rest, held = [], []
  splits = builder.info.splits
  for piece in reversed(
    tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
  ):
    name, start, stop = piece.splitname, piece.from_ or 0, piece.to
    if stop is None:
      stop = splits[name].num_examples
    middle = max(start, stop - count)
    count -= stop - middle
    rest.insert(0, (name, start, middle))
    held.insert(0, (name, middle, stop))
  return sum_of(rest), sum_of(held)


def _make_builder(name, data_dir):
  """Returns a builder; downloads and prepares its dataset if needed."""
  import tensorflow_datasets as tfds

  if not _NAME.fullmatch(name):
    raise ValueError(
      f'config.dataset={name!r} is no folder here, and cannot be the name of a '
      'TFDS dataset, such as cifar10 or cifar10_corrupted/fog_1:1.0.0. Check '
      f'the path: the current folder is {os.getcwd()}'
    )
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    near = difflib.get_close_matches(name, tfds.list_builders(), n=3)
    raise ValueError(
      f'config.dataset={name!r} is neither a local folder nor a TFDS dataset. '
      + (
        f'Similar names in TFDS: {", ".join(near)}.'
        if near
        else 'Use the path of a folder, or a name from the catalog of TFDS.'
      )
    ) from error
  except Exception as error:  # unknown config or version, or no network
    known, reason = tfds_checks.known_of(name), str(error).partition('\n')[0]
    raise ValueError(
      f'config.dataset={name!r} cannot be loaded by TFDS. {known}The error of '
      f'TFDS: {reason}'
    ) from error
  if builder.info.splits:
    tfds_checks.check_format(builder, data_dir)
    return builder
  try:
    tfds_checks.check_reachable(builder)
    builder.download_and_prepare()
  except Exception as error:  # any error of the download or the parser
    raise ValueError(
      f'The TFDS dataset {name} is not prepared in {builder.data_dir}, and '
      f'preparing it failed: {error}. Set config.tfds_data_dir to a folder '
      'that contains the prepared dataset, or prepare the dataset on a machine '
      'with network access.'
    ) from error
  return builder


def _num_bytes(info):
  """Estimates the size of a split in bytes, from its fraction of each file."""
  return sum(
    tf.io.gfile.stat(shard.filename).length
    * shard.take
    / shard.examples_in_shard
    for shard in info.file_instructions
  )


def _get_info(builder, split):
  """Returns the TFDS metadata of a split; raises ValueError if it is empty."""
  try:
    info = builder.info.splits[split]
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'TFDS {builder.name}: split {split!r} cannot be used: {error}'
    ) from error
  if not info.num_examples:
    raise ValueError(
      f'TFDS {builder.name}: split {split!r} is empty. Use another split.'
    )
  return info


def _make_source(builder, split, label, in_memory_bytes, part, num_parts):
  """Returns a source that is in memory if the split is small, else streamed."""
  info = _get_info(builder, split)
  name = (
    f'config.dataset={builder.name!r}, split {split!r}, feature label '
    f'(a {label.kind})'
  )
  if _num_bytes(info) > in_memory_bytes:
    _check_first_labels(builder, info, label, name)
    return _make_share(builder, split, info, label, part, num_parts)
  batches = list(
    console.counting(
      _make_stream(builder, info, label)(None, None).batch(_READ_AT_ONCE),
      math.ceil(info.num_examples / _READ_AT_ONCE),
      f'reading {builder.name} {split}',
    )
  )
  images = tf.concat([batch['image'] for batch in batches], 0)
  labels = tf.concat([batch['label'] for batch in batches], 0).numpy()
  if examples.are_classes(labels):
    examples.check_labels(labels, len(label.names), name)
  return examples.Source(
    info.num_examples,
    label.names,
    own_files=False,
    read=examples.read_from(images, labels),
    labels=labels,
    several_classes=label.several,
  )


def _check_first_labels(builder, info, label, name):
  """Raises ValueError if the first labels of a split are not classes."""
  first = _make_stream(builder, info, label)(None, None).take(_CHECKED_LABELS)
  labels = np.array([x['label'].numpy() for x in first])
  if examples.are_classes(labels):
    examples.check_labels(labels, len(label.names), name)


def _make_share(builder, split, info, label, part, num_parts):
  """Returns the streamed source of one of `num_parts` shards of a split."""
  import tensorflow_datasets as tfds

  share = info
  if num_parts > 1:
    if info.num_examples < num_parts:
      raise ValueError(
        f'TFDS {builder.name}: split {split!r} has {info.num_examples} '
        f'example(s), which cannot be divided between {num_parts} groups of '
        'processes. Use a larger split or fewer processes.'
      )
    share = builder.info.splits[tfds.even_splits(split, num_parts)[part]]
  return examples.Source(
    info.num_examples,
    label.names,
    own_files=False,
    stream=_make_stream(builder, share, label),
    share=share.num_examples,
    several_classes=label.several,
  )


def _make_stream(builder, info, label):
  """Returns the function `stream` of a `Source`; its images are encoded."""
  import tensorflow_datasets as tfds

  skip_decoding = {'image': tfds.decode.SkipDecoding()}
  shards = info.file_instructions
  files = [shard.filename for shard in shards]
  skips = tf.constant([shard.skip for shard in shards], tf.int64)
  takes = tf.constant([shard.take for shard in shards], tf.int64)

  def parse(record):
    example = builder.info.features.deserialize_example(
      record, decoders=skip_decoding
    )
    return {
      'image': example['image'],
      'label': label.convert(
        example.get('label', example.get('real_label', 0))
      ),
    }

  def read_shard(file, skip, take):
    return tf.data.TFRecordDataset(file).skip(skip).take(take)

  def stream(seed, buffer_size):
    dataset = tf.data.Dataset.from_tensor_slices((files, skips, takes))
    if seed is None:
      return dataset.flat_map(read_shard).map(parse)
    order = tf.random.experimental.index_shuffle(
      tf.range(len(files), dtype=tf.int64), seed, len(files) - 1
    )
    shuffled = tf.data.Dataset.from_tensor_slices(order).map(
      lambda i: (tf.gather(files, i), skips[i], takes[i])
    )
    # Interleave sixteen shards, to mix examples before the shuffle buffer.
    records = shuffled.interleave(
      read_shard,
      cycle_length=16,
      block_length=16,
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    shuffle_seed = tf.random.stateless_uniform(
      [], seed, maxval=tf.int64.max, dtype=tf.int64
    )
    records = records.shuffle(
      buffer_size, seed=shuffle_seed, reshuffle_each_iteration=False
    )
    return records.map(parse, num_parallel_calls=tf.data.AUTOTUNE)

  return stream
