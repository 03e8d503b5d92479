"""Loads examples from a folder of images, from TFDS, or the bundled digits."""

import hashlib
import os

import numpy as np

from vit_jax.data import examples
from vit_jax.data import image_folder
from vit_jax.data import tensorflow as tf
from vit_jax.data import tfds_source
from vit_jax.data.data_settings import DataSettings

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
    return _digits(settings)
  if settings.dataset in ('given arrays', 'given batches'):
    raise ValueError(
      f'config.dataset={settings.dataset!r}: the run was trained on data from '
      'Python, which are not stored. Give them again with data=…, or use '
      'another dataset'
    )
  folder = os.path.expanduser(settings.dataset)
  if os.path.isdir(folder):
    return _folder_sources(settings, folder, check_images)
  if os.path.isabs(folder) or folder.startswith('.'):
    raise ValueError(
      f'config.dataset={settings.dataset!r}: no such folder. Use the path of a '
      'folder of images, or the name of a dataset.'
    )
  return tfds_source.get_sources(settings, part, num_parts)


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


# --- a folder of images ------------------------------------------------------


def _folder_sources(settings, folder, check_images):
  def find(test_split):
    return image_folder.find_images(
      folder,
      train_split=settings.train_split,
      test_split=test_split,
      max_bad_images=settings.max_bad_images,
      check_images=check_images,
    )

  parts = dict(zip(('train', 'test'), find(settings.test_split), strict=True))
  if isinstance(settings.validation, str) and settings.validation:
    if not os.path.isdir(os.path.join(folder, settings.validation)):
      raise ValueError(
        f'config.validation={settings.validation!r}: there is no such folder '
        f'in {folder}. Use the name of an existing sub-folder, a fraction, or '
        'a number of training images.'
      )
    parts['validation'] = find(settings.validation)[1]
  names = tuple(parts['train'])
  by_split = {
    name: _folder_source(part, names, folder) for name, part in parts.items()
  }
  if settings.validation and 'validation' not in by_split:
    by_split['train'], by_split['validation'] = examples.hold_out(
      by_split['train'], settings.validation, _keys(parts['train'], folder)
    )
  return by_split


def _keys(part, folder):
  """Returns the path of each image of a part, relative to `folder`."""
  return [
    os.path.relpath(path, folder).replace(os.sep, '/')
    for files in part.values()
    for path in files
  ]


def _folder_source(part, names, folder):
  label_of = {name: label for label, name in enumerate(names)}
  paths = [os.fsencode(path) for files in part.values() for path in files]
  labels = np.array(
    [label_of[name] for name, files in part.items() for _ in files], np.int64
  )
  read_path = examples.read_from(paths, labels)

  def read(index):
    example = read_path(index)
    return {**example, 'image': tf.io.read_file(example['image'])}

  digest = hashlib.sha256(
    b'\0'.join(os.path.relpath(path, os.fsencode(folder)) for path in paths)
  )
  return examples.Source(
    len(paths), names, read=read, fingerprint=digest.hexdigest(), labels=labels
  )
