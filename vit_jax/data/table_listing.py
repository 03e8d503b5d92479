"""The images of a folder whose labels are in a table."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from vit_jax.data import class_folders
from vit_jax.data import class_names
from vit_jax.data import folder_layout
from vit_jax.data import image_folder
from vit_jax.data import label_cells
from vit_jax.data import label_columns
from vit_jax.data import label_table
from vit_jax.data import listing
from vit_jax.data import table_files
from vit_jax.data.data_settings import DataSettings


@dataclasses.dataclass
class _Rows:
  """The rows of one or several tables that name an image."""

  paths: list[str] = dataclasses.field(default_factory=list)
  cells: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
  parts: list[str] = dataclasses.field(default_factory=list)
  groups: list[str] = dataclasses.field(default_factory=list)
  columns: tuple[str, ...] = ()


class NotATable(ValueError):
  """A table has no labels of the images of a folder."""


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
  folder_layout.check_settings(settings)
  hidden = []
  files = table_files.Files(image_folder.images_below(folder, hidden), folder)
  found = listing.Listing(folder, {}, (), table=tables[0])
  found.leave_out('hidden folders', hidden)
  rows, without_labels = _Rows(), []
  for path in tables:
    table = label_table.read(path, folder)
    read = _read_list if table.is_list else _read_table
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
  _leave_out_others(found, files)
  return found


def _no_rows(folder, tables, without_labels):
  names = ', '.join(tables)
  if without_labels:
    table = without_labels[0]
    return NotATable(
      f'{names}: no column of labels in '
      f'{listing.some(table.columns, count=8)}. Choose one: '
      'config.label_column=NAME'
    )
  return NotATable(f'{names}: the rows name no image in {folder}')


def _read_table(table, files, settings, rows, found):
  """Adds the rows of a table; returns whether the table has labels."""
  table = _with_header(table, files, found)
  columns = label_columns.choose(table, settings)
  if not columns.labels:
    return False
  if rows.columns and rows.columns != columns.labels:
    raise ValueError(
      f'{table.path} has the labels {", ".join(columns.labels)}, but the other '
      f'table has {", ".join(rows.columns)}. Use the same columns'
    )
  parts = [table.part] * len(table.rows)
  if columns.part:
    parts = [
      folder_layout.part_of(cell) or '' for cell in table.column(columns.part)
    ]
    _leave_out_rows(found, 'rows without a part', table, parts)
  paths = _find_paths(table, columns.files, files, parts)
  _leave_out_rows(found, 'rows without a file', table, paths)
  cells = list(
    zip(
      *(map(listing.normal, table.column(n)) for n in columns.labels),
      strict=True,
    )
  )
  if settings.task != 'multi_label':
    complete = [all(row) or '' for row in cells]
    _leave_out_rows(found, 'rows without a label', table, complete)
  else:
    complete = [True] * len(cells)
  groups = table.column(columns.group) if columns.group else [''] * len(paths)
  for path, row, part, group, whole in zip(
    paths, cells, parts, groups, complete, strict=True
  ):
    if path and whole and not (columns.part and not part):
      rows.paths.append(path)
      rows.cells.append(row)
      rows.parts.append(part)
      rows.groups.append(group)
  rows.columns = columns.labels
  found.notes += columns.notes
  return True


def _with_header(table, files, found):
  """Returns a table with names of columns, if its first line names a file.

  Raises:
    ValueError: there are no names, and more than two columns.
  """
  if not any(files.find(name, '.', table.part) for name in table.columns):
    return table
  if len(table.columns) != 2:
    raise ValueError(
      f'{table.path}: the first line names a file, so the names of the columns '
      'are missing. Add a first line, such as file,label'
    )
  found.notes.append(f'{table.name} has no names of columns: file, label')
  return dataclasses.replace(
    table, columns=['file', 'label'], rows=[table.columns, *table.rows]
  )


def _leave_out_rows(found, reason, table, values):
  found.leave_out(
    f'{reason} in {table.name}',
    [
      os.path.join(found.folder, row[0] or f'row {i + 2}')
      for i, (row, value) in enumerate(zip(table.rows, values, strict=True))
      if not value
    ],
  )


def _find_paths(table, columns, files, parts):
  """Returns the path of the image of each row, or None.

  Raises:
    NotATable: no column names the files.
    ValueError: several columns name different files.
  """
  place = os.path.relpath(os.path.dirname(table.path) or '.', files.folder)
  found = {}
  for name in columns:
    paths = [
      files.find(cell, place, part) if cell else None
      for cell, part in zip(table.column(name), parts, strict=True)
    ]
    if any(paths):
      found[name] = paths
  if not found:
    first = table.column(columns[0])[:3]
    raise NotATable(
      f'{table.path}: the rows name no image in {files.folder}. Its first rows '
      f'are {", ".join(first)}; the {len(files.paths)} images are '
      f'{listing.some(files.paths, files.folder)}. The column of the files is '
      'chosen by config.file_column=NAME'
    )
  if len(found) > 1 and len(set(map(tuple, found.values()))) > 1:
    raise ValueError(
      f'{table.path}: the files can be in the columns {" or ".join(found)}. '
      f'Choose one: config.file_column={next(iter(found))}'
    )
  return next(iter(found.values()))


def _read_list(table, files, settings, rows, found):
  """Adds the lines `path` or `path label` of a list of files."""
  del settings
  place = os.path.relpath(os.path.dirname(table.path) or '.', files.folder)
  columns, missing = None, []
  for (line,) in table.rows:
    path, label, column = files.find(line, place, table.part), None, None
    if path:
      label = os.path.basename(os.path.dirname(path))
      column = 'folder of the file'
    else:
      cells = line.replace('\t', ' ').replace(',', ' ').rsplit(None, 1)
      if len(cells) == 2:
        path, label = files.find(cells[0].strip(), place, table.part), cells[1]
        column = 'after the path'
    if not path:
      missing.append(os.path.join(found.folder, line))
      continue
    if columns not in (None, column):
      raise ValueError(
        f'{table.path}: some lines have a label, and others do not, such as '
        f'{line!r}. Use `path` or `path label` for all lines'
      )
    columns = column
    rows.paths.append(path)
    rows.cells.append((listing.normal(label),))
    rows.parts.append(table.part)
    rows.groups.append('')
  found.leave_out(f'lines without a file in {table.name}', missing)
  if columns:
    rows.columns = (columns,)
  return bool(columns) or not missing


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
  chosen = {}
  for part, value in (
    ('train', settings.train_split),
    ('test', settings.test_split),
    ('validation', settings.validation),
  ):
    if not isinstance(value, str) or value in ('', part):
      continue
    old = folder_layout.part_of(value)
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
  """Returns (class names, labels) in the order of a file in the folder."""
  for name in class_folders.CLASS_FILES:
    path = os.path.join(found.folder, name)
    if os.path.isfile(path):
      listed = class_folders.read_class_file(path)
      names, labels, used = label_cells.with_names(names, labels, listed)
      if used:
        found.notes.append(
          f'the classes are in the order of {name}: {listing.some(names)}'
        )
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
  found.leave_out('repeated rows', repeated)
  return merged


def _parts_of_folders(found, images):
  """Returns {part: images}, if the images lie in folders of parts."""
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


def _leave_out_others(found, files):
  """Leaves out images without a row, and whole folders of them by name."""
  used = {image_folder.identity(path) for path in found.paths}
  known = {path for paths in found.left_out.values() for path in paths}
  tops = {_top(path, found) for path in found.paths}
  others, folders = [], {}
  for path in files.paths:
    if path in known or image_folder.identity(path) in used:
      continue
    top = _top(path, found)
    if top in tops or not folder_layout.part_of(top):
      others.append(path)
    else:
      folders.setdefault(top, []).append(path)
  found.leave_out('images without a row', others)
  for top, paths in folders.items():
    place = os.path.join(found.folder, top)
    found.notes.append(
      f'{len(paths)} images in {top} have no labels, so they are not used. '
      f'`predict RUN {place}` classifies them'
    )


def _top(path, found):
  first, *rest = found.key(path).split('/')
  return first if rest else ''
