"""A folder of images whose sub-folders are the classes."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from vit_jax.data import class_names
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import folder_layout
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.image_files import image_kinds
from vit_jax.files import regular_files

_WORDS = {'train': 'training', 'validation': 'validation', 'test': 'test'}
CLASS_FILES = ('classes.txt', 'labels.txt')


def list_images(folder: str, settings: DataSettings) -> listing.Listing:
  """Returns the images of a folder, without held-out images.

  Args:
    folder: path of the folder.
    settings: `DataSettings`.

  Raises:
    ValueError: the folder cannot be used for training.
  """
  layout = folder_layout.find(folder, settings)
  hidden, unread = layout.skipped.pop('hidden folders', []), []
  parts = {
    part: _read(classes, hidden, unread)
    for part, classes in layout.parts.items()
  }
  train = layout.names.get('train')
  if settings.train_split == settings.test_split or (
    train and train == layout.names.get('test')
  ):
    image_folder.keep_each_once([parts['train']], folder)
    parts['test'] = parts['train']
  else:
    image_folder.keep_each_once(list(parts.values()), folder)
  found = listing.Listing(folder, {}, (), layout.skipped, layout.notes)
  found.skip('hidden folders', hidden)
  image_folder.skip_unread(found, unread)
  _note_unlabelled(found, layout)
  shown = {part: f'{name}/' for part, name in layout.names.items()}
  choose_evaluation(found, parts, shown, settings, _paths_of)
  names = sorted(parts['train'])
  names = _ordered(found, layout.root, names)
  _check_classes(found, parts, names)
  index_of = {name: i for i, name in enumerate(names)}
  for part, classes in parts.items():
    paths = [path for name in names for path in classes.get(name, [])]
    labels = [index_of[name] for name in names for _ in classes.get(name, [])]
    found.parts[part] = listing.Part(paths, np.array(labels, np.int64))
  found.class_names = class_names.readable(names)
  if found.class_names != tuple(names):
    found.notes.append(
      'the folders are named by WordNet ids, so the class names are those of '
      f'ImageNet: {listing.some(found.class_names)}'
    )
  return found


def _paths_of(classes):
  return [path for paths in classes.values() for path in paths]


def _read(classes, hidden, unread):
  """Returns {class: sorted image paths} of the folders of a part."""
  found = {}
  for name, folder in classes:
    paths = image_folder.images_below(folder, hidden, unread)
    found.setdefault(listing.normal(name), []).extend(paths)
  return dict(sorted(found.items()))


def choose_evaluation(
  found: listing.Listing,
  parts: dict[str, Any],
  names: Mapping[str, str],
  settings: DataSettings,
  paths_of: Callable,
) -> None:
  """Decides what the parts are used for, and adds notes about them.

  Without a test split, the validation split is the test split. If settings
  choose held-out images or no validation, the validation split is skipped.

  Args:
    found: the listing that gets the notes.
    parts: {part: images}, changed in place.
    names: {part: shown name}.
    settings: `DataSettings`.
    paths_of: images of a part -> their paths.
  """
  uses = {part: f'{_WORDS[part]} images: {names[part]}' for part in names}
  explicit = isinstance(settings.validation, str) and settings.validation
  if 'validation' in parts and not explicit:
    if 'test' not in parts:
      parts['test'] = parts.pop('validation')
      uses['validation'] = (
        f'test images: {names["validation"]}, because there is no other test '
        'split. Every evaluation reads them; config.validation=0.1 holds out '
        'training images to choose settings'
      )
    elif settings.validation != '':
      found.skip(
        f'validation split, because of config.validation={settings.validation}',
        paths_of(parts.pop('validation')),
      )
      del uses['validation']
    else:
      uses['test'] += (
        ', read once at the end. Earlier evaluations use the validation images '
        '(config.validation=0 ignores them)'
      )
  if uses:
    found.notes.append('; '.join(uses[part] for part in _WORDS if part in uses))


def _note_unlabelled(found, layout):
  for part, path in layout.unlabelled.items():
    found.notes.append(
      f'the images in {listing.key_of(path, found.folder)} are in no class, so '
      f'they are not used as {part} images. `python -m vit_jax predict RUN '
      f'{path}` classifies them'
    )


def _ordered(found, root, names: Sequence[str]) -> list[str]:
  """Returns the classes by name, or in the order of a file in the folder.

  Raises:
    ValueError: the file lists only some of the classes.
  """
  for path in class_files(root):
    listed = read_class_file(path)
    known = [name for name in dict.fromkeys(listed) if name in set(names)]
    check_class_file(found, path, names, listed)
    if not known:
      continue
    others = [name for name in listed if name not in known]
    found.notes.append(
      f'the classes are in the order of {os.path.basename(path)}: '
      f'{listing.some(known)}'
      + (f'. It also lists {listing.some(others)}' if others else '')
    )
    return known
  return list(names)


def class_files(folder: str) -> list[str]:
  """Returns the files in a folder that can list its classes."""
  paths = [os.path.join(folder, name) for name in CLASS_FILES]
  return list(filter(os.path.isfile, paths))


def check_class_file(
  found: listing.Listing, path: str, names: Sequence[str], listed: Sequence[str]
) -> None:
  """Adds a note if a file lists no class.

  Args:
    found: the listing that gets the note.
    path: a file of `class_files`.
    names: names of all classes.
    listed: names in the file.

  Raises:
    ValueError: the file lists only some of the classes.
  """
  missing = [name for name in names if name not in set(listed)]
  if len(missing) == len(names):
    name = os.path.basename(path)
    found.notes.append(f'{name} lists none of the classes, so it is not used')
  elif missing:
    raise ValueError(
      f'{path} lists {len(names) - len(missing)} of the classes, but not '
      f'{listing.some(missing)}. Add these classes to the file, or remove the '
      'file to order all classes by name'
    )


def read_class_file(path: str) -> list[str]:
  """Returns the class names of a text file, one for each line.

  Raises:
    ValueError: the file is not text in UTF-8.
  """
  regular_files.check(path)
  try:
    with open(path, encoding='utf-8-sig') as file:
      return [listing.normal(line.strip()) for line in file if line.strip()]
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path} cannot be read as UTF-8 ({error}). Save it as UTF-8, or remove '
      'it'
    ) from error


def _check_classes(found, parts, names):
  """Raises ValueError if the classes cannot be used for training."""
  folder, train = found.folder, parts['train']
  if not any(train.values()):
    raise ValueError(
      f'no images in {folder}. It must contain {{train,test}}/{{class}}/image '
      'or {class}/image, or a table of labels. The names of images must end in '
      f'{", ".join(image_kinds.SUFFIXES)}.'
    )
  empty = [name for name in names if not train[name]]
  if empty:
    raise ValueError(
      f'{folder}: no training images in class {", ".join(empty)}. Add images, '
      'or remove the folder of the class.'
    )
  if len(names) < 2:
    raise ValueError(
      f'{folder}: only one class, {names[0]!r}. Training needs at '
      'least two classes. Put the images of each class into a separate folder.'
    )
  for part in parts.keys() - {'train'}:
    unknown = sorted(
      name for name, paths in parts[part].items() if name not in names
    )
    if unknown:
      raise ValueError(
        f'{folder}: the {part} split has classes that are not in the training '
        f'split: {", ".join(unknown)}. Remove them or add training images.'
      )
    if not any(parts[part].values()):
      raise ValueError(f'{folder}: no images in the {part} split. Add some.')
