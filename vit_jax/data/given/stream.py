"""Given training batches, and how a resumed run finds its place in them.

A function of the step and a list give batch k at any time. An object that can
be iterated again starts again at its end, and a resumed run skips the batches
that were used. A plain iterator continues with whatever comes next.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import inspect
import itertools
from typing import Any

from vit_jax import console


def _accepts(function, *args):
  """Returns whether a function can be called with these arguments."""
  try:
    inspect.signature(function).bind(*args)
  except TypeError:
    return False
  except ValueError:  # a built-in function without a signature
    return bool(args)
  return True


def _type_name(x):
  return f'{type(x).__module__.partition(".")[0]} {type(x).__name__}'


@dataclasses.dataclass(eq=False)
class Stream:
  """The training batches, as the caller gave them.

  Attributes:
    name: type of the given object, for messages.
    at: step -> batch, if each batch can be made at any time; else None.
    start: returns an iterator; a new one if `restarts`.
    restarts: whether `start` begins again from the first batch.
    length: number of different batches; None if it is unknown.
  """

  name: str
  at: Callable | None = None
  start: Callable | None = None
  restarts: bool = False
  length: int | None = None
  _opened: Iterator | None = None

  def peek(self) -> Any:
    """Returns the first batch, which remains in the stream.

    Raises:
      ValueError: there are no batches.
    """
    if self.at:
      return self.at(0)
    iterator = self._open()
    for first in iterator:
      self._opened = itertools.chain([first], iterator)
      return first
    raise ValueError(
      f'train: the {self.name} gives no batches. '
      + (
        'Check what it iterates over'
        if self.restarts
        else 'An iterator that was used cannot be used again: give a new one'
      )
    )

  def batches(self, first_step: int) -> Iterator[Any]:
    """Yields the batches after the first `first_step`.

    Raises:
      ValueError: an iterator ends.
    """
    if self.at:
      yield from map(self.at, itertools.count(first_step))
    if not self.restarts:
      self._warn(first_step)
      yield from self._open()
      raise ValueError(
        f'train: the {self.name} has ended. Give an iterator with more '
        'batches, or an object that can be iterated again, such as a list or a '
        'function that returns a new iterator'
      )
    self._warn(first_step)
    batches = self._epochs()
    for _ in console.counting(
      range(first_step), first_step, 'skipping used batches'
    ):
      next(batches)
    yield from batches

  def _epochs(self):
    """Yields the batches again and again."""
    while True:
      self.peek()  # raises ValueError if there are none
      iterator, self._opened = self._opened, None
      yield from iterator

  def _open(self):
    if self._opened is None:
      self._opened = iter(self.start())
    return self._opened

  def _warn(self, first_step):
    """Logs what a resumed run can and cannot repeat."""
    if self.restarts:
      text = (
        f'the run has skipped {first_step} batches of the given {self.name}'
        if first_step
        else f'a resumed run skips the used batches of the given {self.name}'
      ) + (
        '. It equals an uninterrupted run only if the batches come in the '
        'same order at every start, which vit_jax cannot check'
      )
    else:
      text = (
        f'the given {self.name} cannot go back: '
        + ('this' if first_step else 'a resumed')
        + ' run continues with whatever comes next, so it differs from an '
        'uninterrupted run'
      )
    console.log_info(
      f'warning: {text}. For an exact resume, give arrays, a list, or a '
      'function of the step'
    )


def make_stream(train: Any) -> Stream:
  """Returns the `Stream` of an object that gives training batches.

  Args:
    train: see `batches.from_batches`.

  Raises:
    ValueError: the object gives no batches.
  """
  name = _type_name(train)
  if isinstance(train, str | bytes | Mapping) or hasattr(train, 'dtype'):
    raise ValueError(
      f'train is a {name}, not a collection of batches. For arrays of '
      'examples, use vit_jax.data.from_arrays. For the same batch in each '
      'step, use [batch]'
    )
  if isinstance(train, list | tuple):
    if not train:
      raise ValueError('train: the list of batches is empty')
    count = len(train)
    return Stream(name, at=lambda step: train[step % count], length=count)
  if hasattr(train, '__next__'):
    return Stream(name, start=lambda: train)
  if hasattr(train, '__iter__'):
    try:
      length = len(train)
    except TypeError:  # unknown or infinite
      length = None
    return Stream(name, start=lambda: train, restarts=True, length=length)
  if callable(train):
    name = f'function {getattr(train, "__name__", name)}'
    if _accepts(train, 0):
      return Stream(name, at=train)
    if _accepts(train):
      return Stream(name, start=train, restarts=True)
  raise ValueError(
    f'train is a {name}. Give an object that can be iterated, such as a '
    'tf.data.Dataset or a DataLoader, or a function of the step: '
    'train(step) -> batch'
  )


def make_pass(given: Any, name: str) -> Callable[[], Iterable[Any]]:
  """Returns a function that starts a pass over evaluation batches.

  Args:
    given: a finite collection, or a function that returns a new iterator.
    name: name of the argument, for messages.

  Raises:
    ValueError: the batches could not be read several times.
  """
  kind = _type_name(given)
  if hasattr(given, '__next__'):
    raise ValueError(
      f'{name} is a {kind}, which can be read only once, but each evaluation '
      f'reads it. Give list({name}), or a function that returns a new iterator'
    )
  if hasattr(given, 'cardinality') and int(given.cardinality()) == -1:
    raise ValueError(
      f'{name} is an infinite {kind}. Give a dataset that ends: remove repeat()'
    )
  if callable(given) and not hasattr(given, '__iter__') and _accepts(given):
    return given
  if (
    isinstance(given, str | bytes | Mapping)
    or hasattr(given, 'dtype')
    or not hasattr(given, '__iter__')
  ):
    raise ValueError(
      f'{name} is a {kind}. Give a list of batches, a dataset or a loader of '
      'batches, or a function without arguments that returns a new iterator'
    )
  return lambda: given
