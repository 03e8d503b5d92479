"""The parser of command lines, and the arguments that several commands have."""

import argparse
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import difflib
import re
from typing import Any
from typing import NoReturn
from typing import TYPE_CHECKING

from vit_jax.checkpoint.pretrained import registry
from vit_jax.commands import errors

if TYPE_CHECKING:
  from vit_jax.checkpoint import trained_model


class Parser(argparse.ArgumentParser):
  """Parses a command line; a mistake ends the program with one line."""

  def __init__(self, program: str, description: str, **settings):
    """Makes a parser without arguments.

    Args:
      program: what the user types after `python -m`, such as 'vit_jax predict'.
      description: the text of --help, usually the docstring of the module.
      **settings: of `argparse.ArgumentParser`.
    """
    super().__init__(
      prog=f'python -m {program}',
      description=description,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      **settings,
    )

  def parse_args(
    self, args: Any = None, namespace: Any = None
  ) -> argparse.Namespace:
    """Parses all arguments."""
    return self._complete(*self.parse_known_args(args, namespace))

  def parse_intermixed_args(
    self, args: Any = None, namespace: Any = None
  ) -> argparse.Namespace:
    """The same; positional arguments may also follow options."""
    return self._complete(*self.parse_known_intermixed_args(args, namespace))

  def _complete(self, parsed, unknown):
    if unknown:
      self.refuse(unknown[0])
    return parsed

  def refuse(self, argument: str) -> NoReturn:
    """Ends the program because of an argument that does not exist."""
    near = nearest(argument.partition('=')[0], self._option_string_actions)
    self.error(
      f'unrecognized argument {argument!r}'
      + (f' (did you mean {near}?)' if near else '')
    )

  def error(self, message: str) -> NoReturn:
    errors.exit_with_error(f'{message}; see {self.prog} --help')


def nearest(name: str, names: Iterable[str]) -> str | None:
  """Returns the most similar of `names`; None if none is similar."""
  return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


def number(text: str, least: int = 0) -> int:
  """Returns the whole number that an argument gives."""
  if not text.isdecimal() or int(text) < least:
    raise argparse.ArgumentTypeError(
      f'{text!r} is not a number of {least} or more'
    )
  return int(text)


def positive(text: str) -> int:
  """Returns the number of 1 or more that an argument gives."""
  return number(text, 1)


def boolean(text: str) -> bool:
  """Returns the truth value that an argument gives, in any case of letters."""
  values = {'true': True, 't': True, '1': True}
  values |= {'false': False, 'f': False, '0': False}
  if text.lower() not in values:
    raise argparse.ArgumentTypeError(f'{text!r} is neither true nor false')
  return values[text.lower()]


def add_switch(
  parser: argparse.ArgumentParser, name: str, **settings: Any
) -> None:
  """Adds --NAME, --NAME=true or false, and --noNAME, as absl's flags have it.

  Args:
    parser: a parser, or a group of its arguments.
    name: of the argument, without dashes.
    **settings: of `add_argument`.
  """
  switch = parser.add_argument(
    f'--{name}', dest=name, nargs='?', const=True, type=boolean, **settings
  )
  parser.add_argument(
    f'--no{name}',
    dest=name,
    action='store_const',
    const=False,
    default=switch.default,
    help=argparse.SUPPRESS,
  )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that `load_model` reads."""
  parser.add_argument(
    'weights',
    help='folder of a run; or a file, URL or published name of weights',
  )
  parser.add_argument(
    '--step', type=number, help='checkpoint of a run (default: the newest)'
  )
  parser.add_argument(
    '--model',
    help='name of the architecture, such as b16; needed if the weights do not '
    'determine it',
  )
  parser.add_argument(
    '--image_size',
    type=_image_size,
    metavar='PIXELS or HEIGHTxWIDTH',
    help='size of the images that the model gets (default: as in training)',
  )
  parser.add_argument(
    '--class_names',
    metavar='FILE',
    help='names of the classes: one a line, or a JSON list such as the '
    'class_names.json of a run',
  )
  add_search_arguments(parser)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that `search_settings` reads."""
  parser.add_argument(
    '--pretrained_dir',
    default='.',
    metavar='FOLDER',
    help='folder of downloaded weights, searched first (default: the current '
    'folder)',
  )
  parser.add_argument(
    '--weights_sources',
    type=lambda text: tuple(filter(None, text.split(','))),
    default=registry.SOURCES,
    metavar='SOURCE,…',
    help='where published weights are searched, in this order: prefixes of '
    'URLs, or folders, to which BUCKET/FOLDER/FILE is appended; hf:// stands '
    'for the copies on the Hugging Face Hub (default: '
    + ','.join(registry.SOURCES)
    + ')',
  )


def search_settings(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the arguments `folder` and `sources` of `search.find`."""
  return {'folder': args.pretrained_dir, 'sources': args.weights_sources}


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that name a data set."""
  parser.add_argument(
    '--dataset',
    metavar='FOLDER or NAME',
    help='a folder with sub-folders SPLIT/CLASS/ of images, or the name of a '
    "TFDS data set, or 'digits'",
  )
  parser.add_argument(
    '--tfds_data_dir',
    metavar='FOLDER',
    help='folder of prepared TFDS data sets (default: ~/tensorflow_datasets)',
  )


def add_batch_argument(
  parser: argparse.ArgumentParser, default: int | None = None
) -> None:
  """Adds --batch."""
  parser.add_argument(
    '--batch',
    type=positive,
    default=default,
    metavar='IMAGES',
    help="number of images computed at once (default: 64, or the run's)",
  )


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of commands that print predictions."""
  parser.add_argument(
    '--top',
    type=positive,
    default=5,
    metavar='CLASSES',
    help='number of classes to print for each image (default: 5)',
  )
  parser.add_argument(
    '--json', action='store_true', help='print one JSON object for each image'
  )
  add_batch_argument(parser, default=64)


def load_model(args: argparse.Namespace) -> 'trained_model.TrainedModel':
  """Loads the model that the arguments of `add_model_arguments` name."""
  from vit_jax.checkpoint import metadata
  from vit_jax.checkpoint import trained_model

  return trained_model.load_model(
    args.weights,
    model_name=args.model,
    image_size=args.image_size,
    step=args.step,
    class_names=args.class_names and metadata.class_names_in(args.class_names),
    **search_settings(args),
  )


@contextlib.contextmanager
def in_place_of_settings(arguments: Mapping[str, str]) -> Iterator[None]:
  """Makes messages name a command's arguments in place of settings.

  Args:
    arguments: {name of a setting: argument}, such as {'batch_eval': '--batch'}.

  Raises:
    ValueError: with '--batch=3' in its message for 'config.batch_eval=3'.
  """
  try:
    yield
  except ValueError as error:
    text = re.sub(
      r'(?:--)?config\.(\w+(?:\.\w+)*)',
      lambda match: arguments.get(match[1], match[0]),
      str(error),
    )
    raise ValueError(text) from error


def _image_size(text):
  size = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
  if not size:
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a number of pixels nor HEIGHTxWIDTH'
    )
  return int(size[1]), int(size[2] or size[1])
