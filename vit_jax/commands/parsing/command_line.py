"""The parser of command lines: help pages, types of arguments, the folder."""

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import difflib
import os
import re
import shutil
import tempfile
from typing import Any
from typing import NoReturn

from vit_jax.commands import errors

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
    """Adds the usage; its title starts with a capital letter."""
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


def default_workdir(name: str) -> str:
  """Returns 'workdirs/vit-b16-cifar10' for the name 'vit-b16,cifar10'."""
  return os.path.join('workdirs', re.sub(r'[^\w.+-]+', '-', name).strip('-'))


def make_folder(path: str, flag: str = '--workdir') -> str:
  """Creates a folder unless it exists, and returns its path.

  Args:
    path: path of the folder.
    flag: the flag that gave the path, for messages.

  Raises:
    ValueError: the folder cannot be created, or files cannot be written to it.
  """
  path = os.path.expanduser(path)
  try:
    os.makedirs(path, exist_ok=True)
    tempfile.TemporaryFile(dir=path).close()
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path
    reason = getattr(error, 'strerror', None) or error
    if isinstance(error, FileExistsError):
      reason = 'it is a file, not a folder'
      if os.path.islink(path):
        reason = f'it is a link to {os.readlink(path)}, which is no folder'
    raise ValueError(
      f'{flag}={path} cannot be written: {reason}. Choose another folder.'
    ) from error
  return path
