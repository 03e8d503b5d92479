"""Training data from batches of the caller: the function `from_batches`."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import Any

from vit_jax import console
from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.given import agreement
from vit_jax.data.given import batch_checks
from vit_jax.data.given import batch_pipeline
from vit_jax.data.given import classes
from vit_jax.data.given import stream
from vit_jax.parallel import sharding


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
  """Given batches; `from_batches` describes the attributes.

  Attributes:
    train: the training batches.
    passes: {split: function that starts a pass}, for 'test' and 'validation'.
    class_names: names of the classes; () if there are none.
    num_train: number of training examples, or None.
    prepare: whether the batches are raw examples.
  """

  train: stream.Stream
  passes: dict[str, Callable]
  class_names: tuple[str, ...]
  num_train: int | None
  prepare: bool

  name = 'given batches'  # in messages and in config.json

  @property
  def pipeline(self) -> examples.Pipeline:
    """Makes the batches of the sources."""
    return batch_pipeline.make(self.prepare)

  def sources(
    self, settings: DataSettings, share: sharding.Share
  ) -> dict[str, examples.Source]:
    """Returns {split: `examples.Source`} with `batches` of this process.

    It reads the first training batch, and counts the evaluation examples.

    Raises:
      ValueError: a batch cannot be used.
    """
    if settings.validation:
      raise ValueError(
        f'config.validation={settings.validation!r} cannot hold out examples '
        'of given batches. Give the validation batches with the argument '
        '`validation` of vit_jax.data.from_batches'
      )
    rows = len(share.rows(settings.batch))
    first = self._to_batch(self.train.peek(), 'the first training batch')
    layout = self._layout(first)
    layout.check(first, 'the first training batch')
    _check_size(first, rows, settings, 'the first training batch')
    num_train = self.num_train
    if num_train is None and self.train.length:
      num_train = self.train.length * settings.batch
    train = functools.partial(self._training, layout, rows, settings)
    return {
      'train': examples.Source(
        num_train, self.class_names, batches=train, sample=first
      ),
      **{split: self._counted(split) for split in self.passes},
    }

  def _to_batch(self, given, where):
    return batch_checks.to_batch(given, where, self.prepare)

  def _layout(self, batch):
    return batch_checks.BatchSpec(
      batch_checks.rows_of(batch, self.prepare),
      self.prepare,
      len(self.class_names),
    )

  def _training(self, layout, rows, settings, first_step):
    """Yields the checked training batches after `first_step`."""
    steps = itertools.count(first_step + 1)
    given = self.train.batches(first_step)
    for step in steps:
      where = f'the training batch of step {step}'
      try:
        found = next(given)
      except ValueError as error:
        raise ValueError(f'step {step}: {error}') from error
      batch = self._to_batch(found, where)
      layout.check(batch, where)
      _check_size(batch, rows, settings, where)
      yield batch

  def _counted(self, split):
    """Returns the `Source` of an evaluation split, after reading it once."""
    first, count = None, 0
    for batch in console.Bar(self._evaluation(split), desc=f'counting {split}'):
      first = batch if first is None else first
      count += batch_checks.num_rows(batch)
    if first is None:
      raise ValueError(
        f'{split} gives no batches. Check what it iterates over, or omit '
        f'{split}'
      )
    return examples.Source(
      count,
      self.class_names,
      batches=functools.partial(self._evaluation, split, count),
      share=count,
      sample=first,
    )

  def _evaluation(self, split, expected=None):
    """Yields the checked batches of one pass over an evaluation split.

    Args:
      split: 'test' or 'validation'.
      expected: number of examples of earlier passes; None in the first pass.
    """
    layout, count = None, 0
    for number, given in enumerate(self.passes[split](), 1):
      where = f'{split} batch {number}'
      batch = self._to_batch(given, where)
      if 'mask' in batch:
        raise ValueError(
          f"{where} has the array 'mask', which vit_jax adds to mark padding "
          'rows. Give this array another name'
        )
      layout = layout or self._layout(batch)
      layout.check(batch, where)
      count += batch_checks.num_rows(batch)
      if expected is not None and count > expected:
        break
      yield batch
    if expected not in (None, count):
      raise ValueError(
        f'{split} had {expected} examples at first, but now '
        + ('more' if count > expected else str(count))
        + '. Each pass must give the same examples. A function must return a '
        'new iterator each time'
      )

  def agree(self, data: Any) -> Any:
    """Returns the data after `agreement.agree`."""
    return agreement.agree(data)


def from_batches(
  train: Any,
  *,
  test: Any = None,
  validation: Any = None,
  class_names: Sequence[str] | None = None,
  num_classes: int | None = None,
  num_train: int | None = None,
  prepare: bool = False,
) -> Batches:
  """Returns data for `train_and_evaluate` from batches of the caller.

  A batch is a dict of arrays [B, …] with any names. Tensors of TensorFlow and
  PyTorch are converted. Training batches have exactly `config.batch` examples.
  With several processes, each gives its own rows, and its own part of the
  evaluation examples.

  Args:
    train: a function of the step, train(0), train(1), … -> batch; a list; an
      object that can be iterated again, such as a `tf.data.Dataset` or a
      `DataLoader`, which starts again at its end; or an iterator. A function
      and a list can be resumed exactly.
    test: evaluation batches of any sizes: a list, a dataset, a loader, or a
      function without arguments that returns a new iterator.
    validation: validation batches, as `test`.
    class_names: name of each class, if labels are class numbers.
    num_classes: number of classes; their names are then '0', '1', ….
    num_train: number of training examples, for `config.total_epochs`. None:
      from the length of `train`, if it has one.
    prepare: False: the batches are used as they are, also by a task with a
      `prepare` of its own. True: `image` has pixels uint8 [B, H, W, C], a list
      of images uint8 of different sizes, or a list of encoded images. They go
      through the crop and the augmentation of the config.

  Raises:
    ValueError: an argument cannot be used.
  """
  if num_train is not None and num_train < 1:
    raise ValueError(
      f'num_train={num_train} must be the number of training examples, at '
      'least 1. Omit it if the number is unknown'
    )
  return Batches(
    stream.make_stream(train),
    {
      split: stream.make_pass(given, split)
      for split, given in (('test', test), ('validation', validation))
      if given is not None
    },
    classes.check_names(class_names, num_classes),
    num_train,
    prepare,
  )


def _check_size(batch, rows, settings, where):
  """Raises ValueError unless a batch has the rows of this process."""
  found = batch_checks.num_rows(batch)
  if found != rows:
    part = (
      ''
      if rows == settings.batch
      else f' and this process gives {rows} of them'
    )
    raise ValueError(
      f'{where} has {found} examples, but config.batch={settings.batch}{part}. '
      f'Give batches of {rows}, without a smaller last one (drop_last, '
      'drop_remainder), or set config.batch'
    )
