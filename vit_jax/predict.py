"""Tells the likeliest classes of images.

  python -m vit_jax.predict workdirs/quickstart photo.jpg folder/
  python -m vit_jax.predict digits.npz folder/ --json > predictions.jsonl

Weights are the folder of a run, or a file or name of weights in any published
layout. Images are files, and folders with all images below them; they are
prepared as in evaluation. Predictions go to stdout, all else to stderr. With
--json each image is a line: {"file": …, "top": [{"class": …, "name": …,
"probability": …}, …]}, "class" being the index of the logit.

Where images lie in FOLDER/CLASS/…, and CLASS is one of the model's, the share
of right answers is said at the end.

Exit status: 0; 1 if images could not be decoded, which are named, and left out;
2 for a mistake that stops all.
"""

import json
import os
import sys

from vit_jax import program
from vit_jax import report


def _show_text(prediction, names):
  """The file's name, then a class on each line."""
  print(prediction.path)
  for label, probability in zip(prediction.classes, prediction.probabilities):
    print(f'  {100 * probability:6.2f} %  {names[label]}')


def _show_json(prediction, names):
  print(json.dumps({'file': prediction.path, 'top': [
      {'class': label, 'name': names[label],
       'probability': float(f'{probability:.6g}')}
      for label, probability in zip(
          prediction.classes, prediction.probabilities)]}))


def _show_all(predictions, folder_of, trained, show):
  """Shows predictions as they come; returns how many were undecodable."""
  names, index_of = trained.shown_class_names, trained.class_index
  undecodable = labelled = right = 0
  for prediction in predictions:
    if prediction.classes is None:
      undecodable += 1
      report.say(f'warning: {prediction.path}: {_why(prediction.path)}')
      continue
    show(prediction, names)
    label = index_of.get(folder_of[prediction.path])
    if label is not None:
      labelled += 1
      right += prediction.classes[0] == label
  if labelled:
    report.say(f'{100 * right / labelled:.2f} % of {labelled} images right '
               f'({right}), by the folders they lie in')
  if undecodable:
    report.say(f'warning: {undecodable} of {len(folder_of)} images could not '
               'be decoded')
  return undecodable


def _counting(predictions, total):
  """Shows progress; the clock starts after the first, and its compilation."""
  first = next(predictions)
  yield first
  yield from report.counting(predictions, total - 1, 'predicting')


def _why(path):
  """Why an image could not be decoded."""
  try:
    with open(path, 'rb') as file:
      return ('this is no image that can be decoded' if file.read(1)
              else 'the file is empty')
  except OSError as error:
    return error.strerror


def main(argv=None):
  """Predicts what the arguments ask for; returns the exit status."""
  parser = program.Parser('vit_jax.predict', __doc__)
  program.add_model_arguments(parser)
  parser.add_argument('images', nargs='+', help='image files, and folders')
  parser.add_argument('--top', type=program.positive, default=5,
                      help='classes to tell of each image (default: 5)')
  parser.add_argument('--json', action='store_true',
                      help='a JSON object a line, for programs')
  parser.add_argument('--batch', type=program.positive, default=64,
                      help='images worked on at a time (default: 64)')
  args = parser.parse_args(argv)
  with program.quiet():
    from vit_jax import classify  # pylint: disable=g-import-not-at-top
  with program.mistakes_leave(memory='Less memory: a smaller --batch'):
    folder_of = classify.find_images(args.images)
    trained = program.load_model(args)
    report.say(f'{trained.source}: {trained}')
    predictions = classify.classify(
        trained, list(folder_of), top=args.top, batch=args.batch)
    if not sys.stdout.isatty():  # else the predictions are progress enough
      predictions = _counting(predictions, len(folder_of))
    undecodable = _show_all(predictions, folder_of, trained,
                            _show_json if args.json else _show_text)
    sys.stdout.flush()
  return 1 if undecodable else 0


if __name__ == '__main__':
  sys.exit(main())
