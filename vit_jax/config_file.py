"""Reads config files, the Python files of experiments.

  vit_jax.get_config('configs/vit.py:s16')

The file is executed. Its function `get_config` is called, with the text after
'.py:' as argument if there is one.
"""

import inspect
import os
import runpy
import textwrap
import traceback

from ml_collections import ConfigDict

from vit_jax.files import regular_files


def split(config_file: str) -> tuple[str, str]:
  """Returns (path, argument) of 'path.py:argument'; argument may be ''."""
  stem, colon, argument = config_file.partition('.py:')
  return (f'{stem}.py', argument) if colon else (config_file, '')


def get_config(config_file: str) -> ConfigDict:
  """Returns the locked config of 'path.py' or 'path.py:argument'.

  The values of a locked config can be changed: `config.batch = 64`. A name
  that does not exist raises AttributeError.

  Raises:
    ValueError: the file does not exist, its code fails, it has no function
      `get_config`, or this function does not take the argument.
  """
  config_file = os.fspath(config_file)
  path, argument = split(config_file)
  kind = regular_files.other_kind(path)
  if kind:
    raise ValueError(f'config_file={config_file} is {kind}. Use a Python file.')
  if not os.path.isfile(path):
    raise ValueError(
      f'config_file={config_file}: no such file. Use a path such as '
      'configs/quickstart.py'
    )
  try:
    function = runpy.run_path(path).get('get_config')
    config = callable(function) and _call(function, argument, config_file)
  except (Exception, SystemExit) as error:
    if isinstance(error, ValueError) and not _is_a_mistake(error, path):
      raise
    raise ValueError(
      f'config_file={config_file}{_describe(error, path)}'
    ) from error
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f'config_file={config_file}: the file needs a function get_config() that '
      'returns a ConfigDict, such as base_config.get_config()'
    )
  return config.lock()


def _call(function, argument, config_file):
  """Returns `function(argument)`, or `function()` for no argument."""
  args = [argument] if argument else []
  try:
    inspect.signature(function).bind(*args)
  except TypeError as error:
    raise ValueError(
      f'config_file={config_file}: this config '
      + (
        f'takes no argument. Use config_file={split(config_file)[0]}'
        if args
        else f'needs an argument. Use config_file={config_file}:ARGUMENT'
      )
    ) from error
  return function(*args)


def _is_a_mistake(error, path):
  """Returns whether a ValueError was not raised on purpose, as int('64x')."""
  last = traceback.extract_tb(error.__traceback__)[-1]
  return last.filename == path and not last.line.startswith('raise ')


def _describe(error, path):
  """Returns ', line 3: NameError: …' for an error in a config file."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == path
  ]
  where = f', line {lines[-1]}' if lines else ''
  message = textwrap.shorten(str(error), 200, placeholder=' …')
  return f'{where}: {type(error).__name__}: {message}'
