"""Reads the rows of tables that name an image."""

import dataclasses
import os

from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names
from vit_jax.data.folders.labels import label_columns
from vit_jax.data.folders.labels import label_table
from vit_jax.data.folders.labels import table_files


@dataclasses.dataclass
class Rows:
  """The rows of one or several tables that name an image."""

  paths: list[str] = dataclasses.field(default_factory=list)
  cells: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
  parts: list[str] = dataclasses.field(default_factory=list)
  groups: list[str] = dataclasses.field(default_factory=list)
  columns: tuple[str, ...] = ()


class NotATable(ValueError):
  """A table has no labels of the images of a folder."""


def read_table(
  table: label_table.Table,
  files: table_files.Files,
  settings: DataSettings,
  rows: Rows,
  found: listing.Listing,
) -> bool:
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
      split_names.part_of(cell) or '' for cell in table.column(columns.part)
    ]
    _skip_rows(found, 'rows without a part', table, parts)
  paths = _find_paths(table, columns.files, files, parts)
  _skip_rows(found, 'rows without a file', table, paths)
  cells = list(
    zip(
      *(map(listing.normal, table.column(n)) for n in columns.labels),
      strict=True,
    )
  )
  if settings.task != 'multi_label':
    complete = [all(row) or '' for row in cells]
    _skip_rows(found, 'rows without a label', table, complete)
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


def _skip_rows(found, reason, table, values):
  found.skip(
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


def read_list(
  table: label_table.Table,
  files: table_files.Files,
  settings: DataSettings,
  rows: Rows,
  found: listing.Listing,
) -> bool:
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
  found.skip(f'lines without a file in {table.name}', missing)
  if columns:
    rows.columns = (columns,)
  return bool(columns) or not missing
