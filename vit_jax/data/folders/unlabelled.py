"""A folder of images without labels, at any depth."""

import os

import numpy as np

from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import class_folders
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names
from vit_jax.data.image_files import image_kinds


def list_images(folder: str, settings: DataSettings) -> listing.Listing:
  """Returns the images of a folder, without held-out images.

  If a sub-folder has the usual name of a training split, such as `train`, the
  splits are sub-folders. Otherwise, all images are training images.

  Args:
    folder: path of the folder.
    settings: `train_split`, `test_split` and `validation` name sub-folders, if
      they are not the defaults.

  Raises:
    ValueError: there are no training images, or a split is missing.
  """
  split_names.check_settings(settings)
  found = listing.Listing(folder, {}, ())
  names = _find_parts(folder, settings)
  hidden, unread = [], []
  inner = names or {'train': ''}
  parts = {
    part: {'': image_folder.images_below(_join(folder, name), hidden, unread)}
    for part, name in inner.items()
  }
  image_folder.keep_each_once(list(parts.values()), folder)
  if names:
    below = {path for part in parts.values() for path in part['']}
    others = image_folder.images_below(folder)
    found.skip(
      'images outside of the splits', [x for x in others if x not in below]
    )
  found.skip('hidden folders', hidden)
  image_folder.skip_unread(found, unread)
  shown = {part: f'{name}/' for part, name in names.items()}
  class_folders.choose_evaluation(
    found, parts, shown, settings, lambda part: part['']
  )
  for part, paths in parts.items():
    if not paths['']:
      raise ValueError(
        f'no images in {_join(folder, inner.get(part, ""))}, the {part} split. '
        f'The names of images must end in {", ".join(image_kinds.SUFFIXES)}'
      )
    found.parts[part] = listing.Part(
      paths[''], np.zeros((len(paths['']), 0), np.float32)
    )
  return found


def _join(folder, name):
  return os.path.join(folder, name) if name else folder


def _find_parts(folder, settings):
  """Returns {part: sub-folder}; {} if all images are training images.

  Raises:
    ValueError: a setting names no sub-folder, or two sub-folders are one split.
  """
  chosen = {}
  for part, name, default in (
    ('train', settings.train_split, 'train'),
    ('test', settings.test_split, 'test'),
    ('validation', settings.validation, ''),
  ):
    if isinstance(name, str) and name != default:
      if not os.path.isdir(os.path.join(folder, name)):
        setting = part if part == 'validation' else f'{part}_split'
        raise ValueError(
          f'config.{setting}={name!r}: {folder} has no such sub-folder'
        )
      chosen[part] = name
  usual = {}
  for name in image_folder.subfolders(folder):
    part = split_names.part_of(name)
    if part and part not in chosen and name not in chosen.values():
      if part in usual:
        raise ValueError(
          f'{folder}: {usual[part]} and {name} can both be the {part} split. '
          'Rename one of them'
        )
      usual[part] = name
  if 'train' not in {**usual, **chosen}:
    if chosen:
      raise ValueError(
        f'{folder} has no training split. Name it: config.train_split=FOLDER'
      )
    return {}
  return {**usual, **chosen}
