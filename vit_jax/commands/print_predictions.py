"""Prints predictions as text or as JSON lines, and the accuracy."""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import sys
from typing import TYPE_CHECKING

from vit_jax import console

if TYPE_CHECKING:
  from vit_jax.checkpoint import trained_model
  from vit_jax.inference import classify


def _show_classes(prediction, names):
  """Prints the path of the file, then one class per line."""
  print(prediction.path)
  for label, probability in zip(
    prediction.classes, prediction.probabilities, strict=True
  ):
    print(f'  {100 * probability:6.2f} %  {names[label]}')


def _show_classes_as_json(prediction, names):
  """Prints one line with a JSON object."""
  top = [
    {
      'class': label,
      'name': names[label],
      'probability': float(f'{probability:.6g}'),
    }
    for label, probability in zip(
      prediction.classes, prediction.probabilities, strict=True
    )
  ]
  print(json.dumps({'file': prediction.path, 'top': top}))


def _values(prediction, trained):
  """Returns [(name, value, unit)] of a model that does not predict classes."""
  values, units = prediction.probabilities, [''] * len(prediction.classes)
  if trained.targets:
    values = trained.targets.in_units(values).tolist()
    units = trained.targets.units
  return list(zip(trained.shown_class_names, values, units, strict=True))


def _show_values(prediction, trained):
  """Prints the path of the file, then one value per line."""
  print(prediction.path)
  for name, value, unit in _values(prediction, trained):
    print(f'  {name} {value:.6g} {unit}'.rstrip())


def _show_values_as_json(prediction, trained):
  """Prints one line with a JSON object."""
  values = [
    {'name': name, 'value': float(f'{value:.6g}'), 'unit': unit}
    for name, value, unit in _values(prediction, trained)
  ]
  print(json.dumps({'file': prediction.path, 'values': values}))


def show(
  predictions: 'Iterator[classify.Prediction]',
  trained: 'trained_model.TrainedModel',
  folder_of: Mapping[str, str | None],
  as_json: bool,
) -> int:
  """Prints predictions to stdout one by one, and messages to stderr.

  Args:
    predictions: from `classify.classify`.
    trained: the model of the predictions.
    folder_of: {path: name of the folder, or None}, from `classify.find_images`.
    as_json: whether to print JSON lines.

  Returns:
    The number of images that could not be decoded.
  """
  if not sys.stdout.isatty():  # in a terminal, predictions show the progress
    predictions = _counting(predictions, len(folder_of))
  show_one, shown_by = _show_classes, trained.shown_class_names
  if trained.output == 'identity':
    show_one, shown_by = _show_values, trained
  if as_json:
    show_one = {
      _show_classes: _show_classes_as_json,
      _show_values: _show_values_as_json,
    }[show_one]
  # With several labels per image, the name of a folder cannot be all of them.
  index_of = trained.class_index if trained.output == 'softmax' else {}
  undecodable = labelled = correct = 0
  for prediction in predictions:
    if prediction.classes is None:
      undecodable += 1
      console.log_info(f'warning: {prediction.path}: {_why(prediction.path)}')
      continue
    show_one(prediction, shown_by)
    label = index_of.get(folder_of[prediction.path])
    if label is not None:
      labelled += 1
      correct += prediction.classes[0] == label
  if labelled:
    console.log_info(
      f'accuracy {100 * correct / labelled:.2f} % on {labelled} images '
      f'({correct} correct), according to the names of their folders'
    )
  if undecodable:
    console.log_info(
      f'warning: {undecodable} of {len(folder_of)} images could not be decoded'
    )
  sys.stdout.flush()
  return undecodable


def _counting(predictions, total):
  """Shows progress. The first prediction, with compilation, is not timed."""
  first = next(predictions)
  yield first
  yield from console.counting(predictions, total - 1, 'predicting')


def _why(path):
  """Returns the reason why an image could not be decoded."""
  from vit_jax.data.image_files import image_checks

  return image_checks.reason(path)
