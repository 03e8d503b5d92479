"""The command line of an experiment: a config file, and changes of settings.

  --config=FILE.py:ARGUMENT --config.batch=64 --config.pp.flip

FILE.py is executed, and its function `get_config` is called, with ARGUMENT if
there is one. Each setting of the config then is an argument of its own.
"""

import argparse
import ast
from collections.abc import Callable
from collections.abc import Sequence
import inspect
import os
import re
import runpy
import textwrap
import traceback
from typing import Any
from typing import NoReturn

import ml_collections

from vit_jax import base_config
from vit_jax.commands import arguments

_PREFIX = 'config.'


def split(text: str) -> tuple[str, str]:
  """Returns (path, argument) of 'path.py:argument'; the argument may be ''."""
  stem, colon, argument = text.partition('.py:')
  return (f'{stem}.py', argument) if colon else (text, '')


def load_config(text: str) -> ml_collections.ConfigDict:
  """Returns the config of 'path.py:argument', locked.

  Raises:
    ValueError: there is no such file, or it fails.
  """
  path, argument = split(text)
  if not os.path.isfile(path):
    raise ValueError(f'--config={text}: no such file')
  try:
    get_config = runpy.run_path(path).get('get_config')
    config = get_config and _call(get_config, argument, text)
  except ValueError:
    raise
  except Exception as error:
    raise ValueError(f'--config={text}{_describe(error, path)}') from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(
      f'--config={text}: the file needs a function get_config() that returns a '
      'ConfigDict'
    )
  return config.lock()


def _call(get_config, argument, text):
  """Returns `get_config(argument)`, or `get_config()` for no argument."""
  given = [argument] if argument else []
  try:
    inspect.signature(get_config).bind(*given)
  except TypeError as error:
    raise ValueError(
      f'--config={text}: this config '
      + (
        'takes no argument' if given else 'needs an argument: FILE.py:ARGUMENT'
      )
    ) from error
  return get_config(*given)


def _describe(error, path):
  """Returns ', line 3: NameError: …' for an exception in a config file."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == path
  ]
  where = f', line {lines[-1]}' if lines else ''
  message = textwrap.shorten(str(error), 200, placeholder=' …')
  return f'{where}: {type(error).__name__}: {message}'


class Parser(arguments.Parser):
  """Parses --config, --config.NAME and the arguments that are added."""

  def __init__(self, program: str, description: str):
    super().__init__(
      program,
      description,
      usage='%(prog)s --config=FILE.py[:ARGUMENT] [--config.NAME=VALUE …] '
      '[options]',
    )
    self.add_argument(
      '--config',
      metavar='FILE.py[:ARGUMENT]',
      help='Python file of the experiment, with an argument if it takes one. '
      'With this argument, --help lists all settings',
    )
    self._types = {}

  def parse_args(
    self, args: Sequence[str], namespace: Any = None
  ) -> argparse.Namespace:
    """Returns the arguments; `config` is the ConfigDict with all changes.

    `config_name` is what --config says.
    """
    # absl's flags, which the original code has, may begin with one dash.
    args = [re.sub(r'^-(?=\w\w)(?!\d)', '--', text) for text in args]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.error = self.error
    first.add_argument('--config')
    name = first.parse_known_args(args)[0].config
    if name:
      config = load_config(name)
      self._add_settings(config)
    parsed = super().parse_args(args, namespace)
    if not name:
      self.error(
        '--config is missing, for instance --config=configs/quickstart.py'
      )
    changes = {
      key.removeprefix(_PREFIX): value
      for key, value in vars(parsed).items()
      if key.startswith(_PREFIX)
    }
    config.update_from_flattened_dict(changes)
    parsed.config_name, parsed.config = name, config
    return parsed

  def _add_settings(self, config):
    """Adds an argument for each setting."""
    group = self.add_argument_group('settings of this config')
    self._types = _types(config)
    for name, value in base_config.flatten(config).items():
      kind = self._types[name]
      settings = dict(
        default=argparse.SUPPRESS,
        metavar=kind.__name__.upper(),
        # % starts a placeholder in argparse's help.
        help=repr(value).replace('%', '%%'),
      )
      if kind is bool:
        arguments.add_switch(group, _PREFIX + name, **settings)
        continue
      group.add_argument(
        f'--{_PREFIX}{name}',
        type=_converter(kind),
        action='extend' if kind is tuple else 'store',
        **settings,
      )

  def refuse(self, argument: str) -> NoReturn:
    name = argument.partition('=')[0].lstrip('-').removeprefix('no')
    if self._types and name.startswith(_PREFIX):
      name = name.removeprefix(_PREFIX)
      near = arguments.nearest(name, self._types)
      raise ValueError(
        f'{argument}: there is no setting {name!r}'
        + (
          f'; did you mean {near!r}?'
          if near
          else '. All are in vit_jax/base_config.py'
        )
      )
    if not argument.startswith('-'):
      self.error(
        f'unknown argument {argument!r}: settings are --config.NAME=VALUE'
      )
    super().refuse(argument)


def _types(config):
  """Returns {'pp.crop': int, …} of all settings."""
  types = {}
  for name in config:
    kind = config.get_type(name)
    if issubclass(kind, ml_collections.ConfigDict):
      below = _types(config[name])
      types.update({f'{name}.{key}': value for key, value in below.items()})
    else:
      types[name] = kind
  return types


def _converter(kind: type) -> Callable[[str], Any]:
  """Returns the function from an argument's text to a value of this type."""
  if kind is str:
    return str
  convert, wanted = {
    int: (int, 'a whole number (int)'),
    float: (float, 'a number (float)'),
    tuple: (_tuple, 'a tuple'),
  }.get(kind, (_literal, f'a {kind.__name__}'))

  def convert_or_refuse(text):
    try:
      value = convert(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f'{text!r} is not {wanted}') from error
    if not isinstance(value, object if kind is type(None) else kind):
      raise argparse.ArgumentTypeError(f'{text!r} is not {wanted}')
    return value

  return convert_or_refuse


def _literal(text):
  """Returns the Python value that a text is, or else the text."""
  try:
    return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (ValueError, SyntaxError):
    return text


def _tuple(text):
  """Returns the tuple that a text is: a Python literal, or words and commas."""
  value = _literal(text)
  if value == text:
    value = text.split(',')
  return tuple(value) if isinstance(value, (list, tuple)) else (value,)
