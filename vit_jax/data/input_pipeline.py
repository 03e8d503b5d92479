"""From examples to batches: order, augmentation, batching, resuming.

Batch k of a run is a function of (seed, k). The stream of training examples is
a sequence of epochs. Each epoch has all n examples, in a new order. The seed
and the position p in the stream determine an example and its augmentation. The
epoch is p // n. So a resumed run gets the batches of an uninterrupted run. If
the source has random access (see `Source`), resuming reads no earlier examples.

Each process makes only its own rows of these batches. A streamed source has no
random access. So each group of processes streams its own shard of the examples.
The sizes of the shards differ by at most one example.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data import preprocess
from vit_jax.data import sources
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.given import npz_file
from vit_jax.data.image_files import decoding
from vit_jax.data.in_memory import device_pipeline
from vit_jax.data.in_memory import device_resizing
from vit_jax.data.in_memory import sampling
from vit_jax.parallel import host_memory
from vit_jax.parallel import sharding

_LABEL = 'label as stored'  # key of the stored labels, for `_checked`


@dataclasses.dataclass(frozen=True)
class Datasets:
  """The training data and evaluation data of a run.

  Batches are dicts of NumPy arrays, which `prepare` makes from the examples. By
  default, they are image [B, H, W, 3] float32 in [−1, 1] and label [B] int32.
  Evaluation batches also have mask [B] float32: 0 in rows that only pad the
  last batch, else 1.

  Attributes:
    sources: {split: `examples.Source`}, with 'train', 'test' and optionally
      'validation'.
    settings: `DataSettings`.
    share: the rows of each batch that this process makes.
    prepare: see `task.Task`.
    watch: wraps the iterator of evaluation batches; it can stop an evaluation.
    pipeline: makes the batches of the sources.
  """

  sources: dict[str, examples.Source]
  settings: data_settings.DataSettings
  share: sharding.Share
  prepare: Callable
  watch: Callable = iter
  pipeline: examples.Pipeline = dataclasses.field(
    default_factory=lambda: EXAMPLES
  )

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.sources['train'].class_names

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of the model's images in pixels."""
    return self.settings.image_size

  @property
  def fingerprint(self) -> str:
    """Hash of the lists of examples; '' if the sources have no lists."""
    return ''.join(source.fingerprint for source in self.sources.values())

  @property
  def num_examples(self) -> dict[str, int]:
    """{split: number of examples}; that of 'train' can be None, if unknown."""
    return {name: source.num_examples for name, source in self.sources.items()}

  @property
  def num_train(self) -> int | None:
    """Number of training examples; None if it is unknown."""
    return self.sources['train'].num_examples

  @property
  def num_test(self) -> int:
    """Number of test examples; 0 if there is no test split."""
    return self.num_examples.get('test', 0)

  def labels(self, split: str) -> np.ndarray | None:
    """Returns the labels of all examples of a split, or None if unknown.

    Streamed datasets and given batches have no such list.
    """
    return self.sources[split].labels

  @property
  def decoding(self) -> decoding.Decoding:
    """How image files become pixels, for a `prepare` of one's own."""
    return _decoding(self.sources, self.settings)

  @property
  def findings(self) -> dict[str, Any] | None:
    """What `check` finds in a folder, as values of JSON; else None."""
    return self.sources['train'].findings

  def train(self, first_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Returns endless training batches, or feeds, from `first_step` on."""
    return self.pipeline.train(*self._arguments('train'), first_step)

  @property
  def make_batch(self) -> Callable | None:
    """Function feed -> batch, if `train` yields feeds; see `Pipeline`."""
    function = self.pipeline.make_batch
    return function and functools.partial(function, settings=self.settings)

  def sample(self, feed: Any) -> dict[str, np.ndarray]:
    """Returns the rows of this process of the batch that `train` stands for."""
    if not self.make_batch:
      return feed
    if self.settings.data_on == 'device':
      feed = device_pipeline.with_own_rows(feed, self.sources['train'])
    return jax.device_get(jax.jit(self.make_batch)(feed))

  def evaluate(self, split: str) -> Iterator[dict[str, np.ndarray]]:
    """Returns batches that contain each example of a split once."""
    return self.watch(self.pipeline.evaluate(*self._arguments(split)))

  def num_batches(self, split: str) -> int:
    """Returns the number of batches of `evaluate`."""
    return math.ceil(self.num_examples[split] / self.settings.batch_eval)

  def test(self) -> Iterator[dict[str, np.ndarray]]:
    """Returns batches that contain each test example once."""
    return self.evaluate('test')

  def spec(self) -> dict[str, tuple]:
    """Returns {name: (shape, dtype)} of a training example after `prepare`."""
    return self.pipeline.spec(*self._arguments('train'))

  def _arguments(self, split):
    return self.sources[split], self.settings, self.share, self.prepare


def _decoding(by_split, settings):
  """Returns the `Decoding` of the images of all splits."""
  own_files = all(source.own_files for source in by_split.values())
  return decoding.resolve(settings.exif, settings.background, own_files)


def get_datasets(
  settings: DataSettings,
  share: sharding.Share | None = None,
  prepare: Callable | None = None,
  check_images: bool = True,
  given: Any = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Datasets:
  """Returns the `Datasets` for the given settings.

  Args:
    settings: `DataSettings`.
    share: the rows of each batch that this process makes; None for all rows.
    prepare: see `task.Task`; None for `preprocess.make_prepare`.
    check_images: see `sources.get_sources`.
    given: data that replace `settings.dataset`; see `vit_jax.data`.
    mesh: device mesh, for `settings.data_on` = 'device'.

  Raises:
    ValueError: the data cannot be read, or a batch does not fit into memory.
  """
  host_memory.check_batch(
    'batch_eval', settings.batch_eval, settings.image_size
  )
  share = share or sharding.Share()
  on_device = settings.data_on == 'device'
  if not given and settings.dataset.endswith('.npz'):
    given = npz_file.load(settings)
  if given:
    settings.check_unused(
      data_settings.OF_FOLDERS, 'the data are arrays or batches, not a folder'
    )
  # Each process needs all examples for its devices.
  part = (0, 1) if on_device else (share.group, share.num_groups)
  by_split = (
    given.sources(settings, share)
    if given
    else sources.get_sources(settings, *part, check_images)
  )
  if settings.labels == 'none':
    by_split = {
      name: examples.without_labels(source) for name, source in by_split.items()
    }
  pipeline = given and given.pipeline or EXAMPLES
  if settings.cropping.resize_on == 'device' and not on_device:
    device_resizing.check(pipeline is EXAMPLES, by_split['train'])
    pipeline = CROPS
  if on_device:
    how, pipeline = _decoding(by_split, settings), device_pipeline.PIPELINE
    mesh = mesh or sharding.make_mesh()
    by_split = device_pipeline.put(by_split, settings, how, mesh)
  by_split['train'] = sampling.arrange(by_split['train'], settings)
  prepare = prepare or (pipeline.make_prepare or preprocess.make_prepare)(
    settings.image_size,
    settings.cropping,
    _decoding(by_split, settings),
    settings.resizing,
  )
  return Datasets(by_split, settings, share, prepare, pipeline=pipeline)


def _rows_of_stream(source, batch, share):
  """Returns (rows to make, batch size) for the stream of this source.

  The stream has the examples of the entire split, or of one shard.
  """
  if source.read or share.num_groups == 1:
    return share.rows(batch), batch
  # This group has its own shard and must produce all of its examples.
  size = batch // share.num_groups
  return np.arange(size), size


def _ordered(source, settings, first_step, share):
  """Returns (Dataset, function), with all rows of this process.

  The function makes (position, example) of an element of the Dataset. It is
  called in the same `map` as `prepare`, since each `map` takes time.
  """
  seed, whole_batch = settings.seed, settings.batch
  rows, batch = _rows_of_stream(source, whole_batch, share)
  start = first_step * batch
  if source.order:
    return _in_given_order(source, first_step, batch, rows)
  if source.read:
    n = source.num_examples

    def example_at(i):
      position = i // len(rows) * batch + tf.gather(rows, i % len(rows))
      epoch_seed = tf.stack([tf.constant(seed, tf.int64), position // n])
      index = tf.random.experimental.index_shuffle(
        position % n, epoch_seed, n - 1
      )
      return position, source.read(index)

    first = first_step * len(rows)
    return tf.data.Dataset.range(first, np.iinfo(np.int64).max), example_at

  def keep(position, example):
    return position, example

  n = source.share or source.num_examples

  def epoch(number):
    examples = source.stream(
      tf.stack([tf.constant(seed, tf.int64), number]), settings.shuffle_buffer
    )
    skipped = tf.maximum(first_example - number * n, 0)
    first = number * n + skipped
    return tf.data.Dataset.zip(
      tf.data.Dataset.range(first, np.iinfo(np.int64).max),
      examples.skip(skipped),
    )

  first_example = start // settings.repeats
  stream = tf.data.Dataset.range(
    first_example // n, np.iinfo(np.int64).max
  ).flat_map(epoch)
  if settings.repeats > 1:
    stream = _repeated(stream, settings.repeats).skip(start % settings.repeats)
  stream = _own(stream, lambda position, _: position, rows, batch)
  if batch == whole_batch:
    return stream, keep
  whole_rows = share.rows(whole_batch)

  # Positions seed the augmentation, so they must differ between groups.
  def in_whole_stream(position, example):
    return (
      position // batch * whole_batch + tf.gather(whole_rows, position % batch)
    ), example

  return stream, in_whole_stream


def _repeated(stream, times):
  """Repeats each (position, example), with consecutive new positions."""

  def repeat(position, example):
    first = position * times
    return tf.data.Dataset.range(first, first + times).map(
      lambda new: (new, example)
    )

  return stream.flat_map(repeat)


def _in_given_order(source, first_step, batch, rows):
  """As `_ordered`, in the order of `source.order`."""

  def of_step(step):
    positions = step * batch + rows
    return positions, tf.ensure_shape(
      tf.numpy_function(source.order, [positions], tf.int64), [len(rows)]
    )

  steps = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max)
  return steps.map(of_step).unbatch(), lambda position, index: (
    position,
    source.read(index),
  )


def _own(dataset, position_of, rows, batch):
  """Keeps the elements of a dataset that are rows of this process."""
  if len(rows) == batch:
    return dataset
  return dataset.filter(
    lambda *x: tf.reduce_any(tf.equal(rows, position_of(*x) % batch))
  )


def _prepare(prepare, example, seed):
  """Returns the prepared example, with the stored label for `_checked`."""
  stored = {}
  if 'label' in example:
    label = example['label']
    if label.dtype.is_integer and label.shape.rank == 0:  # a class number
      stored[_LABEL] = label
  return {**prepare(example, seed), **stored}


def _prepared(source, settings, share, prepare, first_step=0):
  """Returns a Dataset of prepared training examples, from `first_step` on."""
  dataset, example_of = _ordered(source, settings, first_step, share)

  def prepared(*element):
    position, example = example_of(*element)
    # The order uses (seed, epoch), so augmentation must use another seed.
    seed = tf.stack([tf.constant(~settings.seed, tf.int64), position])
    return _prepare(prepare, example, seed)

  return dataset.map(prepared, num_parallel_calls=tf.data.AUTOTUNE)


def _batched(dataset, rows, settings):
  del settings
  return dataset.batch(rows, drop_remainder=True)


def _spec(*arguments):
  return {
    name: (tuple(spec.shape), spec.dtype.as_numpy_dtype)
    for name, spec in _prepared(*arguments).element_spec.items()
    if name != _LABEL
  }


def _spec_of_crops(source, settings, *others):
  spec = _spec(source, settings, *others)
  return device_resizing.spec_of_batch(spec, settings)


def _train_batches(
  source, settings, share, prepare, first_step, batched=_batched
):
  dataset = _prepared(source, settings, share, prepare, first_step)
  dataset = batched(dataset, len(share.rows(settings.batch)), settings)
  return _checked(
    tf.elements(_with_options(dataset).prefetch(tf.data.AUTOTUNE)),
    len(source.class_names),
  )


def _eval_batches(source, settings, share, prepare):
  rows, batch = _rows_of_stream(source, settings.batch_eval, share)
  if source.read:
    dataset = _own(
      tf.data.Dataset.range(source.num_examples), lambda i: i, rows, batch
    )
    example_of = source.read
  else:
    dataset = _own(
      source.stream(None, None).enumerate(), lambda i, _: i, rows, batch
    )

    def example_of(_, example):
      return example

  def prepared(*element):
    example = example_of(*element)
    return {**_prepare(prepare, example, None), 'mask': tf.ones(())}

  dataset = dataset.map(prepared, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(len(rows)).prefetch(tf.data.AUTOTUNE)
  batches = _checked(
    tf.elements(_with_options(dataset)), len(source.class_names)
  )
  empty = {
    name: np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
    for name, spec in dataset.element_spec.items()
    if name != _LABEL
  }
  # All processes need the same number of batches, even if a shard is shorter.
  for _ in range(math.ceil(source.num_examples / settings.batch_eval)):
    own = next(batches, empty)
    missing = len(rows) - len(own['mask'])
    yield {
      name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
      for name, x in own.items()
    }


def _checked(batches, num_classes):
  """Yields batches without the stored labels, after checking these labels.

  Raises:
    ValueError: a label is not the index of a class.
  """
  for batch in batches:
    if _LABEL in batch:
      examples.check_labels(batch.pop(_LABEL), num_classes)
    yield batch


def _with_options(dataset):
  options = tf.data.Options()
  options.deterministic = True
  # Examples use all cores already. More threads per operation only wait.
  options.threading.max_intra_op_parallelism = 1
  return dataset.with_options(options)


EXAMPLES = examples.Pipeline(_train_batches, _eval_batches, _spec)
CROPS = examples.Pipeline(
  functools.partial(_train_batches, batched=device_resizing.batched),
  _eval_batches,
  _spec_of_crops,
  make_prepare=device_resizing.make_prepare,
  make_batch=device_resizing.make_batch,
)
