"""Predictions shown as text or as JSON lines, and the share of right ones."""

import json
import sys

from vit_jax import console


def _show_text(prediction, names):
  """The file's name, then a class on each line."""
  print(prediction.path)
  for label, probability in zip(
    prediction.classes, prediction.probabilities, strict=True
  ):
    print(f'  {100 * probability:6.2f} %  {names[label]}')


def _show_json(prediction, names):
  print(
    json.dumps(
      {
        'file': prediction.path,
        'top': [
          {
            'class': label,
            'name': names[label],
            'probability': float(f'{probability:.6g}'),
          }
          for label, probability in zip(
            prediction.classes, prediction.probabilities, strict=True
          )
        ],
      }
    )
  )


def show(predictions, trained, folder_of, as_json):
  """Writes predictions to stdout as they come, all else to stderr.

  Args:
    predictions: from `classify.classify`.
    trained: the `TrainedModel` that they are of.
    folder_of: {path: name of its folder, or None}, from `classify.find_images`.
    as_json: whether an image is a line of JSON.

  Returns:
    How many images could not be decoded.
  """
  names, index_of = trained.shown_class_names, trained.class_index
  if not sys.stdout.isatty():  # else the predictions are progress enough
    predictions = _counting(predictions, len(folder_of))
  show_one = _show_json if as_json else _show_text
  undecodable = labelled = right = 0
  for prediction in predictions:
    if prediction.classes is None:
      undecodable += 1
      console.log_info(f'warning: {prediction.path}: {_why(prediction.path)}')
      continue
    show_one(prediction, names)
    label = index_of.get(folder_of[prediction.path])
    if label is not None:
      labelled += 1
      right += prediction.classes[0] == label
  if labelled:
    console.log_info(
      f'{100 * right / labelled:.2f} % of {labelled} images right '
      f'({right}), by the folders they lie in'
    )
  if undecodable:
    console.log_info(
      f'warning: {undecodable} of {len(folder_of)} images could not be decoded'
    )
  sys.stdout.flush()
  return undecodable


def _counting(predictions, total):
  """Shows progress; the clock starts after the first, and its compilation."""
  first = next(predictions)
  yield first
  yield from console.counting(predictions, total - 1, 'predicting')


def _why(path):
  """Why an image could not be decoded."""
  try:
    with open(path, 'rb') as file:
      return (
        'this is no image that can be decoded'
        if file.read(1)
        else 'the file is empty'
      )
  except OSError as error:
    return error.strerror
