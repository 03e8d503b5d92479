"""Training data from arrays: the function `from_arrays` and its checks."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from vit_jax.data import examples
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.given import classes
from vit_jax.data.given import conversion
from vit_jax.data.given import image_arrays
from vit_jax.data.in_memory import numpy_pipeline


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """Given arrays, which `from_arrays` has checked.

  Attributes:
    splits: {split: {name: array}}, with 'train' and optionally 'test' and
      'validation'.
    class_names: names of the classes; () if the labels are not class numbers.
    value_range: smallest and largest possible pixel of float images; None for
      uint8.
    name: name of the data in messages and in config.json.
  """

  splits: Mapping[str, Mapping[str, np.ndarray]]
  class_names: tuple[str, ...]
  value_range: tuple[float, float] | None
  name: str = 'given arrays'

  @property
  def pipeline(self) -> examples.Pipeline | None:
    """Makes the batches; None for the pipeline of all examples."""
    return None if tf.is_installed() else numpy_pipeline.PIPELINE

  def sources(
    self, settings: DataSettings, share: Any = None
  ) -> dict[str, examples.Source]:
    """Returns {split: `examples.Source`}.

    Args:
      settings: `validation` can hold out training examples.
      share: not used: every process has all arrays.

    Raises:
      ValueError: the training examples cannot be held out.
    """
    del share
    splits = dict(self.splits)
    if settings.validation:
      splits |= self._held_out(settings)
    uses_numpy = settings.data_on == 'device' or self.pipeline is not None
    return {
      split: self._source(arrays, uses_numpy)
      for split, arrays in splits.items()
    }

  def _held_out(self, settings):
    """Returns the splits 'train' and 'validation' of the training examples."""
    if 'validation' in self.splits or isinstance(settings.validation, str):
      reason = (
        'they have a validation split already'
        if 'validation' in self.splits
        else 'they have no split of this name'
      )
      raise ValueError(
        f'config.validation={settings.validation!r} cannot be used with '
        f'{self.name}: {reason}. Use either the argument '
        '`validation`, or a fraction or a number of examples in '
        'config.validation'
      )
    train = self.splits['train']
    kept, held = examples.split_indices(
      settings.validation, range(len(train['image']))
    )
    return {
      split: {key: x[index] for key, x in train.items()}
      for split, index in (('train', kept), ('validation', held))
    }

  def agree(self, data: Any) -> Any:
    """Returns the data: every process has all arrays."""
    return data

  def _source(self, arrays, uses_numpy):
    others = dict(arrays)
    images, labels = others.pop('image'), others.pop('label', None)
    if uses_numpy:
      read = numpy_pipeline.read_from(arrays, self.value_range)
    else:
      read = examples.read_from(images, labels, **others)
      if self.value_range:
        read = _in_255(read, *self.value_range)
    return examples.Source(
      len(images),
      self.class_names,
      read=read,
      arrays=arrays if uses_numpy else None,
      fingerprint=examples.fingerprint(arrays, f'{self.value_range}'),
      labels=labels,
    )


def from_arrays(
  images: Any,
  labels: Any = None,
  *,
  test: Any = None,
  validation: Any = None,
  class_names: Sequence[str] | None = None,
  num_classes: int | None = None,
  value_range: tuple[float, float] | None = None,
) -> Arrays:
  """Returns data for `train_and_evaluate` from arrays in memory.

  The images go through the crop and the augmentation of the config, like those
  of a dataset. The order of the examples is a function of the seed, so a
  resumed run gets the batches of an uninterrupted run.

  Args:
    images: uint8 or float [N, H, W, C] with 1, 3 or 4 channels. Or a dict
      {'image': images, 'label': labels, …} with arrays of any names, each with
      N rows, which are then in the batches.
    labels: class numbers [N], integers; or other labels of a task, such as
      several classes [N, K] of 0 and 1, or float targets [N] or [N, T]. None if
      the task needs no labels, or `images` is a dict.
    test: test examples, (images, labels) or a dict. None: no test split.
    validation: validation examples in the same form. Or set
      `config.validation` to a fraction or a number of training examples.
    class_names: name of each class.
    num_classes: number of classes; their names are then '0', '1', ….
      If both are None, each class must occur in `labels`.
    value_range: (smallest, largest) possible pixel of float images: (0, 1),
      (-1, 1) or (0, 255). Pixels uint8 are always in 0…255.

  Raises:
    ValueError: the arrays cannot be used; the message names the array.
  """
  given = {'train': (images, labels) if labels is not None else images}
  given |= {'test': test, 'validation': validation}
  splits = {
    split: _checked_arrays(_as_dict(x, split, given['train']), split)
    for split, x in given.items()
    if x is not None
  }
  value_range = image_arrays.check_range(splits, value_range)
  for split, arrays in splits.items():
    _check_alike(splits['train'], arrays, split)
  return Arrays(
    splits,
    classes.find_names(
      {split: arrays.get('label') for split, arrays in splits.items()},
      class_names,
      num_classes,
    ),
    value_range,
  )


# --- checks ------------------------------------------------------------------


def _as_dict(given, split, train):
  """Returns {name: array} of one split, from a dict, a pair or an array."""
  if isinstance(given, Mapping):
    return given
  if isinstance(given, tuple):
    if len(given) != 2 or isinstance(given[0], Mapping):
      raise ValueError(
        f'{split} is a tuple of {len(given)} objects. Give (images, labels), '
        'or a dict of arrays'
      )
    return dict(zip(('image', 'label'), given, strict=True))
  if isinstance(train, tuple):
    raise ValueError(
      f'{split} has no labels, but the training images have. Give {split}='
      '(images, labels)'
    )
  return {'image': given}


def _checked_arrays(arrays, split):
  """Returns the arrays of one split as NumPy arrays of equal length."""
  if 'image' not in arrays or 'mask' in arrays:
    raise ValueError(
      f'{split} has the arrays {", ".join(map(str, arrays)) or "(none)"}. It '
      "needs 'image', and must not have 'mask', which marks padding rows"
    )
  found = {}
  for name, x in arrays.items():
    x = conversion.to_numpy(x, f'{split}: {name}')
    found[name] = x if name == 'image' else conversion.narrow(x, name)
  image_arrays.check_images(found['image'], f'{split}: image')
  lengths = {name: len(x) if x.ndim else None for name, x in found.items()}
  if len(set(lengths.values())) > 1 or not len(found['image']):
    raise ValueError(
      f'{split} has arrays with '
      + ', '.join(f'{n} rows ({name})' for name, n in lengths.items())
      + '. All arrays of a split need the same number of rows, at least one'
    )
  if 'label' in found:
    classes.check_label_array(found['label'], f'{split}: label')
  return found


def _check_alike(train, arrays, split):
  """Raises ValueError unless a split has the arrays of the training split."""
  if train.keys() != arrays.keys():
    missing = 'label' in train and 'label' not in arrays
    raise ValueError(
      (f'{split} has no labels: it ' if missing else f'{split} ')
      + f'has the arrays {", ".join(arrays)}, but the training split has '
      f'{", ".join(train)}. Give the same names'
    )
  for name, x in arrays.items():
    kind, expected = (
      (
        ('integer' if y.dtype.kind in 'iu' else y.dtype.name, y.shape[1:])
        for y in (x, train[name])
      )
      if name != 'image'
      else (None, None)
    )
    if kind != expected:
      raise ValueError(
        f'{split}: {name} has rows of {kind[0]} {list(kind[1])}, but the '
        f'training split has rows of {expected[0]} {list(expected[1])}. Give '
        'rows of the same shape and type'
      )


# --- sources -----------------------------------------------------------------


def _in_255(read, low, high):
  """Returns a `read` whose float pixels are scaled from low…high to 0…255."""

  def scaled(index):
    example = read(index)
    pixels = tf.cast(example['image'], tf.float32)
    return {**example, 'image': (pixels - low) * (255 / (high - low))}

  return scaled
