"""Classifies images with LiT by class names, without training.

Examples:
  Print the most likely class names of each image:
    python -m vit_jax zero_shot LiT-B16B *.jpg --classes=cat,dog,'fire truck'
  Measure the accuracy on the test split of a TFDS dataset:
    python -m vit_jax zero_shot LiT-B16B --dataset=cifar100
  Average the embeddings of two prompts for each class of a folder:
    python -m vit_jax zero_shot LiT-L16L --dataset=photos/ \\
      --prompt='a photo of a {}.' --prompt='a drawing of a {}.'

The weights MODEL.npz and the vocabulary are downloaded unless they are in
--pretrained_dir. The vocabulary is MODEL.txt; for LiT-L16S and LiT-L16Ti, it is
MODEL.model. The tokenizer needs the library tensorflow-text:
  pip install -e '.[text]'

--captions=FILE measures retrieval in a folder of images: recall at 1, 5 and 10,
from images to captions and from captions to images. FILE is a table (.csv, .tsv
or .jsonl) with the columns file and caption. An image can have several rows.

With --json, the output has one line for each image:
  {"file": …, "top": [{"class": …, "name": …, "probability": …}, …]}
"class" is the position in the list of names. For a dataset or captions, the
output is one JSON object.

Exit status:
  0  all images were classified
  1  some images could not be decoded and are skipped, or an unexpected error
  2  a wrong argument or file, or missing data
"""

from collections.abc import Sequence
import json

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
  parser.add(
    'Model',
    '--vocabulary',
    names=('vocabulary',),
    metavar='FILE',
    help='.txt or .model file of the tokenizer (default: the file next to the '
    'weights, or else the published file)',
  )
  parser.add(
    'Classes',
    '--classes',
    names=('class_names', 'names'),
    metavar='LIST',
    help="class names, separated by commas, or 'imagenet' for ImageNet's 1000 "
    'classes (default: the classes of --dataset)',
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
  parser.add(
    'Retrieval',
    '--captions',
    names=('captions',),
    metavar='FILE',
    help='table of captions of the images in a folder: measure retrieval',
  )
  arguments.add_dataset_arguments(parser, '--test_split', 'test')
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
  """Raises ValueError for mistakes that are visible without model and data."""
  if bool(args.dataset) == bool(args.images):
    raise ValueError(
      'There is nothing to classify. Use image files, folders or --dataset=….'
      if not args.images
      else '--dataset and images cannot be combined. Use one of them.'
    )
  if args.captions:
    if names is not None or len(args.images) != 1:
      raise ValueError(
        '--captions needs exactly one folder of images, and no class names.'
      )
    return
  if args.images and names is None:
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


def _retrieve(lit, args):
  """Prints the recall of the captions of a folder."""
  from vit_jax.data.folders.labels import captions
  from vit_jax.evaluators.metrics import retrieval
  from vit_jax.inference import lit_embeddings

  paths, texts, owners = captions.read(args.images[0], args.captions)
  found = retrieval.measure(
    lit_embeddings.embed_images(lit, paths, args.batch),
    lit_embeddings.embed_texts(lit, texts),
    owners,
  )
  found |= {'images': len(paths), 'captions': len(texts)}
  if args.json:
    print(json.dumps(found))
    return
  for name, value in found.items():
    print(f'{name}  {value:.6g}')


def _evaluate(lit, names, prompts, args):
  """Prints accuracy and loss over the test split of --dataset."""
  from vit_jax.commands.output import lit_accuracy

  settings = {
    'test_split': args.test_split,
    'tfds_data_dir': args.tfds_data_dir,
    'batch_eval': args.batch,
  }
  config = lit_accuracy.dataset_config(
    args.dataset, **{name: x for name, x in settings.items() if x}
  )
  metrics = lit_accuracy.evaluate_dataset(lit, config, names, prompts)
  if args.json:
    print(json.dumps({'dataset': args.dataset, **metrics}))
  else:
    print(
      f'{args.dataset}: accuracy {100 * metrics["accuracy"]:.2f} % on '
      f'{metrics["count"]} test images, loss {metrics["loss"]:.4f}'
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Classifies images or evaluates a dataset; returns the exit status."""
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
    if names is not None:
      lit_classifier.check_classes(names, prompts)
    folder_of = {} if args.captions else classify.find_images(args.images)
    with numerics.fixed():
      lit = lit_embeddings.load(
        args.model,
        args.weights,
        args.vocabulary,
        **arguments.search_settings(args),
      )
      if args.captions:
        _retrieve(lit, args)
        return 0
      if args.dataset:
        _evaluate(lit, names, prompts, args)
        return 0
      return 1 if _classify(lit, names, prompts, folder_of, args) else 0
