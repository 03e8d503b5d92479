"""Classifies images with LiT by class names, without training.

Examples:
  Print the most likely class names of each image:
    python -m vit_jax zero_shot LiT-B16B *.jpg --classes=cat,dog,'fire truck'
  Average the embeddings of two prompts for each class:
    python -m vit_jax zero_shot LiT-L16L photos/ --classes=cat,dog \\
      --prompt='a photo of a {}.' --prompt='a drawing of a {}.'
  Use a weights file, and the 1000 classes of ImageNet:
    python -m vit_jax zero_shot LiT-B16B photo.jpg --classes=imagenet \\
      --weights=LiT-B16B.npz

The weights MODEL.npz and the vocabulary are downloaded unless they are in
--pretrained_dir. The vocabulary is MODEL.txt; for LiT-L16S and LiT-L16Ti, it is
MODEL.model. The tokenizer needs the library tensorflow-text:
  pip install -e '.[text]'

With --json, the output has one line for each image:
  {"file": …, "top": [{"class": …, "name": …, "probability": …}, …]}
"class" is the position in the list of names.

The accuracy on a dataset, and retrieval of captions, are measured by
  python -m vit_jax evaluate LiT-B16B --with=zero_shot,retrieval

Exit status:
  0    all images were classified
  1    some images could not be decoded and are skipped, or an unexpected error
  2    a wrong argument or file, or missing data
  130  Ctrl-C interrupted the command
"""

from collections.abc import Sequence

from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands.output import print_predictions
from vit_jax.commands.parsing import command_line
from vit_jax.data import class_names


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser(
    'vit_jax zero_shot', 'MODEL [IMAGE…] [options]', __doc__
  )
  parser.add(
    'Arguments',
    'model',
    names=('model_name', 'config.model.name'),
    metavar='MODEL',
    help='name of a LiT model: LiT-B16B, LiT-L16L, …',
  )
  parser.add(
    'Arguments',
    'images',
    nargs='*',
    default=[],  # otherwise an error lists IMAGE as required
    metavar='IMAGE',
    help='image file, or folder: all images in it and in its sub-folders',
  )
  parser.add(
    'Model',
    '--weights',
    names=('weights', 'config.pretrained'),
    metavar='FILE',
    help="path, URL or name of a weights file (default: MODEL's file)",
  )
  arguments.add_vocabulary_argument(parser)
  parser.add(
    'Classes',
    '--classes',
    names=('class_names', 'names'),
    metavar='LIST',
    help="class names, separated by commas, or 'imagenet' for ImageNet's 1000 "
    'classes',
  )
  arguments.add_class_names_argument(parser, '--classes_file', 'Classes')
  parser.add(
    'Classes',
    '--prompt',
    names=('prompts',),
    action='append',
    metavar='TEXT',
    help='text with {} in the place of the class name. Several --prompt '
    'options: the mean of their embeddings represents the class (default: '
    "'a photo of a {}.')",
  )
  arguments.add_batch_argument(parser)
  arguments.add_prediction_arguments(parser)
  arguments.add_search_arguments(parser)
  return parser


def _names(args):
  """Returns the class names of --classes or --classes_file, or None."""
  if args.classes is not None and args.classes_file is not None:
    raise ValueError(
      '--classes and --classes_file cannot be combined. Use one of them.'
    )
  if args.classes_file is not None:
    from vit_jax.checkpoint import metadata

    return metadata.class_names_in(args.classes_file)
  if args.classes is None:
    return None
  if not args.classes.strip():
    raise ValueError(
      "--classes='' contains no class name. Use names separated by commas."
    )
  if args.classes == 'imagenet':
    return class_names.imagenet(1000)
  return [name.strip() for name in args.classes.split(',')]


def _check(args, names):
  """Raises ValueError for mistakes that are visible without the model."""
  if not args.images:
    raise ValueError(
      'There is nothing to classify. Use image files or folders. To measure '
      'the accuracy on a dataset, use vit_jax evaluate --with=zero_shot.'
    )
  if names is None:
    raise ValueError(
      'There are no class names. Use a list such as '
      "--classes=cat,dog,'fire truck'."
    )


def _classify(lit, names, prompts, folder_of, args):
  """Prints predictions; returns the number of images that are not decodable."""
  from vit_jax.inference import classify
  from vit_jax.inference import lit_classifier

  trained = lit_classifier.make_trained_model(lit, names, prompts)
  found = classify.classify(
    trained,
    list(folder_of),
    prepare=trained.prepare,
    top=args.top,
    batch=args.batch,
  )
  return print_predictions.show(found, trained, folder_of, args.json, args.out)


def main(argv: Sequence[str] | None = None) -> int:
  """Classifies images and returns the exit status."""
  parser = make_parser()
  # Images may follow options: `MODEL --classes=cat,dog IMAGE`.
  args = parser.parse_intermixed_args(argv)
  with errors.exit_on_error(memory=arguments.LESS_MEMORY, flags=parser.flags):
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
    lit_classifier.check_classes(names, prompts)
    folder_of = classify.find_images(args.images)
    with numerics.fixed():
      lit = lit_embeddings.load(
        args.model,
        args.weights,
        args.vocabulary,
        **arguments.search_settings(args),
      )
      return 1 if _classify(lit, names, prompts, folder_of, args) else 0
