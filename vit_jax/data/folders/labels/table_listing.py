"""The images of a folder whose labels are in a table."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

from vit_jax.data import class_names
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import class_folders
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names
from vit_jax.data.folders.labels import label_cells
from vit_jax.data.folders.labels import label_table
from vit_jax.data.folders.labels import table_files
from vit_jax.data.folders.labels import table_rows


def list_images(
  folder: str, tables: Sequence[str], settings: DataSettings
) -> listing.Listing:
  """Returns the images that the rows of tables name, with their labels.

  Args:
    folder: path of the folder.
    tables: paths of tables; each can have one part or several parts.
    settings: `DataSettings`.

  Raises:
    NotATable: the tables have no labels of images in the folder.
    ValueError: the tables cannot be used for training.
  """
  split_names.check_settings(settings)
  hidden, unread = [], []
  paths = image_folder.images_below(folder, hidden, unread)
  files = table_files.Files(paths, folder)
  found = listing.Listing(folder, {}, (), table=tables[0])
  found.skip('hidden folders', hidden)
  image_folder.skip_unread(found, unread)
  rows, without_labels = table_rows.Rows(), []
  for path in tables:
    table = label_table.read(path, folder)
    read = table_rows.read_list if table.is_list else table_rows.read_table
    if not read(table, files, settings, rows, found):
      without_labels.append(table)
  if not rows.paths:
    raise _no_rows(folder, tables, without_labels)
  for table in without_labels:
    found.notes.append(f'{table.name} has no labels and is not used')
  unused = {table.path for table in without_labels}
  names = ', '.join(
    os.path.relpath(path, folder) for path in tables if path not in unused
  )
  labels = 'labels are the folders of the files'
  if rows.columns != ('folder of the file',):
    labels = f'labels are the column {", ".join(rows.columns[:5])}'
  found.notes.insert(0, f'table {names}: {labels}')
  _make_parts(found, rows, settings)
  _skip_others(found, files)
  return found


def _no_rows(folder, tables, without_labels):
  names = ', '.join(tables)
  if without_labels:
    table = without_labels[0]
    return table_rows.NotATable(
      f'{names}: no column of labels in '
      f'{listing.some(table.columns, count=8)}. Choose one: '
      'config.label_column=NAME'
    )
  return table_rows.NotATable(f'{names}: the rows name no image in {folder}')


def _make_parts(found, rows, settings):
  """Fills the parts, the class names and the groups of a listing."""
  where = os.path.relpath(found.table, found.folder)
  names, labels = label_cells.parse(rows.cells, rows.columns, settings, where)
  names, labels = use_class_file(found, names, labels)
  merged = _merge(found, rows, labels, settings.task)
  by_part = {}
  for path, (label, part, group) in merged.items():
    by_part.setdefault(part, {})[path] = label
    if settings.group_by and group:
      found.groups[path] = group
  if set(by_part) == {''}:
    by_part = _parts_of_folders(found, by_part[''])
  elif '' in by_part:
    by_part.setdefault('train', {}).update(by_part.pop(''))
  by_part = chosen_parts(found, by_part, settings)
  shown = {part: part for part in by_part} if len(by_part) > 1 else {}
  class_folders.choose_evaluation(found, by_part, shown, settings, list)
  check(found, by_part, names, settings)
  for part in ('train', 'validation', 'test'):
    if part in by_part:
      own = dict(sorted(by_part[part].items()))
      array = label_cells.to_array(list(own.values()), names, settings.task)
      found.parts[part] = listing.Part(list(own), array)
  found.class_names = class_names.readable(names)


def chosen_parts(
  found: listing.Listing, by_part: dict[str, Any], settings: DataSettings
) -> dict[str, Any]:
  """Returns the parts that settings choose, under their new names.

  Raises:
    ValueError: a setting names a part that the table does not have.
  """
  if settings.train_split == settings.test_split and set(by_part) == {'train'}:
    return {**by_part, 'test': by_part['train']}
  chosen = {}
  for part, value in (
    ('train', settings.train_split),
    ('test', settings.test_split),
    ('validation', settings.validation),
  ):
    if not isinstance(value, str) or value in ('', part):
      continue
    old = split_names.part_of(value)
    if old not in by_part:
      setting = f'{part}_split' if part != 'validation' else part
      raise ValueError(
        f'config.{setting}={value!r}: {found.table} has no such part, only '
        f'{", ".join(by_part)}. Use one of them'
      )
    chosen[part] = by_part[old]
  taken = [id(images) for images in chosen.values()]
  return chosen | {
    part: images
    for part, images in by_part.items()
    if part not in chosen and (id(images) not in taken or part == 'train')
  }


def use_class_file(
  found: listing.Listing, names: Sequence[str], labels: Sequence
) -> tuple[Sequence[str], Sequence]:
  """Returns (class names, labels) in the order of a file in the folder.

  Raises:
    ValueError: the file lists only some of the classes.
  """
  for path in class_folders.class_files(found.folder) if names else ():
    listed = class_folders.read_class_file(path)
    names, labels, used = label_cells.with_names(names, labels, listed)
    if used:
      found.notes.append(
        f'the classes are in the order of {os.path.basename(path)}: '
        f'{listing.some(names)}'
      )
      break
    class_folders.check_class_file(found, path, names, listed)
  return names, labels


def _merge(found, rows, labels, task):
  """Returns {path: (label, part, group)}; an image can have several rows.

  Raises:
    ValueError: the rows of one image contradict each other.
  """
  merged, repeated = {}, []
  for path, label, part, group in zip(
    rows.paths, labels, rows.parts, rows.groups, strict=True
  ):
    if path not in merged:
      merged[path] = label, part, group
      continue
    before, *others = merged[path]
    if others != [part, group]:
      raise ValueError(
        f'{found.table}: {found.key(path)} has several rows with different '
        f'parts or groups: {others} and {[part, group]}. Keep one of them'
      )
    if label != before and task != 'multi_label':
      raise ValueError(
        f'{found.table}: {found.key(path)} has several rows with different '
        f'labels: {before} and {label}. Keep one row for each image. For '
        'several classes per image, use config.task=multi_label'
      )
    repeated.append(path)
    if task == 'multi_label':
      merged[path] = [*before, *(x for x in label if x not in before)], *others
  found.skip('repeated rows', repeated)
  return merged


def _parts_of_folders(found, images):
  """Returns {part: images}, if the images are in folders of parts."""
  by_part = {}
  for path, label in images.items():
    part = table_files.top_part(path, found.folder)
    by_part.setdefault(part, {})[path] = label
  if None in by_part or 'train' not in by_part:
    return {'train': images}
  return by_part


def check(
  found: listing.Listing,
  by_part: Mapping[str, Mapping[str, Sequence]],
  names: Sequence[str],
  settings: DataSettings,
) -> None:
  """Raises ValueError if the labels cannot be used for training."""
  if 'train' not in by_part:
    raise ValueError(
      f'{found.table} has no training images, only {", ".join(by_part)}. Add '
      'a table of training images, such as train.csv'
    )
  if settings.task == 'regression':
    return
  if len(names) < 2 and settings.task != 'multi_label':
    raise ValueError(
      f'{found.table}: only one class, {names}. Training needs at least two. '
      'Choose another column with config.label_column'
    )
  trained = {name for label in by_part['train'].values() for name in label}
  missing = [name for name in names if name not in trained]
  if missing and settings.task != 'multi_label':
    raise ValueError(
      f'{found.table}: no training images in class {listing.some(missing)}. '
      'Add images, or remove the rows of this class'
    )


def _skip_others(found, files):
  """Skips images without a row, and whole folders of them by name."""
  used = {image_folder.identity(path) for path in found.paths}
  known = {path for paths in found.skipped.values() for path in paths}
  tops = {_top(path, found) for path in found.paths}
  others, folders = [], {}
  for path in files.paths:
    if path in known or image_folder.identity(path) in used:
      continue
    top = _top(path, found)
    if top in tops or not split_names.part_of(top):
      others.append(path)
    else:
      folders.setdefault(top, []).append(path)
  found.skip('images without a row', others)
  for top, paths in folders.items():
    place = os.path.join(found.folder, top)
    found.notes.append(
      f'{len(paths)} images in {top} have no labels, so they are not used. '
      f'`python -m vit_jax predict RUN {place}` classifies them'
    )


def _top(path, found):
  first, *rest = found.key(path).split('/')
  return first if rest else ''
