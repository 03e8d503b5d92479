"""The parser of command lines, and arguments that several commands share."""

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import difflib
import re
import shutil
from typing import Any
from typing import NoReturn
from typing import TYPE_CHECKING

from vit_jax.checkpoint.pretrained import registry
from vit_jax.commands import errors

if TYPE_CHECKING:
  from vit_jax.checkpoint import trained_model

LESS_MEMORY = 'A smaller --batch needs less memory.'  # if memory is exhausted
_EXIT_STATUS = 'Exit status:'


class Parser(argparse.ArgumentParser):
  """Parses a command line; a mistake ends the program with one line.

  Attributes:
    flags: {name: flag} for `errors.exit_on_error`. A name is a Python argument
      or a setting that a message of a library may contain.
  """

  def __init__(self, program: str, usage: str, page: str):
    """Makes a parser without arguments.

    Args:
      program: text after `python -m`, such as 'vit_jax predict'.
      usage: arguments in the first line of --help, such as 'WEIGHTS [options]'.
      page: text of --help, usually the docstring of the module. Its section
        'Exit status:' is printed after the options.
    """
    page, title, status = page.partition(_EXIT_STATUS)
    super().__init__(
      prog=f'python -m {program}',
      usage=f'%(prog)s {usage}',
      description=page.strip(),
      epilog=title + status.rstrip(),
      allow_abbrev=False,
      add_help=False,
      formatter_class=HelpFormatter,
    )
    # --help is not listed in its own output.
    self.add_argument('-h', '--help', action='help', help=argparse.SUPPRESS)
    self.flags: dict[str, str] = {}
    self._titles: dict[str, argparse._ArgumentGroup] = {}

  def group(self, title: str) -> argparse._ArgumentGroup:
    """Returns the group of arguments with this title in --help."""
    if title not in self._titles:
      self._titles[title] = self.add_argument_group(title)
    return self._titles[title]

  def add(
    self, title: str, flag: str, *, names: Sequence[str] = (), **settings: Any
  ) -> None:
    """Adds an argument.

    Args:
      title: title of the argument's group in --help.
      flag: such as '--step', or 'weights' for a positional argument.
      names: names of the argument in messages of libraries; see `flags`.
      **settings: keyword arguments of `argparse.ArgumentParser.add_argument`.
    """
    argument = self.group(title).add_argument(flag, **settings)
    shown = flag if argument.option_strings else argument.metavar
    self.flags.update(dict.fromkeys(names, shown))

  def parse_args(
    self, args: Any = None, namespace: Any = None
  ) -> argparse.Namespace:
    """Parses all arguments."""
    return self._complete(*self.parse_known_args(args, namespace))

  def parse_intermixed_args(
    self, args: Any = None, namespace: Any = None
  ) -> argparse.Namespace:
    """Parses all arguments; positional arguments may also follow options."""
    return self._complete(*self.parse_known_intermixed_args(args, namespace))

  def _complete(self, parsed, unknown):
    if unknown:
      self.refuse(unknown[0])
    return parsed

  def refuse(self, argument: str) -> NoReturn:
    """Ends the program because an argument does not exist."""
    near = nearest(argument.partition('=')[0], self._option_string_actions)
    self.error(
      f'unrecognized argument {argument!r}'
      + (f' (did you mean {near}?)' if near else '')
    )

  def error(self, message: str) -> NoReturn:
    errors.exit_with_error(f'{message}; see {self.prog} --help')


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
  """Formats --help: at most 80 columns, titles with a capital letter."""

  def __init__(self, prog, max_help_position=27):
    width = min(80, shutil.get_terminal_size().columns)
    super().__init__(prog, max_help_position=max_help_position, width=width)

  def add_usage(
    self,
    usage: str | None,
    actions: Iterable[argparse.Action],
    groups: Iterable[Any],
    prefix: str | None = 'Usage: ',
  ) -> None:
    """Adds the usage with a title like those of the groups."""
    super().add_usage(usage, actions, groups, prefix)


def nearest(name: str, names: Iterable[str]) -> str | None:
  """Returns the most similar of `names`, or None if none is similar."""
  return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


def number(text: str, least: int = 0) -> int:
  """Returns an argument's integer, which is at least `least`."""
  if not text.isdecimal() or int(text) < least:
    raise argparse.ArgumentTypeError(
      f'{text!r} is not an integer of {least} or more'
    )
  return int(text)


def positive(text: str) -> int:
  """Returns an argument's integer, which is at least 1."""
  return number(text, 1)


def boolean(text: str) -> bool:
  """Returns an argument's boolean; letters may be upper or lower case."""
  values = {'true': True, 't': True, '1': True}
  values |= {'false': False, 'f': False, '0': False}
  if text.lower() not in values:
    raise argparse.ArgumentTypeError(f'{text!r} is neither true nor false')
  return values[text.lower()]


def add_switch(
  group: argparse._ArgumentGroup, name: str, **settings: Any
) -> None:
  """Adds --NAME, --NAME=true or false, and --noNAME, as absl's flags do.

  Args:
    group: from `Parser.group`.
    name: name of the argument, without dashes.
    **settings: keyword arguments of `add_argument`.
  """
  switch = group.add_argument(
    f'--{name}', dest=name, nargs='?', const=True, type=boolean, **settings
  )
  group.add_argument(
    f'--no{name}',
    dest=name,
    action='store_const',
    const=False,
    default=switch.default,
    help=argparse.SUPPRESS,
  )


def add_weights_argument(parser: Parser) -> None:
  """Adds the positional argument WEIGHTS."""
  parser.add(
    'Arguments',
    'weights',
    names=('config.pretrained',),
    metavar='WEIGHTS',
    help='run folder, or weights file: path, URL or published name (.npz, '
    '.safetensors)',
  )


def add_model_arguments(parser: Parser) -> None:
  """Adds the options that `load_model` reads."""
  parser.add(
    'Model',
    '--step',
    names=('step',),
    type=number,
    metavar='N',
    help='checkpoint step, if WEIGHTS is a run folder (default: the newest)',
  )
  parser.add(
    'Model',
    '--model',
    names=('model_name', 'config.model.name'),
    metavar='NAME',
    help='architecture, such as b16 (default: detected from the weights)',
  )
  parser.add(
    'Model',
    '--image_size',
    names=('image_size', 'config.pp.crop'),
    type=_image_size,
    metavar='SIZE',
    help="size of the model's images in pixels: 224, or HEIGHTxWIDTH such as "
    '224x320 (default: as in training)',
  )
  add_class_names_argument(parser, '--class_names', names=('class_names',))


def add_class_names_argument(
  parser: Parser, flag: str, title: str = 'Model', names: Sequence[str] = ()
) -> None:
  """Adds an option for a file of class names; see `Parser.add`."""
  parser.add(
    title,
    flag,
    names=names,
    metavar='FILE',
    help='file of class names: one per line, or a JSON list such as the '
    'class_names.json of a run',
  )


def add_search_arguments(parser: Parser) -> None:
  """Adds the options that `search_settings` reads."""
  title = 'Where weights are searched'
  parser.add(
    title,
    '--pretrained_dir',
    names=('folder', 'pretrained_dir', 'config.pretrained_dir'),
    default='.',
    metavar='DIR',
    help='folder of downloaded weights, searched first (default: the current '
    'folder)',
  )
  parser.add(
    title,
    '--weights_sources',
    names=('sources', 'weights_sources', 'config.weights_sources'),
    type=lambda text: tuple(filter(None, text.split(','))),
    default=registry.SOURCES,
    metavar='LIST',
    help='sources of published weights, separated by commas: URL prefixes or '
    'folders, to which BUCKET/FOLDER/FILE is appended. hf:// is the Hugging '
    'Face Hub (default: ' + ','.join(registry.SOURCES) + ')',
  )


def search_settings(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the arguments `folder` and `sources` of `search.find`."""
  return {'folder': args.pretrained_dir, 'sources': args.weights_sources}


def add_dataset_arguments(
  parser: Parser, split_flag: str, split_default: str
) -> None:
  """Adds the options that select a dataset and its split.

  Args:
    parser: the parser.
    split_flag: name of the option for the split.
    split_default: description of its default.
  """
  parser.add(
    'Data',
    '--dataset',
    names=('dataset', 'config.dataset'),
    metavar='DATA',
    help='folder with images in SPLIT/CLASS/, name of a TFDS dataset, or '
    "'digits'",
  )
  parser.add(
    'Data',
    split_flag,
    names=('config.test_split',),
    metavar='SPLIT',
    help=f'TFDS split, or name of a sub-folder (default: {split_default})',
  )
  parser.add(
    'Data',
    '--tfds_data_dir',
    names=('tfds_data_dir', 'config.tfds_data_dir'),
    metavar='DIR',
    help='folder of prepared TFDS datasets (default: ~/tensorflow_datasets)',
  )


def add_batch_argument(parser: Parser, default: int | None = 64) -> None:
  """Adds --batch; if `default` is None, the run's value or 64 is used."""
  described = '64' if default else "the run's, or 64"
  parser.add(
    'Memory',
    '--batch',
    names=('batch', 'config.batch_eval'),
    type=positive,
    default=default,
    metavar='N',
    help=f'images per batch; fewer need less memory (default: {described})',
  )


def add_prediction_arguments(parser: Parser) -> None:
  """Adds the output options of commands that print predictions."""
  parser.add(
    'Output',
    '--top',
    names=('top',),
    type=positive,
    default=5,
    metavar='N',
    help='number of classes to print for each image (default: 5)',
  )
  parser.add(
    'Output',
    '--json',
    action='store_true',
    help='print one line with a JSON object for each image',
  )


def load_model(args: argparse.Namespace) -> 'trained_model.TrainedModel':
  """Loads the model that WEIGHTS and the model options select."""
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


def _image_size(text):
  size = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
  if not size:
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a number of pixels nor HEIGHTxWIDTH'
    )
  return int(size[1]), int(size[2] or size[1])
