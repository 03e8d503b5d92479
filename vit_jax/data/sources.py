"""Loads examples from a folder of images, from TFDS, or the bundled digits."""

import os

import numpy as np

from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import archives
from vit_jax.data.folders import folder_source
from vit_jax.data.streams import tfds_source
from vit_jax.data.streams import web_dataset

_DIGITS_TEST_FRACTION = 0.2


def get_sources(
  settings: DataSettings,
  part: int = 0,
  num_parts: int = 1,
  check_images: bool = True,
) -> dict[str, examples.Source]:
  """Returns the splits of the dataset `settings.dataset`.

  Args:
    settings: `DataSettings`.
    part: index of the shard that a streamed source yields.
    num_parts: number of shards.
    check_images: whether to decode every image to find undecodable images.

  Returns:
    {split: `examples.Source`}. The splits are 'train', 'test' and, if
    `settings.validation` is set, 'validation'.

  Raises:
    ValueError: the dataset cannot be loaded or cannot be used for training.
  """
  if settings.dataset == 'digits':
    _check_no_folder('digits')
    settings.check_unused(data_settings.OF_FOLDERS, "'digits' is no folder")
    return _digits(settings)
  if settings.dataset in ('given arrays', 'given batches'):
    raise ValueError(
      f'config.dataset={settings.dataset!r}: the run was trained on data from '
      'Python, which are not stored. Give them again with data=…, or use '
      'another dataset'
    )
  folder = os.path.expanduser(settings.dataset)
  shards = web_dataset.find_shards(settings.dataset)
  if shards:
    return web_dataset.get_sources(settings, shards, part, num_parts)
  if os.path.isdir(folder):
    return folder_source.get_sources(settings, folder, check_images)
  archives.check_not_a_file(settings.dataset)
  settings.check_unused(
    data_settings.OF_FOLDERS,
    f'config.dataset={settings.dataset!r} is not a folder of images',
  )
  return tfds_source.get_sources(settings, part, num_parts)


def _check_no_folder(name):
  """Raises ValueError if a built-in dataset and a folder have the same name."""
  if os.path.isdir(name):
    raise ValueError(
      f'config.dataset={name!r} is the name of a built-in dataset, and of a '
      f'folder in {os.getcwd()}. For the folder, use config.dataset=./{name} '
      'For the built-in dataset, rename the folder or start in another folder.'
    )


# --- the digits bundled with scikit-learn ------------------------------------


def _digits(settings):
  """Loads 1 797 digits of 8 × 8 pixels; the test split is a fixed fifth."""
  from sklearn import datasets

  examples.check_default_splits(settings)
  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  in_test = np.array(
    [
      examples.hash_fraction(str(i)) < _DIGITS_TEST_FRACTION
      for i in range(len(images))
    ]
  )
  names = tuple(map(str, digits.target_names))
  train, test = (
    examples.Source(
      int(part.sum()),
      names,
      read=examples.read_from(images[part], digits.target[part]),
      labels=digits.target[part],
    )
    for part in (~in_test, in_test)
  )
  if not settings.validation:
    return {'train': train, 'test': test}
  if isinstance(settings.validation, str):
    raise ValueError(
      f"config.validation={settings.validation!r} is not a split of 'digits'. "
      'Use a fraction or a number of training images.'
    )
  train, validation = examples.hold_out(
    train, settings.validation, np.flatnonzero(~in_test)
  )
  return {'train': train, 'test': test, 'validation': validation}
