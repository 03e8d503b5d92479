"""The command line of an experiment: a config file and changed settings.

  --config=FILE.py:ARGUMENT --config.batch=64 --config.pp.flip

`config_file.get_config` reads the file. Then each setting of the config is an
option.
"""

import argparse
import ast
from collections.abc import Callable
from collections.abc import Sequence
import functools
import inspect
import re
from typing import Any
from typing import NoReturn

import ml_collections

from vit_jax import base_config
from vit_jax import config_file
from vit_jax.commands.parsing import command_line
from vit_jax.evaluators import options

_PREFIX = 'config.'
_EVALUATORS = 'Evaluators, each with a name of yours (docs/evaluation.md)'
_METAVARS = {bool: 'BOOL', float: 'FLOAT', int: 'INT', str: 'TEXT'}
_METAVARS[tuple] = 'LIST'


class Parser(command_line.Parser):
  """Parses --config, --config.NAME and the options that are added."""

  def __init__(self, program: str, page: str):
    super().__init__(
      program, '--config=FILE [--config.NAME=VALUE …] [options]', page
    )
    self.add(
      'Run',
      '--config',
      names=('config_file',),
      metavar='FILE',
      help='Python file of the experiment, or FILE:ARGUMENT if the file takes '
      'an argument. Together with --help, it lists all settings',
    )
    self._types = {}
    names = list(base_config.flatten(base_config.get_config()))
    names += {name.partition('.')[0] for name in names if '.' in name}
    self.flags.update({_PREFIX + x: f'--{_PREFIX}{x}' for x in names})

  def parse_args(
    self, args: Sequence[str], namespace: Any = None
  ) -> argparse.Namespace:
    """Returns the arguments, with `config` and `config_name`.

    `config` is the ConfigDict with all changes. `config_name` is the value of
    --config.
    """
    # The original code uses absl, in which flags may start with one dash.
    args = [re.sub(r'^-(?=\w\w)(?!\d)', '--', text) for text in args]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.error = self.error
    first.add_argument('--config')
    name = first.parse_known_args(args)[0].config
    if name:
      config = config_file.get_config(name)
      _add_evaluators(config, args)
      self._add_settings(config)
      if {'-h', '--help'} & {*args} and 'evaluators' in config:
        self._list_evaluators()
    parsed = super().parse_args(args, namespace)
    if not name:
      self.error(
        '--config is missing: use, for instance, --config=configs/quickstart.py'
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
    """Adds an option for each setting, in the groups of `base_config`."""
    self.formatter_class = functools.partial(
      command_line.HelpFormatter, max_help_position=8
    )
    self._types = _types(config)
    values = base_config.flatten(config)
    optional = _optional(config) | _optional(base_config.get_config())
    meanings = describe_settings()
    for name in sorted(values, key=[*meanings, *values].index):
      title, meaning = meanings.get(name, ('other settings', ''))
      if re.fullmatch(r'evaluators\.\w+\.\w+', name):
        title, option = _EVALUATORS, name.rpartition('.')[2]
        meaning = (options.SETTINGS | options.MEANINGS)[option]
      group = self.group(title[0].upper() + title[1:])
      kind = self._types[name]
      if values[name] is not None:
        meaning += f' (default: {values[name]!r})'
      settings = dict(
        default=argparse.SUPPRESS,
        metavar=_METAVARS.get(kind, 'VALUE'),
        # % starts a placeholder in argparse's help.
        help=meaning.replace('%', '%%'),
      )
      if kind is bool:
        command_line.add_switch(group, _PREFIX + name, **settings)
        continue
      group.add_argument(
        f'--{_PREFIX}{name}',
        type=_converter(kind, name in optional),
        action=_Extend if kind is tuple else 'store',
        **settings,
      )

  def _list_evaluators(self):
    """Adds options to the help page for an evaluator with the name NAME."""
    rows = [(x, meaning, '') for x, meaning in options.SETTINGS.items()]
    rows += [
      (x, f'{kind}: {options.MEANINGS[x]}', value)
      for kind, defaults in options.TYPES.items()
      for x, value in defaults.items()
    ]
    for name, meaning, value in rows:
      if value != '':
        meaning += f' (default: {value!r})'
      self.group(_EVALUATORS).add_argument(
        f'--{_PREFIX}evaluators.NAME.{name}',
        default=argparse.SUPPRESS,
        metavar=_METAVARS[type(value)] if name != 'every' else 'INT',
        help=meaning,
      )

  def refuse(self, argument: str) -> NoReturn:
    name = argument.partition('=')[0].lstrip('-').removeprefix('no')
    if self._types and name.startswith(_PREFIX):
      name = name.removeprefix(_PREFIX)
      near = command_line.nearest(name, self._types)
      raise ValueError(
        f'{argument}: there is no setting {name!r}'
        + (
          f'; did you mean {near!r}?'
          if near
          else '. All settings are in vit_jax/base_config.py.'
        )
      )
    if not argument.startswith('-'):
      self.error(
        f'unknown argument {argument!r}: change settings with '
        '--config.NAME=VALUE'
      )
    super().refuse(argument)


def _add_evaluators(config: ml_collections.ConfigDict, args: list[str]) -> None:
  """Adds the evaluators of arguments --config.evaluators.NAME.type=TYPE."""
  flag = r'--config\.evaluators\.(\w+)\.type'
  text = '\n'.join(args)
  for name, kind in re.findall(rf'^{flag}[=\n](.*)$', text, re.MULTILINE):
    base_config.add_evaluator(config, name, kind)


def add_model_settings(parser: command_line.Parser) -> None:
  """Adds --config.model.NAME for each setting of a model.

  The settings are not listed in --help, because few weights need them. An error
  lists those that are needed.
  """
  prefix = 'model.'
  base = base_config.get_config()
  names, types = base_config.flatten(base), _types(base)
  parser.group('Model').description = (
    '  --config.model.SETTING=VALUE gives a setting that the weights do not\n'
    '  contain; see docs/interoperability.md.'
  )
  for name in names:
    if name.startswith(prefix) and name != 'model.name':
      flag = f'--{_PREFIX}{name}'
      parser.add(
        'Model',
        flag,
        names=(_PREFIX + name,),
        type=command_line.boolean
        if types[name] is bool
        else _converter(types[name], name in _optional(base)),
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
      )


def given_model_settings(parsed: argparse.Namespace) -> dict[str, Any]:
  """Returns {setting: value} of the options of `add_model_settings`."""
  prefix = f'{_PREFIX}model.'
  return {
    name.removeprefix(prefix): value
    for name, value in vars(parsed).items()
    if name.startswith(prefix)
  }


def add_evaluator_options(parser: command_line.Parser) -> None:
  """Adds --with, and --TYPE.OPTION for each option of an evaluator."""
  title = 'Evaluators'
  parser.add(
    title,
    '--with',
    dest='evaluators',
    default=(),
    type=_evaluator_types,
    metavar='LIST',
    help=f'what to measure: {", ".join(options.TYPES)}; several types are '
    'separated by commas (default: the metrics of the task)',
  )
  for kind, defaults in options.TYPES.items():
    for name, value in defaults.items():
      parser.add(
        title,
        f'--{kind}.{name}',
        names=(name, f'config.evaluators.{kind}.{name}'),
        type=_converter(type(value)),
        metavar=_METAVARS[type(value)],
        help=options.MEANINGS[name]
        + (f' (default: {_shown(value)})' if value != '' else ''),
      )


def _shown(value):
  return ', '.join(map(str, value)) if isinstance(value, tuple) else value


def _evaluator_types(text):
  kinds = tuple(filter(None, text.split(',')))
  try:
    for kind in kinds:
      options.defaults(kind)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return kinds


def add_evaluators(
  parsed: argparse.Namespace, config: ml_collections.ConfigDict
) -> None:
  """Adds the evaluators of --with to a config, with their options.

  Raises:
    ValueError: an option of another evaluator is given.
  """
  given = {
    tuple(key.split('.')): value
    for key, value in vars(parsed).items()
    if key.partition('.')[0] in options.TYPES and value is not None
  }
  for kind, name in given:
    if kind not in parsed.evaluators:
      raise ValueError(f'--{kind}.{name} is only used with --with={kind}')
  for kind in parsed.evaluators:
    changes = {name: x for (of, name), x in given.items() if of == kind}
    base_config.add_evaluator(config, kind, kind, **changes)


def describe_settings() -> dict[str, tuple[str, str]]:
  """Returns {'pp.crop': (title of the group, meaning), …} of all settings.

  Titles and meanings are comments in `base_config.get_config`. A line
  '# --- TITLE' starts a group. The meaning of a setting is the comment above it
  and after it.
  """
  meanings, title, comments = {}, '', []
  for line in inspect.getsource(base_config.get_config).splitlines():
    code, _, comment = line.partition('# ')
    setting = re.match(r'  (\w+\.\w+) = ', code)
    if comment.startswith('--- '):
      title, comments = comment.strip('- '), []
    elif setting and not code.endswith('ConfigDict()'):
      meaning = ' '.join([*comments, comment]).strip()
      meanings[setting[1].removeprefix(_PREFIX)] = title, meaning
      comments = []
    elif comment:
      comments.append(comment)
  return meanings


def _types(config):
  """Returns {'pp.crop': int, …}, the type of each setting."""
  types = {}
  for name in config:
    kind = config.get_type(name)
    if issubclass(kind, ml_collections.ConfigDict):
      below = _types(config[name])
      types.update({f'{name}.{key}': value for key, value in below.items()})
    else:
      types[name] = kind
  return types


def _optional(config):
  """Returns the names of the settings that are None."""
  values = base_config.flatten(config)
  return {name for name, value in values.items() if value is None}


class _Extend(argparse.Action):
  """Adds a tuple to the tuples of earlier options; None replaces them."""

  def __call__(self, parser, namespace, values, option_string=None):
    before = getattr(namespace, self.dest, None) or ()
    value = None if values is None else (*before, *values)
    setattr(namespace, self.dest, value)


def _converter(kind: type, optional: bool = False) -> Callable[[str], Any]:
  """Returns the function that converts an argument's text to this type.

  Args:
    kind: type of the setting.
    optional: whether the text 'None' means None.
  """
  if kind is str:
    return lambda text: None if optional and text == 'None' else text
  convert, expected = {
    int: (int, 'an integer'),
    float: (float, 'a number'),
    tuple: (_tuple, 'a tuple'),
  }.get(kind, (_literal, f'a {kind.__name__}'))

  def convert_or_refuse(text):
    if optional and text == 'None':
      return None
    try:
      value = convert(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f'{text!r} is not {expected}') from error
    if not isinstance(value, object if kind is type(None) else kind):
      raise argparse.ArgumentTypeError(f'{text!r} is not {expected}')
    return value

  return convert_or_refuse


def _literal(text):
  """Returns the value of a Python literal, or the text if it is no literal."""
  try:
    return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def _tuple(text):
  """Returns the tuple of a Python literal, or of words between commas."""
  value = _literal(text)
  if value == text or isinstance(value, dict):  # a prompt can be '{}'
    value = text.split(',')
  return tuple(value) if isinstance(value, (list, tuple)) else (value,)
