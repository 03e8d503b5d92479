"""A dataset in one .npz file: `config.dataset=digits.npz`."""

import dataclasses
import os

from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.given import arrays
from vit_jax.data.given import encoded_images
from vit_jax.data.image_files import decoding
from vit_jax.files import npz_files

_SPLITS = {'train': '', 'test': 'test_', 'validation': 'validation_'}
_NAMES = tuple(
  f'{start}{name}' for start in _SPLITS.values() for name in ('image', 'label')
)
_OFFSETS = tuple(f'{start}image_offsets' for start in _SPLITS.values())
_OTHERS = (*_OFFSETS, 'class_names', 'value_range')


def load(settings: DataSettings) -> arrays.Arrays:
  """Returns the arrays of a file, which has the names `_NAMES`.

  The arrays `image` and `label` are required. `class_names` and `value_range`
  are as in `from_arrays`. With `image_offsets`, the images are encoded, as
  `encoded_images` describes.

  Args:
    settings: `dataset` is the path of the file. `exif` and `background` are
      for encoded images.

  Raises:
    ValueError: the file cannot be read, or its arrays cannot be used.
  """
  examples.check_default_splits(settings)
  path = os.path.expanduser(settings.dataset)
  try:
    found = npz_files.read(path)
  except (OSError, ValueError) as error:
    raise ValueError(
      f'config.dataset={path!r} cannot be read ({error}). Use a file written '
      'by np.savez, with arrays of numbers and texts'
    ) from error
  unknown = sorted(found.keys() - {*_NAMES, *_OTHERS})
  missing = [
    f'{start}{name}'
    for start in _SPLITS.values()
    for name, others in (
      ('image', ('label', 'image_offsets')),
      ('label', ('image',)),
    )
    if f'{start}{name}' not in found
    and (not start or any(f'{start}{other}' in found for other in others))
  ]
  if unknown or missing:
    raise ValueError(
      f'config.dataset={path!r} has the arrays {", ".join(found) or "(none)"}. '
      + (f'It lacks {", ".join(missing)}. ' if missing else '')
      + (f'It must not have {", ".join(unknown)}. ' if unknown else '')
      + f'Use the names {", ".join((*_NAMES, *_OTHERS))}, but only image '
      'and label are required'
    )
  value_range = found.get('value_range')
  try:
    splits = {
      split: (_pixels(found, f'{start}image', settings), found[f'{start}label'])
      for split, start in _SPLITS.items()
      if f'{start}image' in found
    }
    given = arrays.from_arrays(
      *splits.pop('train'),
      **splits,
      class_names=found.get('class_names'),
      value_range=value_range if value_range is None else tuple(value_range),
    )
  except ValueError as error:
    raise ValueError(f'config.dataset={path!r}: {error}') from error
  return dataclasses.replace(given, name=path)


def _pixels(found, name, settings):
  """Returns the images of a file; those with offsets are decoded."""
  offsets = found.get(f'{name}_offsets')
  if offsets is None:
    return found[name]
  how = decoding.resolve(settings.exif, settings.background)
  return encoded_images.decode(found[name], offsets, name, how)
