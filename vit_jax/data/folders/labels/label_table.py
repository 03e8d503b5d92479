"""Reads tables of labels: .csv, .tsv, .jsonl, .parquet, and lists in .txt."""

import csv
import dataclasses
import os
import re
from typing import Any

from vit_jax.data import class_names
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names
from vit_jax.files import json_files
from vit_jax.files import regular_files

SUFFIXES = ('.csv', '.tsv', '.jsonl', '.parquet')
_ENDINGS = re.compile(r'[ _-]?(labels?|metadata|annotations)$')


@dataclasses.dataclass
class Table:
  """A table of texts.

  Attributes:
    path: path of its file.
    part: part of its images, from its name or its folder; '' for all parts.
    columns: names of the columns.
    rows: a cell for each column.
    is_list: whether it is a list of files, one for each line.
  """

  path: str
  part: str
  columns: list[str]
  rows: list[list[str]]
  is_list: bool = False

  @property
  def name(self) -> str:
    return os.path.basename(self.path)

  def column(self, name: str) -> list[str]:
    """Returns the cells of a column."""
    index = self.columns.index(name)
    return [row[index] for row in self.rows]


def find(folder: str) -> list[str]:
  """Returns the paths of the files that can be tables of labels of a folder.

  Their names are those of a part, or labels, metadata or annotations, or both:
  `train.csv`, `train_labels.csv`. Tables named metadata can be in the folders
  of the parts.
  """
  places = [folder] + [
    os.path.join(folder, name)
    for name in image_folder.subfolders(folder)
    if split_names.part_of(name)
  ]
  return [
    os.path.join(place, name)
    for place in places
    for name in sorted(os.listdir(place))
    if _is_table(name, in_part=place != folder)
    and os.path.isfile(os.path.join(place, name))
  ]


def _is_table(name, in_part):
  stem, suffix = os.path.splitext(name.lower())
  rest = _ENDINGS.sub('', stem)
  if suffix == '.txt':  # labels.txt is a list of classes
    return not in_part and bool(split_names.part_of(stem))
  return suffix in SUFFIXES and (
    not rest or bool(split_names.part_of(rest)) and not in_part
  )


def part_of_table(path: str, folder: str) -> str:
  """Returns the part of a table, from its name or its folder, or ''."""
  stem = os.path.splitext(os.path.basename(path).lower())[0]
  inside = os.path.relpath(path, folder).split(os.sep)[:-1]
  return (
    split_names.part_of(_ENDINGS.sub('', stem))
    or (inside and split_names.part_of(inside[0]))
    or ''
  )


def read(path: str, folder: str) -> Table:
  """Returns a table.

  Args:
    path: path of the file; the suffix gives the format.
    folder: folder of the images.

  Raises:
    ValueError: the file cannot be read as a table.
  """
  regular_files.check(path)
  suffix = os.path.splitext(path.lower())[1]
  part = part_of_table(path, folder)
  if suffix == '.parquet':
    columns, rows = _read_parquet(path)
  elif suffix == '.json':
    columns, rows = ['file', 'labels'], _read_real(path)
  elif suffix in ('.csv', '.tsv', '.jsonl', '.txt'):
    try:
      with open(path, encoding='utf-8-sig', newline='') as file:
        text = file.read()
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{path} cannot be read as UTF-8 ({error}). Save it as UTF-8'
      ) from error
    if suffix == '.txt':
      rows = [[line.strip()] for line in text.splitlines() if line.strip()]
      return Table(path, part, ['line'], rows, is_list=True)
    columns, rows = (_read_jsonl if suffix == '.jsonl' else _read_csv)(
      path, text
    )
  else:
    raise ValueError(
      f'config.labels={path!r} is not a table of labels. Use a file with the '
      f'suffix {", ".join(SUFFIXES)} or .txt, or real.json of ImageNet-ReaL'
    )
  if not rows:
    raise ValueError(f'{path} has no rows. Add the files and their labels')
  return Table(path, part, columns, rows)


def _read_real(path):
  """Returns rows of the list of labels of ImageNet-ReaL (arXiv 2006.07159).

  It has the class numbers of each validation image of ImageNet, in the order of
  the file names.
  """
  ids, lists = class_names.imagenet_ids(1000), json_files.read_json(path)
  if not isinstance(lists, list) or not all(
    isinstance(row, list) and all(x in range(len(ids)) for x in row)
    for row in lists
  ):
    raise ValueError(
      f'{path} must be a JSON list with a list of class numbers from 0 to 999 '
      'for each validation image of ImageNet, as real.json of ImageNet-ReaL'
    )
  return [
    [f'ILSVRC2012_val_{i:08d}', ';'.join(ids[x] for x in row)]
    for i, row in enumerate(lists, 1)
  ]


def _read_csv(path, text):
  """Returns (columns, rows) of a text with commas, semicolons or tabs."""
  first = text.partition('\n')[0]
  delimiter = max('\t;,|', key=first.count)
  try:
    rows = list(csv.reader(text.splitlines(True), delimiter=delimiter))
  except csv.Error as error:  # a NUL, or a cell of more than 131072 characters
    raise ValueError(
      f'{path} cannot be read as a table: {error}. Look for a quote that is '
      'not closed'
    ) from error
  rows = [[cell.strip() for cell in row] for row in rows if any(row)]
  if not rows:
    return [], []
  columns, rows = rows[0], rows[1:]
  _check_columns(path, columns)
  for i, row in enumerate(rows):
    if len(row) != len(columns):
      raise ValueError(
        f'{path}: row {i + 2} has {len(row)} cells, but there are '
        f'{len(columns)} columns. Correct the row {row[:3]}. A cell with '
        f'{delimiter!r} needs quotes'
      )
  return columns, rows


def _check_columns(path, columns):
  repeated = sorted({name for name in columns if columns.count(name) > 1})
  if repeated:
    raise ValueError(
      f'{path} has several columns with the name {repeated[0]!r}. Give each '
      'column its own name'
    )


def _read_jsonl(path, text):
  """Returns (columns, rows) of a text with a JSON object in each line."""
  objects = []
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      value = json_files.loads(line)
    except ValueError as error:
      raise ValueError(
        f'{path}: line {number} is not JSON: {error}. Each line must be a JSON '
        'object, such as {"file_name": "1.jpg", "label": "cat"}'
      ) from error
    if not isinstance(value, dict):
      raise ValueError(
        f'{path}: line {number} is not a JSON object, such as '
        '{"file_name": "1.jpg", "label": "cat"}'
      )
    objects.append(value)
  columns = list(dict.fromkeys(name for row in objects for name in row))
  return columns, [[text_of(row.get(c)) for c in columns] for row in objects]


def _read_parquet(path):
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError(
      f'{path} needs pyarrow. Install it: pip install pyarrow'
    ) from error
  try:
    table = parquet.read_table(path)
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read as parquet: {error}') from error
  columns = table.column_names
  _check_columns(path, columns)
  values = [column.to_pylist() for column in table.columns]
  return columns, [list(map(text_of, row)) for row in zip(*values, strict=True)]


def text_of(value: Any) -> str:
  """Returns a value as the text of a cell."""
  if value is None:
    return ''
  if isinstance(value, list | tuple):  # several classes
    return ';'.join(map(text_of, value))
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return listing.normal(str(value)).strip()
