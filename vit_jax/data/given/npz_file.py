"""A dataset in one .npz file: `config.dataset=digits.npz`."""

import dataclasses
import os
import zipfile

import numpy as np

from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.given import arrays

_SPLITS = {'train': '', 'test': 'test_', 'validation': 'validation_'}
_NAMES = tuple(
  f'{start}{name}' for start in _SPLITS.values() for name in ('image', 'label')
)
_OTHERS = ('class_names', 'value_range')


def load(settings: DataSettings) -> arrays.Arrays:
  """Returns the arrays of a file, which has the names `_NAMES`.

  The arrays `image` and `label` are required. `class_names` and `value_range`
  are as in `from_arrays`.

  Args:
    settings: `dataset` is the path of the file.

  Raises:
    ValueError: the file cannot be read, or its arrays cannot be used.
  """
  examples.check_default_splits(settings)
  path = os.path.expanduser(settings.dataset)
  try:
    with np.load(path, allow_pickle=False) as file:
      found = {name: file[name] for name in file.files}
  except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
    raise ValueError(
      f'config.dataset={path!r} cannot be read ({error}). Use a file written '
      'by np.savez, with arrays of numbers and texts'
    ) from error
  unknown = sorted(found.keys() - {*_NAMES, *_OTHERS})
  missing = [
    f'{start}{name}'
    for start in _SPLITS.values()
    for name, other in (('image', 'label'), ('label', 'image'))
    if f'{start}{name}' not in found
    and (not start or f'{start}{other}' in found)
  ]
  if unknown or missing:
    raise ValueError(
      f'config.dataset={path!r} has the arrays {", ".join(found) or "(none)"}. '
      + (f'It lacks {", ".join(missing)}. ' if missing else '')
      + (f'It must not have {", ".join(unknown)}. ' if unknown else '')
      + f'Use the names {", ".join((*_NAMES, *_OTHERS))}, but only image '
      'and label are required'
    )
  splits = {
    split: (found[f'{start}image'], found[f'{start}label'])
    for split, start in _SPLITS.items()
    if f'{start}image' in found
  }
  value_range = found.get('value_range')
  try:
    given = arrays.from_arrays(
      *splits.pop('train'),
      **splits,
      class_names=found.get('class_names'),
      value_range=value_range if value_range is None else tuple(value_range),
    )
  except ValueError as error:
    raise ValueError(f'config.dataset={path!r}: {error}') from error
  return dataclasses.replace(given, name=path)
