"""From the cells of a table to class numbers, rows of 0 and 1, or numbers."""

from collections.abc import Sequence
import itertools
import math
import re

import numpy as np

from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders.labels import label_columns

_SEPARATORS = (';', '|', ',', ' ')


def parse(
  cells: Sequence[tuple[str, ...]],
  columns: Sequence[str],
  settings: DataSettings,
  where: str,
) -> tuple[list[str], list]:
  """Returns (class names, label of each row).

  A label is a list of class names, or a tuple of numbers for a regression.

  Args:
    cells: the cells of the columns, for each row.
    columns: names of the columns.
    settings: `task` and `label_separator`.
    where: name of the table, for messages.

  Raises:
    ValueError: the cells cannot be used for the task.
  """
  if settings.task == 'regression':
    return [], [_numbers(row, columns, where) for row in cells]
  if len(columns) > 1:
    return list(columns), _from_columns(cells, columns, settings, where)
  texts = [row[0] for row in cells]
  if settings.task == 'multi_label':
    separator = _find_separator(texts, settings, where)
    labels = [
      [name.strip() for name in text.split(separator) if name.strip()]
      if separator
      else [text] * bool(text)
      for text in texts
    ]
  else:
    _check_one_class(texts, settings, where)
    labels = [[text] for text in texts]
  return _in_order(set(itertools.chain(*labels))), labels


def to_array(labels: Sequence, names: Sequence[str], task: str) -> np.ndarray:
  """Returns the labels as in `listing.Part.labels`."""
  if task == 'regression':
    array = np.array(labels, np.float32)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
  index_of = {name: i for i, name in enumerate(names)}
  if task != 'multi_label':
    return np.array([index_of[row[0]] for row in labels], np.int64)
  array = np.zeros((len(labels), len(names)), np.float32)
  for row, found in zip(array, labels, strict=True):
    row[[index_of[name] for name in found]] = 1
  return array


def _numbers(row, columns, where):
  numbers = []
  for name, cell in zip(columns, row, strict=True):
    try:
      number = float(cell)
    except ValueError:
      number = math.nan
    if not math.isfinite(number):
      raise ValueError(
        f'{where}: the cell {cell!r} of the column {name} is not a finite '
        'number, which config.task=regression needs. Choose another column '
        'with config.label_column, or correct the table'
      )
    numbers.append(number)
  return tuple(numbers)


def _from_columns(cells, columns, settings, where):
  """Returns the classes of rows with a column of 0 and 1 for each class."""
  labels = []
  for row in cells:
    values = [label_columns.zero_or_one(cell) for cell in row]
    if None in values:
      wrong = values.index(None)
      raise ValueError(
        f'{where}: the cell {row[wrong]!r} of the column {columns[wrong]} is '
        'not 0 or 1. With several columns of labels, each column is a class. '
        'Choose one column with config.label_column'
      )
    labels.append(
      [n for n, value in zip(columns, values, strict=True) if value]
    )
  several = [row for row in labels if len(row) != 1]
  if several and settings.task != 'multi_label':
    raise ValueError(
      f'{where}: {len(several)} of {len(labels)} rows do not have exactly one '
      f'class, for example {several[0]}. For any number of classes per image, '
      'use config.task=multi_label'
    )
  return labels


def _find_separator(texts, settings, where):
  """Returns the character between classes; '' if a cell is one class."""
  given = settings.label_separator
  if given:
    return '' if given == 'none' else given
  used = [s for s in _SEPARATORS[:3] if any(s in text for text in texts)]
  if len(used) == 1:
    return used[0]
  if not used and not any(' ' in text for text in texts):
    return ''
  example = next(text for text in texts if any(s in text for s in used or ' '))
  raise ValueError(
    f'{where}: the cell {example!r} can be one class or several. Choose the '
    "character between classes: config.label_separator=' ' (or ; | ,), or "
    'config.label_separator=none if each cell is one class'
  )


def _check_one_class(texts, settings, where):
  """Raises ValueError if cells seem to have several classes."""
  if settings.label_separator:
    return
  alone = set(texts)
  for text in alone:
    for separator in _SEPARATORS:
      pieces = [piece.strip() for piece in text.split(separator)]
      if len(pieces) < 2:
        continue
      if separator in ';|' or set(pieces) <= alone:
        raise ValueError(
          f'{where}: the cell {text!r} seems to have several classes. For '
          'several classes per image, use config.task=multi_label. If it is '
          'the name of one class, use config.label_separator=none'
        )


def _in_order(names):
  """Returns names in order; numbers are ordered by their values."""
  if all(re.fullmatch(r'-?\d+', name) for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def with_names(
  names: Sequence[str], labels: Sequence, listed: Sequence[str]
) -> tuple[list[str], list, bool]:
  """Replaces class numbers by the names of a file of classes.

  Args:
    names: class names of the table.
    labels: class names of each row.
    listed: class names of the file; the first one has the number 0.

  Returns:
    (class names, labels, whether the file is used).
  """
  if not names or not listed:
    return list(names), list(labels), False
  if set(names) <= set(listed):
    kept = [name for name in dict.fromkeys(listed) if name in set(names)]
    return kept, list(labels), True
  if all(re.fullmatch(r'\d+', name) for name in names) and (
    max(map(int, names)) < len(listed) == len(set(listed))
  ):
    used = {int(name) for name in names}
    return (
      [name for i, name in enumerate(listed) if i in used],
      [[listed[int(name)] for name in row] for row in labels],
      True,
    )
  return list(names), list(labels), False
