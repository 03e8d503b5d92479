"""Loads experiment files, such as `configs/quickstart.py`."""

import inspect
import os
import runpy
import textwrap
import traceback

import ml_collections


def split(text: str) -> tuple[str, str]:
  """Returns (path, argument) of 'path.py:argument'; argument may be ''."""
  stem, colon, argument = text.partition('.py:')
  return (f'{stem}.py', argument) if colon else (text, '')


def get_config(text: str) -> ml_collections.ConfigDict:
  """Returns the settings of an experiment file, to change or to train with.

  Args:
    text: path of a Python file with a function `get_config`, such as
      'configs/quickstart.py', or 'configs/vit.py:b16,cifar10' with an argument.

  Raises:
    ValueError: the file does not exist, or its code fails.
  """
  path, argument = split(text)
  if not os.path.isfile(path):
    raise ValueError(
      f'config={text}: no such file. Use a path such as configs/quickstart.py.'
    )
  try:
    make_config = runpy.run_path(path).get('get_config')
    config = make_config and _call(make_config, argument, text)
  except ValueError:
    raise
  except Exception as error:
    raise ValueError(f'config={text}{_describe(error, path)}') from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(
      f'config={text}: the file needs a function get_config() that returns a '
      'ConfigDict, such as base_config.get_config().'
    )
  return config.lock()


def _call(make_config, argument, text):
  """Returns `make_config(argument)`, or `make_config()` for no argument."""
  args = [argument] if argument else []
  try:
    inspect.signature(make_config).bind(*args)
  except TypeError as error:
    raise ValueError(
      f'config={text}: this config '
      + (
        f'takes no argument. Use config={split(text)[0]}.'
        if args
        else f'needs an argument. Use config={text}:ARGUMENT.'
      )
    ) from error
  return make_config(*args)


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
