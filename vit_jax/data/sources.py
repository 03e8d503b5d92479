"""Where examples come from: a folder of images, TFDS, or bundled digits."""

from collections.abc import Callable
import dataclasses
import difflib
import hashlib
import math
import os
import socket
import urllib.parse
import urllib.request

import numpy as np

from vit_jax import console
from vit_jax.data import image_folder
from vit_jax.data import tensorflow as tf

_DIGITS_TEST_SHARE = 0.2
_READ_AT_ONCE = 4096  # examples, when a set is read into memory


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


def get_sources(config, part=0, num_parts=1, check_images=True):
  """The training and the test source that `config.dataset` names.

  Args:
    config: with the settings under "data" in `base_config`.
    part: which of `num_parts` equal shares a streamed source gives.
    num_parts: how many shares there are.
    check_images: whether to find undecodable images, by decoding every one.

  Raises:
    ValueError: the data set cannot be had, or is not fit to train on.
  """
  if config.dataset == 'digits':
    return _digits(config)
  folder = os.path.expanduser(config.dataset)
  if os.path.isdir(folder):
    return _folder_sources(config, folder, check_images)
  if folder.startswith(('/', '.')):
    raise ValueError(f'config.dataset={config.dataset!r}: no such folder')
  return _tfds_sources(config, part, num_parts)


def check_labels(labels, num_classes):
  """Raises a ValueError unless integers are from 0 to `num_classes` - 1."""
  wrong = labels[(labels < 0) | (labels >= num_classes)]
  if wrong.size:
    raise ValueError(
      f'config.dataset: {wrong.size} of {labels.size} labels, such as '
      f'{wrong[0]}, are not from 0 to {num_classes - 1}, as those of '
      f'{num_classes} classes. Correct the data set, or take another split: '
      '-1 often stands for a label that is kept secret'
    )


def _read_from(images, labels):
  """`read` over arrays held in memory."""
  images, labels = tf.constant(images), tf.constant(labels, tf.int64)
  return lambda index: {'image': images[index], 'label': labels[index]}


# --- the digits bundled with scikit-learn ------------------------------------


def _digits(config):
  """1 797 handwritten digits of 8 × 8 pixels, a fixed fifth for testing."""
  from sklearn import datasets

  if (config.train_split, config.test_split) != ('train', 'test'):
    raise ValueError(
      "dataset 'digits' has the splits train and test, not "
      f'{config.train_split!r} and {config.test_split!r}'
    )
  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  in_test = np.array(
    [
      image_folder.hash_share(str(i)) < _DIGITS_TEST_SHARE
      for i in range(len(images))
    ]
  )
  names = tuple(map(str, digits.target_names))
  return tuple(
    Source(
      int(part.sum()), names, read=_read_from(images[part], digits.target[part])
    )
    for part in (~in_test, in_test)
  )


# --- a folder of images ------------------------------------------------------


def _folder_sources(config, folder, check_images):
  parts = image_folder.find_images(
    folder,
    train_split=config.train_split,
    test_split=config.test_split,
    max_bad_images=config.max_bad_images,
    check_images=check_images,
  )
  names = tuple(parts[0])
  return tuple(_folder_source(part, names, folder) for part in parts)


def _folder_source(part, names, folder):
  label_of = {name: label for label, name in enumerate(names)}
  paths = [os.fsencode(path) for files in part.values() for path in files]
  labels = [label_of[name] for name, files in part.items() for _ in files]
  read_path = _read_from(paths, labels)

  def read(index):
    example = read_path(index)
    return {**example, 'image': tf.io.read_file(example['image'])}

  digest = hashlib.sha256(
    b'\0'.join(os.path.relpath(path, os.fsencode(folder)) for path in paths)
  )
  return Source(len(paths), names, read=read, fingerprint=digest.hexdigest())


# --- TensorFlow Datasets -----------------------------------------------------


def _tfds_sources(config, part, num_parts):
  builder = _tfds_builder(
    config.dataset, os.path.expanduser(config.tfds_data_dir) or None
  )
  features = dict(builder.info.features)
  if 'image' not in features or not hasattr(features.get('label'), 'names'):
    raise ValueError(
      f'TFDS {config.dataset}: needs the features image and label (a class); '
      f'it has {", ".join(features)}'
    )
  names = tuple(features['label'].names)
  return tuple(
    _tfds_source(builder, split, names, config.in_memory_bytes, part, num_parts)
    for split in (config.train_split, config.test_split)
  )


def _tfds_builder(name, data_dir):
  """A prepared builder, downloaded and prepared if it was not."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    near = difflib.get_close_matches(name, tfds.list_builders(), n=3)
    raise ValueError(
      f'config.dataset={name!r} is neither a folder here nor known to TFDS'
      + (f'; nearest there: {", ".join(near)}' if near else '')
    ) from error
  except (AssertionError, ValueError) as error:  # its configs and versions
    raise ValueError(f'config.dataset={name!r}: {error}') from error
  if builder.info.splits:
    return builder
  try:
    _check_reachable(builder)
    builder.download_and_prepare()
  except Exception as error:  # whatever the download or the parser raised
    raise ValueError(
      f'TFDS {name} is not prepared in {builder.data_dir}, and preparing it '
      f'failed: {error}. Point --config.tfds_data_dir to a folder that holds '
      'it prepared, or prepare it where there is a network'
    ) from error
  return builder


def _check_reachable(builder):
  """Fails at once where TFDS would retry for minutes: no address for a host."""
  if urllib.request.getproxies() or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return
  hosts = {urllib.parse.urlparse(url).hostname for url in builder.url_infos}
  for host in sorted(hosts - {None})[:1]:
    try:
      socket.getaddrinfo(host, 443)
    except OSError as error:
      raise OSError(f'{host} cannot be reached ({error})') from error


def _num_bytes(info):
  """Size of a split's share of its files."""
  return sum(
    tf.io.gfile.stat(shard.filename).length
    * shard.take
    / shard.examples_in_shard
    for shard in info.file_instructions
  )


def _tfds_source(builder, split, names, in_memory_bytes, part, num_parts):
  """A split: in memory if it is small, else streamed from its shards."""
  try:
    info = builder.info.splits[split]
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'TFDS {builder.name}, split {split!r}: {error}'
    ) from error
  if not info.num_examples:
    raise ValueError(f'TFDS {builder.name}: split {split!r} is empty')
  if _num_bytes(info) > in_memory_bytes:
    return _tfds_share(builder, split, info, names, part, num_parts)
  batches = list(
    console.counting(
      _tfds_stream(builder, info)(None, None).batch(_READ_AT_ONCE),
      math.ceil(info.num_examples / _READ_AT_ONCE),
      f'reading {builder.name} {split}',
    )
  )
  images = tf.concat([batch['image'] for batch in batches], 0)
  labels = tf.concat([batch['label'] for batch in batches], 0)
  check_labels(labels.numpy(), len(names))
  return Source(info.num_examples, names, read=_read_from(images, labels))


def _tfds_share(builder, split, info, names, part, num_parts):
  """The streamed source of one of several equal shares of a split."""
  import tensorflow_datasets as tfds

  share = info
  if num_parts > 1:
    if info.num_examples < num_parts:
      raise ValueError(
        f'TFDS {builder.name}, split {split!r}: {info.num_examples} '
        f'example(s) for {num_parts} processes'
      )
    share = builder.info.splits[tfds.even_splits(split, num_parts)[part]]
  return Source(
    info.num_examples,
    names,
    stream=_tfds_stream(builder, share),
    share=share.num_examples,
  )


def _tfds_stream(builder, info):
  """`Source.stream` over the shards of a split; images stay encoded."""
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
    return {'image': example['image'], 'label': example['label']}

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
    # Sixteen shards at a time mix before the buffer does.
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
