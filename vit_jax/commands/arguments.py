"""Command-line arguments that several commands have."""

import argparse
import re

from vit_jax.checkpoint.pretrained import registry
from vit_jax.commands import errors


class Parser(argparse.ArgumentParser):
  """Arguments of a command whose module docstring is its help."""

  def __init__(self, name, docstring):
    super().__init__(
      prog=f'python -m vit_jax {name}',
      description=docstring,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )

  def error(self, message):
    errors.exit_with_error(f'{message}; see {self.prog} --help')


def positive(text):
  """A number of 1 or more, from an argument."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
  return int(text)


def add_model_arguments(parser):
  """The arguments that say what to load, for `load_model`."""
  parser.add_argument(
    'weights',
    help='the folder of a run, or a file of weights in any published layout',
  )
  parser.add_argument(
    '--step', type=int, help='of a run: that checkpoint, not the newest'
  )
  parser.add_argument(
    '--model',
    help='name of the architecture, such as b16, where the weights do not tell',
  )
  parser.add_argument(
    '--image_size',
    type=_image_size,
    metavar='PIXELS or HEIGHTxWIDTH',
    help="of the model's images, if not as in training",
  )
  parser.add_argument(
    '--class_names',
    metavar='FILE',
    help='names of the classes, one a line, '
    'or a list in JSON such as the class_names.json of a run',
  )
  add_places_arguments(parser)


def add_places_arguments(parser):
  """The arguments that say where published weights are, for `places`."""
  parser.add_argument(
    '--pretrained_dir',
    default='.',
    metavar='FOLDER',
    help='of files of '
    'weights fetched by hand, looked in first (default: this one)',
  )
  parser.add_argument(
    '--weights_sources',
    metavar='SOURCE,…',
    help='where published files are '
    'looked for: starts of URLs, or folders, of BUCKET/FOLDER/FILE; '
    'hf:// stands for the copies on the hub (default: '
    + ','.join(registry.SOURCES)
    + ')',
  )


def places(args):
  """Arguments of `search.find` by those of `add_places_arguments`."""
  sources = registry.SOURCES
  if args.weights_sources is not None:
    sources = tuple(filter(None, args.weights_sources.split(',')))
  return {'folder': args.pretrained_dir, 'sources': sources}


def add_prediction_arguments(parser):
  """The arguments that say what to show of predictions."""
  parser.add_argument(
    '--top',
    type=positive,
    default=5,
    help='classes to tell of each image (default: 5)',
  )
  parser.add_argument(
    '--json', action='store_true', help='a JSON object a line, for programs'
  )
  parser.add_argument(
    '--batch',
    type=positive,
    default=64,
    help='images worked on at a time (default: 64)',
  )


def load_model(args):
  """The `TrainedModel` that arguments of `add_model_arguments` name."""
  from vit_jax.checkpoint import metadata
  from vit_jax.checkpoint import trained_model

  return trained_model.load_model(
    args.weights,
    model_name=args.model,
    image_size=args.image_size,
    step=args.step,
    **places(args),
    class_names=args.class_names and metadata.class_names_in(args.class_names),
  )


def _image_size(text):
  size = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
  if not size:
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a number of pixels nor HEIGHTxWIDTH'
    )
  return int(size[1]), int(size[2] or size[1])
