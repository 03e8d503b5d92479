"""Classifies images by the names of classes, with LiT and without training.

  python -m vit_jax zero_shot LiT-B16B --classes=cat,dog,'fire truck' *.jpg
  python -m vit_jax zero_shot LiT-B16B --dataset=cifar100

The first writes for each image the likeliest classes; the second, over a test
split, the share of right answers. Weights and vocabulary, LiT-B16B.npz and
LiT-B16B.txt, are fetched where they are not in this folder. Reading texts needs
the library tensorflow-text: pip install -e '.[text]'

With --json each image is a line: {"file": …, "top": [{"class": …, "name": …,
"probability": …}, …]}, "class" being the place in the list of names.

Exit status: 0; 1 if images could not be decoded, which are named, and left out;
2 for a mistake that stops all.
"""

import json

from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands import print_predictions
from vit_jax.data import class_names


def _parser():
  parser = arguments.Parser('zero_shot', __doc__)
  parser.add_argument('model', help='LiT-B16B, LiT-L16L, …')
  parser.add_argument('images', nargs='*', help='image files, and folders')
  parser.add_argument(
    '--weights', help='a path, URL or name; default: those of the model'
  )
  parser.add_argument(
    '--vocabulary',
    help='.txt or .model; default: that beside the weights, '
    'or else the published one',
  )
  parser.add_argument(
    '--classes',
    help='names between commas; or imagenet, for its 1000. '
    'Default for a data set: its own',
  )
  parser.add_argument(
    '--classes_file',
    metavar='FILE',
    help='the same, one name a line, or a '
    'list in JSON such as the class_names.json of a run',
  )
  parser.add_argument(
    '--prompt',
    action='append',
    help='a text with {} where the name of a '
    "class goes; may be given again: a class is the mean of its texts' "
    "embeddings. Default: 'a photo of a {}.'",
  )
  parser.add_argument(
    '--dataset',
    help='a TFDS name, or a folder of images in folders named '
    'after their classes',
  )
  parser.add_argument('--test_split', help='of the data set; default: test')
  parser.add_argument(
    '--tfds_data_dir',
    help='of prepared TFDS sets; default: ~/tensorflow_datasets',
  )
  arguments.add_places_arguments(parser)
  arguments.add_prediction_arguments(parser)
  return parser


def _names(args):
  """The classes that the arguments name, or None."""
  if args.classes is not None and args.classes_file is not None:
    raise ValueError('--classes and --classes_file: give one of the two')
  if args.classes_file is not None:
    from vit_jax.checkpoint import metadata

    return metadata.class_names_in(args.classes_file)
  if args.classes is None:
    return None
  if not args.classes.strip():
    raise ValueError("--classes='' names no class: give names between commas")
  if args.classes == 'imagenet':
    return class_names.imagenet(1000)
  return [name.strip() for name in args.classes.split(',')]


def _check(args, names):
  """Raises a ValueError for what can be seen before anything is loaded."""
  if bool(args.dataset) == bool(args.images):
    raise ValueError(
      'give images, or --dataset=…'
      if not args.images
      else '--dataset and images: give one of the two'
    )
  if args.images and names is None:
    raise ValueError(
      'give the names of the classes, for instance '
      "--classes=cat,dog,'fire truck'"
    )


def _classify(lit, names, prompts, folder_of, args):
  """Writes what each image is; returns how many could not be decoded."""
  from vit_jax.inference import classify
  from vit_jax.inference import lit_classifier

  trained = lit_classifier.make_trained_model(lit, names, prompts)
  found = classify.classify(
    trained,
    list(folder_of),
    prepare=lit_classifier.prepare,
    top=args.top,
    batch=args.batch,
  )
  return print_predictions.show(found, trained, folder_of, args.json)


def _evaluate(lit, names, prompts, args):
  """Writes the share of right answers over a test split."""
  from vit_jax.commands import lit_accuracy

  settings = {
    'test_split': args.test_split,
    'tfds_data_dir': args.tfds_data_dir,
    'batch_eval': args.batch,
  }
  config = lit_accuracy.dataset_config(
    args.dataset, **{name: x for name, x in settings.items() if x}
  )
  try:
    numbers = lit_accuracy.evaluate_dataset(lit, config, names, prompts)
  except ValueError as error:  # which names settings; here they are arguments
    raise ValueError(
      str(error)
      .replace('--config.', '--')
      .replace('config.', '--')
      .replace('batch_eval', 'batch')
    ) from error
  if args.json:
    print(json.dumps({'dataset': args.dataset, **numbers}))
  else:
    print(
      f'{args.dataset}: {100 * numbers["accuracy"]:.2f} % of '
      f'{numbers["count"]} test images right, loss {numbers["loss"]:.4f}'
    )


def main(argv=None):
  """Runs the program; returns its exit status."""
  # Images may follow options: `MODEL --classes=cat,dog IMAGE`.
  args = _parser().parse_intermixed_args(argv)
  with errors.mistakes_leave(memory='Less memory: a smaller --batch'):
    names = _names(args)
    _check(args, names)
    with errors.quiet():
      from vit_jax.data import tensorflow
      from vit_jax.inference import classify
      from vit_jax.inference import lit_classifier
      from vit_jax.inference import lit_embeddings
      from vit_jax.parallel import numerics

      tensorflow.load()
    prompts = args.prompt or lit_classifier.PROMPTS
    if names is not None:
      lit_classifier.check_classes(names, prompts)
    folder_of = classify.find_images(args.images)
    with numerics.fixed():
      lit = lit_embeddings.load(
        args.model, args.weights, args.vocabulary, **arguments.places(args)
      )
      if args.dataset:
        return _evaluate(lit, names, prompts, args)
      return 1 if _classify(lit, names, prompts, folder_of, args) else 0
