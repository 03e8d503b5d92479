"""From a folder of images to the sources of a run."""

from collections.abc import Sequence
import dataclasses
import os

import numpy as np

from vit_jax import console
from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import class_folders
from vit_jax.data.folders import findings
from vit_jax.data.folders import findings_text
from vit_jax.data.folders import hold_out
from vit_jax.data.folders import listing
from vit_jax.data.folders import unlabelled
from vit_jax.data.folders.labels import label_table
from vit_jax.data.folders.labels import table_listing
from vit_jax.data.folders.labels import table_rows
from vit_jax.data.image_files import image_checks


def list_images(
  settings: DataSettings, folder: str, check_images: bool = True
) -> listing.Listing:
  """Returns the images of a folder: parts, labels, and what is skipped.

  Without a test split, a fixed fraction of the images is held out for testing.

  Args:
    settings: `DataSettings`.
    folder: path of the folder.
    check_images: whether to decode all images that no run has decoded before.
      Images that cannot be decoded are skipped.

  Raises:
    ValueError: the folder cannot be used for training.
  """
  found = _read_labels(settings, folder)
  check_names(folder, found.class_names)
  _check_task(found, settings)
  # The test images are chosen before damaged images are removed: a repair
  # moves no image. Validation images are counted after that.
  hold_out.complete(found, dataclasses.replace(settings, validation=''))
  if check_images:
    found.checked = image_checks.check(
      found.paths, folder, settings.max_bad_images
    )
    _remove(found, found.checked.undecodable)
  hold_out.complete(found, settings)
  return found


def check_names(folder: str, class_names: Sequence[str]) -> None:
  """Raises ValueError if the name of a class is not UTF-8."""
  for name in class_names:
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f'{folder}: the name of the class {name!r} is not UTF-8. Rename the '
        'folder. If the name is right, set PYTHONUTF8=1'
      ) from error


def _read_labels(settings, folder):
  """Returns the images with labels from a table or from folders."""
  of_table = [n for n in data_settings.OF_TABLES if getattr(settings, n)]
  if settings.labels == 'none':
    settings.check_unused(of_table, 'config.labels=none uses no table')
    return unlabelled.list_images(folder, settings)
  if settings.labels == 'folders':
    settings.check_unused(of_table, 'config.labels=folders uses no table')
    return class_folders.list_images(folder, settings)
  if settings.labels:
    path = _find_table(settings.labels, folder)
    return table_listing.list_images(folder, [path], settings)
  tables = label_table.find(folder)
  if not tables:
    settings.check_unused(of_table, f'{folder} has no table of labels')
    return class_folders.list_images(folder, settings)
  if of_table:
    return _read_tables(tables, folder, settings)
  by_folder = by_table = None
  try:
    by_folder = class_folders.list_images(folder, settings)
  except ValueError as error:
    folder_error = error
  try:
    by_table = _read_tables(tables, folder, settings)
  except ValueError as error:
    if not by_folder:
      if isinstance(error, table_rows.NotATable):
        raise ValueError(f'{error}. Without a table: {folder_error}') from None
      raise
    reason = str(error)
  if by_folder and by_table:
    return _choose(by_folder, by_table)
  if by_folder:
    by_folder.notes.append(f'the labels are the names of folders. {reason}')
  return by_folder or by_table


def _check_task(found, settings):
  """Raises ValueError if a task needs a table, and the folder has none."""
  needed = {
    'multi_label': 'the classes of each image',
    'regression': 'a number for each image',
  }
  if not found.table and settings.task in needed:
    raise ValueError(
      f'config.task={settings.task} needs {needed[settings.task]}, but the '
      f'names of the folders in {found.folder} give each image one class. Add '
      'a table of labels, such as labels.csv, or set config.labels to its path '
      '(docs/labels.md)'
    )


def _find_table(name, folder):
  """Returns the path of the table `config.labels`."""
  for path in (os.path.expanduser(name), os.path.join(folder, name)):
    if os.path.isfile(path):
      return path
  raise ValueError(
    f'config.labels={name!r}: there is no such file in the current folder or '
    f'in {folder}. Use the path of a table, or config.labels=folders'
  )


def _read_tables(tables, folder, settings):
  """Returns the listing of the tables of a folder.

  Raises:
    ValueError: several tables have labels of all parts.
  """
  whole = [t for t in tables if not label_table.part_of_table(t, folder)]
  parts = [t for t in tables if t not in whole]
  readings, error = [], None
  for group in [[path] for path in whole] + [parts] * bool(parts):
    try:
      found = table_listing.list_images(folder, group, settings)
      readings.append((group[0], found))
    except table_rows.NotATable as not_a_table:
      error = error or not_a_table
  if len(readings) > 1:
    names = [os.path.relpath(path, folder) for path, _ in readings]
    raise ValueError(
      f'{folder}: the labels can be in {" or ".join(names)}. Choose one: '
      f'config.labels={names[0]}'
    )
  if not readings:
    raise error
  return readings[0][1]


def _name_numbers(by_folder, by_table):
  """Names the classes of a table of numbers as the folders of the images.

  It changes nothing unless each folder has exactly one number.
  """
  names = by_table.class_names
  if not names or not all(name.isdecimal() for name in names):
    return
  folder_of = {
    path: by_folder.class_names[label]
    for part in by_folder.parts.values()
    for path, label in zip(part.paths, part.labels, strict=True)
  }
  pairs = {
    (label, folder_of.get(path))
    for part in by_table.parts.values()
    if part.labels.ndim == 1
    for path, label in zip(part.paths, part.labels.tolist(), strict=True)
  }
  folders = dict(pairs)
  if len(pairs) == len(names) == len(set(folders.values()) - {None}):
    by_table.class_names = tuple(folders[i] for i in range(len(names)))
    by_table.notes.append('the class numbers are named after the folders')


def _choose(by_folder, by_table):
  """Returns one of two readings of a folder.

  Raises:
    ValueError: they give an image different labels.
  """
  _name_numbers(by_folder, by_table)
  names = by_folder.class_names, by_table.class_names
  first, second = (
    {
      path: own[label] if own and np.ndim(label) == 0 else None
      for part in found.parts.values()
      for path, label in zip(part.paths, part.labels, strict=True)
    }
    for found, own in zip((by_folder, by_table), names, strict=True)
  )
  table = os.path.relpath(by_table.table, by_table.folder)
  if any(first.get(path) != label for path, label in second.items()):
    raise ValueError(
      f'{by_table.folder}: the labels can be the names of the folders '
      f'({listing.some(by_folder.class_names)}) or in {table} '
      f'({listing.some(by_table.class_names)}). Choose: config.labels=folders '
      f'or config.labels={table}'
    )
  return by_table


def _remove(found, bad):
  """Skips images that cannot be decoded.

  Raises:
    ValueError: a split has no images, or a class has no training images.
  """
  found.skip('images that cannot be decoded', sorted(bad))
  for name, part in found.parts.items():
    if not len(part.paths):
      raise ValueError(
        f'{found.folder}: the {name} split has no images. Add a second image '
        f'to a class, so that one is held out, or add a folder {name}/ with '
        'images of the same classes.'
      )
    good = [i for i, path in enumerate(part.paths) if path not in bad]
    found.parts[name] = part.take(good)
    if not good:
      raise ValueError(
        f'{found.folder}: no images in the {name} split can be decoded. Add '
        'some.'
      )
  labels = found.parts['train'].labels
  if found.class_names and labels.ndim == 1:
    counts = np.bincount(labels, minlength=len(found.class_names))
    empty = [found.class_names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
      raise ValueError(
        f'{found.folder}: no training images in class {", ".join(empty)} can '
        'be decoded. Add images, or remove the folder of the class.'
      )


def get_sources(
  settings: DataSettings, folder: str, check_images: bool = True
) -> dict[str, examples.Source]:
  """Returns {split: `examples.Source`}; see `list_images`."""
  found = list_images(settings, folder, check_images)
  for line in found.lines(shown=('images that cannot be decoded',)):
    console.log_info(line)
  by_split = {name: _make_source(found, name) for name in found.parts}
  if check_images:
    content = findings.find(found)
    for line in findings_text.summary(content):
      console.log_info(line)
    by_split['train'] = dataclasses.replace(
      by_split['train'], findings=findings.to_json(content)
    )
  return by_split


def _make_source(found, name):
  part = found.parts[name]
  read_path = examples.read_from(
    [os.fsencode(path) for path in part.paths], part.labels
  )

  def read(index):
    example = read_path(index)
    return {**example, 'image': tf.io.read_file(example['image'])}

  return examples.Source(
    len(part.paths),
    found.class_names,
    read=read,
    fingerprint=found.fingerprint(name),
    labels=part.labels,
    names=tuple(part.paths),
  )
