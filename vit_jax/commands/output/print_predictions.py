"""Prints predictions or writes them to a file, and shows the accuracy."""

from collections.abc import Iterator
from collections.abc import Mapping
import functools
import json
import sys
from typing import TYPE_CHECKING

from vit_jax import console
from vit_jax.commands.output import prediction_file
from vit_jax.data import class_names
from vit_jax.data.folders import listing

if TYPE_CHECKING:
  from vit_jax.checkpoint import trained_model
  from vit_jax.inference import classify


def _show_classes(prediction, trained):
  """Prints the path of the file, then one class per line."""
  names = trained.shown_class_names
  console.show(prediction.path)
  for label, probability in zip(
    prediction.classes, prediction.probabilities, strict=True
  ):
    console.show(f'  {100 * probability:6.2f} %  {names[label]}')
  if prediction.predicted is not None:
    found = ', '.join(names[label] for label, _ in prediction.predicted)
    console.show(f'  predicted: {found or "no class"}')


def _show_values(prediction, trained):
  """Prints the path of the file, then one value per line."""
  console.show(prediction.path)
  for name, value, unit in prediction_file.values(prediction, trained):
    console.show(f'  {name} {value:.6g} {unit}'.rstrip())


def _show_json(prediction, trained):
  """Prints one line with a JSON object."""
  print(json.dumps(prediction_file.to_json(prediction, trained)))


def show(
  predictions: 'Iterator[classify.Prediction]',
  trained: 'trained_model.TrainedModel',
  folder_of: Mapping[str, str | None],
  as_json: bool,
  out: str | None = None,
) -> int:
  """Prints predictions to stdout one by one, and messages to stderr.

  Args:
    predictions: from `classify.classify`.
    trained: the model of the predictions.
    folder_of: {path: name of the folder, or None}, from `classify.find_images`.
    as_json: whether to print JSON lines.
    out: file for the predictions, in place of stdout; see `prediction_file`.

  Returns:
    The number of images that could not be decoded.
  """
  # In a terminal, printed predictions show the progress.
  if out or not sys.stdout.isatty():
    predictions = _counting(predictions, len(folder_of))
  if not out:
    show_one = _show_classes
    if trained.output == 'identity':
      show_one = _show_values
    show_one = functools.partial(
      _show_json if as_json else show_one, trained=trained
    )
    return _show_all(predictions, trained, folder_of, show_one)
  with prediction_file.opened(out, trained) as write:
    undecodable = _show_all(predictions, trained, folder_of, write)
  console.log_info(
    f'{len(folder_of) - undecodable} predictions are written to {out}'
  )
  return undecodable


def _show_all(predictions, trained, folder_of, show_one):
  """Shows predictions and the accuracy; see `show`."""
  # With several labels per image, the name of a folder cannot be all of them.
  index_of = trained.class_index if trained.output == 'softmax' else {}
  undecodable = labelled = correct = 0
  for prediction in predictions:
    if prediction.classes is None:
      undecodable += 1
      console.log_info(f'warning: {prediction.path}: {_why(prediction.path)}')
      continue
    show_one(prediction)
    label = _find_class(index_of, folder_of[prediction.path])
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


def _find_class(index_of, folder):
  """Returns the index of the class that a folder is named after, or None."""
  if folder is None:
    return None
  names = folder, listing.normal(folder), *class_names.readable([folder])
  return next((index_of[name] for name in names if name in index_of), None)


def _counting(predictions, total):
  """Shows progress. The first prediction, with compilation, is not timed."""
  first = next(predictions)
  yield first
  yield from console.counting(predictions, total - 1, 'predicting')


def _why(path):
  """Returns the reason why an image could not be decoded."""
  from vit_jax.data.image_files import image_checks

  return image_checks.reason(path)
