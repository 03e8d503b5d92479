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


from vit_jax import predictions
from vit_jax import program
from vit_jax import report


def main(argv=None):
  """Predicts what the arguments ask for; returns the exit status."""
  parser = program.Parser('vit_jax.predict', __doc__)
  program.add_model_arguments(parser)
  parser.add_argument('images', nargs='+', help='image files, and folders')
  program.add_prediction_arguments(parser)
  # Images may follow options: `WEIGHTS --top=3 IMAGE`.
  args = parser.parse_intermixed_args(argv)
  with program.quiet():
    from vit_jax import classify  # pylint: disable=g-import-not-at-top
    from vit_jax import numerics  # pylint: disable=g-import-not-at-top
  with numerics.fixed(), (
      program.mistakes_leave(memory='Less memory: a smaller --batch')):
    folder_of = classify.find_images(args.images)
    trained = program.load_model(args)
    report.say(f'{trained.source}: {trained}')
    undecodable = predictions.show(
        classify.classify(
            trained, list(folder_of), top=args.top, batch=args.batch),
        trained, folder_of, args.json)
  return 1 if undecodable else 0


if __name__ == '__main__':
  program.start(main)
