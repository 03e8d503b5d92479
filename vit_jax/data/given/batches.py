"""Training data from batches of the caller: the function `from_batches`."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import math
from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.given import batch_checks
from vit_jax.data.given import classes
from vit_jax.data.given import raw_examples
from vit_jax.data.given import stream
from vit_jax.parallel import processes
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
    return examples.Pipeline(
      functools.partial(_train, self.prepare),
      functools.partial(_evaluate, self.prepare),
      functools.partial(_spec, self.prepare),
      prepares=self.prepare,
    )

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
    return batch_checks.Layout(
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
    """Returns the data with the numbers of examples of all processes.

    All processes must call it.

    Raises:
      ValueError: the batches of the processes do not fit together.
    """
    return _agree(data)


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
    test: evaluation batches of any sizes: a list, a data set, a loader, or a
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
      '' if rows == settings.batch else f', of which this process gives {rows}'
    )
    raise ValueError(
      f'{where} has {found} examples, but config.batch={settings.batch}{part}. '
      f'Give batches of {rows}, without a smaller last one (drop_last, '
      'drop_remainder), or set config.batch'
    )


# --- the pipeline ------------------------------------------------------------


def _train(is_raw, source, settings, share, prepare, first_step):
  """Yields the training batches; stops all processes if one fails."""
  batches = source.batches(first_step)
  if is_raw:
    rows = share.rows(settings.batch)
    positions = (
      step * settings.batch + int(row)
      for step in itertools.count(first_step)
      for row in rows
    )
    layout = _layout_of(source)
    batches = raw_examples.prepared(
      batches, layout, prepare, len(rows), positions, settings.seed
    )
  while True:
    yield processes.together(lambda: next(batches))


def _spec(is_raw, source, settings, share, prepare):
  del settings, share
  if is_raw:
    return raw_examples.spec(_layout_of(source), prepare)
  return {name: (x.shape[1:], x.dtype) for name, x in source.sample.items()}


def _layout_of(source):
  return batch_checks.Layout(batch_checks.rows_of(source.sample, True), True)


def _evaluate(is_raw, source, settings, share, prepare):
  """Yields batches with a mask, equally many on all processes."""
  size = len(share.rows(settings.batch_eval))
  batches = source.batches()
  if is_raw:
    batches = raw_examples.prepared(batches, _layout_of(source), prepare, size)
  else:
    batches = _rebatched(batches, size)
  last = None
  for _ in range(math.ceil(source.num_examples / settings.batch_eval)):
    batch = next(batches, None)
    if batch is None:  # other processes have another batch
      batch = {name: x[:0] for name, x in last.items()}
    last = batch
    count = batch_checks.num_rows(batch)
    batch = {**batch, 'mask': np.ones(count, np.float32)}
    yield {
      name: np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1))
      for name, x in batch.items()
    }
  next(batches, None)  # raises ValueError if there are more examples


def _rebatched(batches, size) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches of `size` rows from batches of any sizes."""
  waiting, count = [], 0
  for batch in batches:
    while batch_checks.num_rows(batch) + count >= size:
      taken = size - count
      waiting.append({name: x[:taken] for name, x in batch.items()})
      batch = {name: x[taken:] for name, x in batch.items()}
      yield _joined(waiting)
      waiting, count = [], 0
    if batch_checks.num_rows(batch):
      waiting.append(batch)
      count += batch_checks.num_rows(batch)
  if waiting:
    yield _joined(waiting)


def _joined(batches):
  return {
    name: np.concatenate([batch[name] for batch in batches])
    for name in batches[0]
  }


# --- several processes -------------------------------------------------------


def _agree(data):
  """See `Batches.agree`."""
  counts = {
    split: source.share
    for split, source in data.sources.items()
    if split != 'train'
  }
  share = data.share
  rows = batch_checks.rows_of(data.sources['train'].sample, False)
  processes.check_same(
    {
      'the arrays of the training batches': {
        name: f'{dtype} {list(shape)}' for name, (shape, dtype) in rows.items()
      },
      'the splits': sorted(counts),
    }
  )
  every = processes.exchange(
    {
      'counts': counts,
      'group': share.group,
      'digests': _digests(data.sources['train'].sample, share),
    }
  )
  _check_parts([x['digests'] for x in every])
  if counts and share.num_groups == 1 and len(share.parts) < share.num_parts:
    raise ValueError(
      'the rows of the processes overlap on this mesh, so given evaluation '
      'batches cannot be divided. Give test and validation as arrays, or use '
      'other values of config.mesh'
    )
  sources = dict(data.sources)
  for split in counts:
    by_group = [
      {x['counts'][split] for x in every if x['group'] == group}
      for group in range(share.num_groups)
    ]
    numbers = [n for found in by_group for n in found]
    if len(numbers) > len(by_group) or max(numbers) > min(numbers) + 1:
      raise ValueError(
        f'the processes give {[x["counts"][split] for x in every]} examples of '
        f'{split}. Processes with the same rows must give the same examples, '
        'and the numbers of the others may differ by one'
      )
    sources[split] = dataclasses.replace(
      sources[split], num_examples=sum(numbers)
    )
  return dataclasses.replace(data, sources=sources)


def _digests(batch, share):
  """Returns {part of the global batch: hash of its rows}."""
  size = batch_checks.num_rows(batch) // len(share.parts)
  found = {}
  for i, part in enumerate(share.parts):
    digest = hashlib.sha256()
    for name, x in sorted(batch.items()):
      digest.update(name.encode())
      for row in x[i * size : (i + 1) * size]:
        digest.update(row if isinstance(row, bytes) else row.tobytes())
    found[str(part)] = digest.hexdigest()
  return found


def _check_parts(every):
  """Compares the rows of the first batch of all processes."""
  known = {}
  for process, digests in enumerate(every):
    for part, digest in digests.items():
      first, other = known.setdefault(part, (process, digest))
      if other != digest:
        raise ValueError(
          f'processes {first} and {process} hold the same rows of a batch on '
          'this mesh, but they give different examples in the first training '
          'batch. Processes that share rows must give equal batches: choose '
          'the examples by the rows of parallel.sharding.share_of, not by the '
          'process index'
        )
  digests = [digest for _, digest in known.values()]
  if len(set(digests)) < len(digests):
    console.log_info(
      'warning: two processes give equal examples in the first training '
      'batch. Each process must give its own rows, for example by its '
      'jax.process_index()'
    )
