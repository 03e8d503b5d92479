"""Classifies images by the names of classes, with LiT.

  python -m vit_jax zero_shot LiT-B16B --classes=cat,dog,'fire truck' *.jpg
  python -m vit_jax zero_shot LiT-B16B --dataset=cifar100

Nothing is trained. The first prints the most likely classes of each image, the
second the accuracy over a test split. Weights and vocabulary (LiT-B16B.npz and
LiT-B16B.txt) are downloaded unless they are in the current folder. The
tokenizer needs the library tensorflow-text: pip install -e '.[text]'

With --json, the output has one line for each image: {"file": …, "top":
[{"class": …, "name": …, "probability": …}, …]}. "class" is the position in the
list of names. For a data set it is one JSON object.

Exit status: 0; 1 if some images could not be decoded (they are named and
skipped); 2 for an error.
"""

from collections.abc import Sequence
import json

import ml_collections

from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands import print_predictions
from vit_jax.data import class_names

# The arguments for settings that messages name.
_ARGUMENTS = {
  'batch_eval': '--batch',
  'dataset': '--dataset',
  'test_split': '--test_split',
  'tfds_data_dir': '--tfds_data_dir',
}


def _parser():
  parser = arguments.Parser('vit_jax zero_shot', __doc__)
  parser.add_argument('model', help='LiT-B16B, LiT-L16L, …')
  parser.add_argument('images', nargs='*', help='image files and folders')
  parser.add_argument(
    '--weights', help="path, URL or name of weights (default: the model's)"
  )
  parser.add_argument(
    '--vocabulary',
    metavar='FILE',
    help='.txt or .model file (default: the one next to the weights, or else '
    'the published one)',
  )
  parser.add_argument(
    '--classes',
    metavar='NAME,…',
    help="names of the classes; 'imagenet' means its 1000 classes (default: "
    'those of --dataset)',
  )
  parser.add_argument(
    '--classes_file',
    metavar='FILE',
    help='names of the classes: one a line, or a JSON list such as the '
    'class_names.json of a run',
  )
  parser.add_argument(
    '--prompt',
    action='append',
    metavar='TEXT',
    help='a text with {} in the place of the class name. Several --prompt: a '
    "class is the mean of its texts' embeddings (default: 'a photo of a {}.')",
  )
  arguments.add_dataset_arguments(parser)
  parser.add_argument(
    '--test_split', metavar='SPLIT', help='of the data set (default: test)'
  )
  arguments.add_search_arguments(parser)
  arguments.add_prediction_arguments(parser)
  return parser


def _names(args):
  """Returns the classes that the arguments name, or None."""
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
  """Raises a ValueError for mistakes that need no model or data to be seen."""
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
  """Prints predictions; returns how many images could not be decoded."""
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


def dataset_config(dataset: str, **settings) -> ml_collections.ConfigDict:
  """Returns the config of `zero_shot.evaluate_dataset`.

  Args:
    dataset: a folder of images, or the name of a TFDS data set.
    **settings: of `base_config`, where others than the defaults are wanted.
  """
  from vit_jax import base_config
  from vit_jax.inference import lit_embeddings

  config = base_config.for_dataset(dataset)
  config.pp.crop = lit_embeddings.IMAGE_SIZE
  config.batch_eval = 64
  config.in_memory_bytes = 0  # each image is read once
  config.update(settings)
  return config


def _evaluate(lit, names, prompts, args):
  """Prints accuracy and loss over a test split."""
  from vit_jax.evaluators import zero_shot

  settings = {
    'test_split': args.test_split,
    'tfds_data_dir': args.tfds_data_dir,
    'batch_eval': args.batch,
  }
  config = dataset_config(
    args.dataset, **{name: x for name, x in settings.items() if x}
  )
  with arguments.in_place_of_settings(_ARGUMENTS):
    numbers = zero_shot.evaluate_dataset(lit, config, names, prompts)
  if args.json:
    print(json.dumps({'dataset': args.dataset, **numbers}))
  else:
    print(
      f'{args.dataset}: {100 * numbers["accuracy"]:.2f} % of '
      f'{numbers["count"]} test images right, loss {numbers["loss"]:.4f}'
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Classifies images or evaluates a data set; returns the exit status."""
  # Images may follow options: `MODEL --classes=cat,dog IMAGE`.
  args = _parser().parse_intermixed_args(argv)
  with errors.exit_on_error(memory='A smaller --batch needs less memory'):
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
        args.model,
        args.weights,
        args.vocabulary,
        **arguments.search_settings(args),
      )
      if args.dataset:
        _evaluate(lit, names, prompts, args)
        return 0
      return 1 if _classify(lit, names, prompts, folder_of, args) else 0
