"""Prints the classes or the values that a model predicts for images.

Examples:
  Classify two files, and all images of a folder, with a trained run:
    python -m vit_jax predict workdirs/quickstart a.jpg b.jpg photos/
  Use a published model, which is downloaded once:
    python -m vit_jax predict imagenet21k+imagenet2012/ViT-B_16 photo.jpg
  Write the three most likely classes of each image to a table:
    python -m vit_jax predict digits.npz photos/ --top=3 --out=answers.csv

Images are preprocessed as in evaluation. Predictions are written to stdout and
messages to stderr. If images are in folders FOLDER/CLASS/, and CLASS is a class
name of the model, a message at the end shows the accuracy.

The task of the run determines the output. With one label per image, the
probabilities of all classes sum to 1. With several labels, each class has its
own probability, and a line lists all classes above their thresholds. The run
chose the thresholds on its validation split; without one, they are 0.5. For a
regression, the values of all targets are printed, in their units.

With --json, the output has one line for each image:
  {"file": …, "top": [{"class": …, "name": …, "probability": …}, …]}
"class" is the index of the logit. With several labels, "predicted" is a list of
all classes above their thresholds, like "top". For a regression:
  {"file": …, "values": [{"name": …, "value": …, "unit": …}, …]}

With --out=FILE.csv, the file has one row for each image: file, class,
probability, then the next classes: class_2, probability_2, …. With several
labels, the last column has all predicted classes, such as cat;dog. For a
regression, it has a column for each target. FILE.jsonl has the lines of --json.

Exit status:
  0    all images were classified
  1    some images could not be decoded and are skipped, or an unexpected error
  2    a wrong argument or file, or missing data
  130  Ctrl-C interrupted the command
"""

from collections.abc import Sequence

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands.output import print_predictions
from vit_jax.commands.parsing import command_line


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser(
    'vit_jax predict', 'WEIGHTS IMAGE… [options]', __doc__
  )
  arguments.add_weights_argument(parser)
  parser.add(
    'Arguments',
    'images',
    nargs='+',
    metavar='IMAGE',
    help='image file, or folder: all images in it and in its sub-folders',
  )
  arguments.add_model_arguments(parser)
  arguments.add_batch_argument(parser)
  arguments.add_prediction_arguments(parser)
  arguments.add_search_arguments(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Predicts the classes of images and returns the exit status."""
  parser = make_parser()
  # Images may follow options: `WEIGHTS --top=3 IMAGE`.
  args = parser.parse_intermixed_args(argv)
  with errors.exit_on_error(memory=arguments.SMALLER, flags=parser.flags):
    with errors.quiet():
      from vit_jax.data import tensorflow
      from vit_jax.inference import classify
      from vit_jax.parallel import numerics

      tensorflow.load()
    with numerics.fixed():
      folder_of = classify.find_images(args.images)
      trained = arguments.load_model(args)
      console.log_info(f'{trained.source}: {trained}')
      undecodable = print_predictions.show(
        classify.classify(
          trained, list(folder_of), top=args.top, batch=args.batch
        ),
        trained,
        folder_of,
        args.json,
        args.out,
      )
  return 1 if undecodable else 0
