"""Chooses the columns of a table: files, labels, parts, groups."""

from collections.abc import Sequence
import dataclasses
import re

from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names
from vit_jax.data.folders.labels import label_table

_FILES = (
  *('file_name', 'filename', 'file', 'file_path', 'filepath', 'path'),
  *('image_path', 'image_file', 'image_name', 'image', 'img_path', 'img_name'),
  *('img', 'image_id', 'img_id', 'imageid', 'photo', 'photo_id', 'id'),
  *('id_code', 'file_id', 'name', 'picture', 'relative_path', 'fname'),
)
_LABELS = (
  *('label', 'labels', 'class', 'classes', 'class_name', 'classname'),
  *('label_name', 'category', 'category_name', 'categories', 'target'),
  *('class_id', 'label_id', 'category_id', 'tags', 'tag', 'y', 'species'),
  *('breed', 'diagnosis'),
)
_PARTS = ('split', 'set', 'part', 'subset', 'partition', 'fold', 'usage')
_INDEX = ('', 'index', 'unnamed:_0', 'row')
_ZERO_ONE = {'0': 0, '1': 1, '0.0': 0, '1.0': 1, 'false': 0, 'true': 1}


@dataclasses.dataclass
class Columns:
  """Names of the columns of a table.

  Attributes:
    files: columns that can name the files, in order of preference.
    labels: columns of the labels; () if the table has none.
    part: column of the parts, or None.
    group: column of the groups, or None.
    notes: lines for the user.
  """

  files: list[str]
  labels: tuple[str, ...]
  part: str | None
  group: str | None
  notes: list[str]


def zero_or_one(cell: str) -> int | None:
  """Returns the number of a cell that means 0 or 1, else None."""
  return _ZERO_ONE.get(cell.lower())


def choose(table: label_table.Table, settings: DataSettings) -> Columns:
  """Returns the columns of a table.

  Raises:
    ValueError: a setting names a missing column, or several readings fit.
  """
  files = _named(table, _FILES) or table.columns[:1]
  if settings.file_column:
    files = [_check(table, settings.file_column, 'file_column')]
  group = settings.group_by if settings.group_by in table.columns else None
  part, notes = None, []
  for name in _named(table, _PARTS):
    if name == group or name == settings.label_column:
      continue
    cells = set(filter(None, table.column(name)))
    if cells and all(map(split_names.part_of, cells)):
      part = part or name
  chosen = Columns(files, (), part, group, notes)
  chosen.labels = _choose_labels(table, settings, chosen)
  # A column of labels cannot name the files, unless it has to.
  chosen.files = [name for name in files if name not in chosen.labels]
  return chosen


def file_column(table: label_table.Table) -> str:
  """Returns the column of the files: by its name, or else the first one."""
  return (_named(table, _FILES) or table.columns)[0]


def _normal(name):
  return re.sub(r'[ .-]+', '_', name.strip().lower())


def _named(table, names):
  """Returns the columns with one of these names, in the order of `names`."""
  by_name = {_normal(name): name for name in table.columns}
  return [by_name[name] for name in names if name in by_name]


def _check(table, name, setting):
  if name not in table.columns:
    raise ValueError(
      f'config.{setting}={name!r}: {table.path} has no such column. It has '
      f'{listing.some(table.columns, count=8)}'
    )
  return name


def _choose_labels(table, settings, chosen):
  """Returns the columns of the labels."""
  if settings.label_column:
    names = [name.strip() for name in settings.label_column.split(',')]
    if settings.label_column in table.columns:
      names = [settings.label_column]
    return tuple(_check(table, name, 'label_column') for name in names)
  if settings.task == 'regression' and settings.target_names:
    if set(settings.target_names) <= set(table.columns):
      return tuple(settings.target_names)
    if len(settings.target_names) > 1:
      missing = set(settings.target_names) - set(table.columns)
      _check(table, sorted(missing)[0], 'targets.names')
  found = _named(table, _LABELS)
  found = [name for name in found if name not in (chosen.part, chosen.group)]
  if len(found) > 1:
    found = _without_numbers_of_classes(table, found, chosen.notes)
  if len(found) > 1:
    raise _several(table, found)
  return tuple(found) or _choose_others(table, settings, chosen)


def _without_numbers_of_classes(table, found, notes):
  """Returns one column if all columns give the same classes, else `found`."""
  cells = [table.column(name) for name in found]
  pairs = set(zip(*cells, strict=True))
  if any(len(set(column)) != len(pairs) for column in cells):
    return found
  for name, column in zip(found, cells, strict=True):
    if not all(re.fullmatch(r'\d*', cell) for cell in column):
      notes.append(
        f'the columns {", ".join(found)} of {table.name} give the same '
        f'classes. Their names are those of {name}'
      )
      return [name]
  return found


def _choose_others(table, settings, chosen):
  """Returns the columns of the labels, if no column has a usual name."""
  known = {chosen.part, chosen.group, *chosen.files[:1]}
  rest = [
    name
    for name in table.columns
    if name not in known
    and _normal(name) not in (*_INDEX, *_PARTS)
    and name not in chosen.files
  ]
  if len(rest) < 2:
    return tuple(rest)
  one_hot = all(
    zero_or_one(cell) is not None
    for name in rest
    for cell in table.column(name)
  )
  if one_hot and settings.task != 'regression':
    return tuple(rest)
  raise _several(table, rest)


def _several(table, names: Sequence[str]):
  return ValueError(
    f'{table.path}: the labels can be in {" or ".join(names[:6])}'
    + (', …' if len(names) > 6 else '')
    + f'. Choose one column: config.label_column={names[0]} Several columns of '
    f"0 and 1, one for each class: config.label_column='{names[0]},{names[1]}'"
  )
