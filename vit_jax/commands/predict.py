"""Prints the most likely classes of images.

  python -m vit_jax predict workdirs/quickstart photo.jpg folder/
  python -m vit_jax predict digits.npz folder/ --json > predictions.jsonl

Weights are the folder of a run, or a file or published name of weights in any
supported format. Images are files, and folders with all images below them. They
are preprocessed as in evaluation. Predictions go to stdout, messages to stderr.
With --json, the output has one line for each image: {"file": …, "top":
[{"class": …, "name": …, "probability": …}, …]}. "class" is the index of the
logit.

If the images are in folders FOLDER/CLASS/ that are named after classes of the
model, the last message is the accuracy.

Exit status: 0; 1 if some images could not be decoded (they are named and
skipped); 2 for an error.
"""

from collections.abc import Sequence

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands import print_predictions


def main(argv: Sequence[str] | None = None) -> int:
  """Predicts the classes of images; returns the exit status."""
  parser = arguments.Parser('vit_jax predict', __doc__)
  arguments.add_model_arguments(parser)
  parser.add_argument('images', nargs='+', help='image files and folders')
  arguments.add_prediction_arguments(parser)
  # Images may follow options: `WEIGHTS --top=3 IMAGE`.
  args = parser.parse_intermixed_args(argv)
  with errors.exit_on_error(memory='A smaller --batch needs less memory'):
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
      )
  return 1 if undecodable else 0
