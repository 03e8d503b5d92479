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


def _show_text(prediction, names):
  """Prints the path of the file, then one class per line."""
  print(prediction.path)
  for label, probability in zip(
    prediction.classes, prediction.probabilities, strict=True
  ):
    print(f'  {100 * probability:6.2f} %  {names[label]}')


def _show_json(prediction, names):
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
  names, index_of = trained.shown_class_names, trained.class_index
  if not sys.stdout.isatty():  # in a terminal, predictions show the progress
    predictions = _counting(predictions, len(folder_of))
  show_one = _show_json if as_json else _show_text
  undecodable = labelled = correct = 0
  for prediction in predictions:
    if prediction.classes is None:
      undecodable += 1
      console.log_info(f'warning: {prediction.path}: {_why(prediction.path)}')
      continue
    show_one(prediction, names)
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
  try:
    with open(path, 'rb') as file:
      return (
        'the file is not an image of a supported format, or it is damaged'
        if file.read(1)
        else 'the file is empty'
      )
  except OSError as error:
    return error.strerror
