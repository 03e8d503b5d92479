"""Tells the likeliest classes of images.

  python -m vit_jax predict workdirs/quickstart photo.jpg folder/
  python -m vit_jax predict digits.npz folder/ --json > predictions.jsonl

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

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands import print_predictions


def main(argv=None):
  """Predicts what the arguments ask for; returns the exit status."""
  parser = arguments.Parser('predict', __doc__)
  arguments.add_model_arguments(parser)
  parser.add_argument('images', nargs='+', help='image files, and folders')
  arguments.add_prediction_arguments(parser)
  # Images may follow options: `WEIGHTS --top=3 IMAGE`.
  args = parser.parse_intermixed_args(argv)
  with errors.quiet():
    from vit_jax.data import tensorflow
    from vit_jax.inference import classify
    from vit_jax.parallel import numerics

    tensorflow.load()
  with (
    numerics.fixed(),
    errors.mistakes_leave(memory='Less memory: a smaller --batch'),
  ):
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
