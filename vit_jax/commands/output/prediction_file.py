"""Writes predictions to a file: a table (.csv) or JSON lines (.jsonl)."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import csv
import json
import os
from typing import Any
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from vit_jax.checkpoint import trained_model
  from vit_jax.inference import classify

SUFFIXES = ('.csv', '.jsonl')
SEPARATOR = ';'  # of the predicted classes in a cell, as in tables of labels


def values(
  prediction: 'classify.Prediction', trained: 'trained_model.TrainedModel'
) -> list[tuple[str, float, str]]:
  """Returns [(name, value, unit)] of a model that predicts no classes."""
  found, units = prediction.probabilities, [''] * len(prediction.classes)
  if trained.targets:
    found = trained.targets.in_units(found).tolist()
    units = trained.targets.units
  return list(zip(trained.shown_class_names, found, units, strict=True))


def to_json(
  prediction: 'classify.Prediction', trained: 'trained_model.TrainedModel'
) -> dict[str, Any]:
  """Returns the object of a JSON line."""
  if trained.output == 'identity':
    return {
      'file': prediction.path,
      'values': [
        {'name': name, 'value': _rounded(value), 'unit': unit}
        for name, value, unit in values(prediction, trained)
      ],
    }
  names = trained.shown_class_names

  def rows(pairs):
    return [
      {'class': i, 'name': names[i], 'probability': _rounded(probability)}
      for i, probability in pairs
    ]

  top = zip(prediction.classes, prediction.probabilities, strict=True)
  row = {'file': prediction.path, 'top': rows(top)}
  if prediction.predicted is not None:
    row['predicted'] = rows(prediction.predicted)
  return row


def _rounded(value):
  return float(f'{value:.6g}')


def _cells(prediction, trained):
  """Returns {column: cell} of a row of the table."""
  row = to_json(prediction, trained)
  cells = {'file': row['file']}
  for value in row.get('values', ()):
    unit = f' ({value["unit"]})' if value['unit'] else ''
    cells[value['name'] + unit] = value['value']
  for rank, found in enumerate(row.get('top', ()), 1):
    ending = f'_{rank}' if rank > 1 else ''
    cells[f'class{ending}'] = found['name']
    cells[f'probability{ending}'] = found['probability']
  if 'predicted' in row:
    cells['predicted'] = SEPARATOR.join(x['name'] for x in row['predicted'])
  return cells


@contextlib.contextmanager
def opened(
  path: str, trained: 'trained_model.TrainedModel'
) -> Iterator[Callable]:
  """Yields a function that writes a prediction to a file.

  The file appears only when it is complete. A table has a row for each image:
  its file, the most likely class and its probability, then the next classes:
  class_2, probability_2, …. With several labels per image, the last column has
  all predicted classes. For a regression, it has a column for each target.

  Args:
    path: path of the file, which ends in one of `SUFFIXES`.
    trained: the model of the predictions.

  Raises:
    ValueError: a table cannot contain a list with one of the class names.
  """
  if trained.output == 'sigmoid' and path.lower().endswith('.csv'):
    for name in trained.shown_class_names:
      if SEPARATOR in name:
        raise ValueError(
          f'--out={path} cannot be a table: the class name {name!r} contains '
          f'{SEPARATOR!r}, which separates predicted classes. Use a file that '
          'ends in .jsonl.'
        )
  partial = f'{path}.partial'
  try:
    with open(
      partial, 'w', encoding='utf-8', errors='surrogateescape', newline=''
    ) as file:
      writer = csv.writer(file)
      header = []

      def write(prediction):
        if path.lower().endswith('.jsonl'):
          line = json.dumps(to_json(prediction, trained), ensure_ascii=False)
          file.write(line + '\n')
          return
        cells = _cells(prediction, trained)
        if not header:
          header.extend(cells)
          writer.writerow(header)
        writer.writerow(cells.values())

      yield write
      if not header and path.lower().endswith('.csv'):  # no predictions
        writer.writerow(['file'])
    os.replace(partial, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(partial)
