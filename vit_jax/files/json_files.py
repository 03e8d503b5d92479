"""JSON files: checked when they are read, and complete when they appear.

A file next to weights or in a run folder may be damaged, or made by a stranger.
`read_json` compares its content with the kinds of values that the reader
expects, so that an error names the file and the key.

A kind is one of:

- a type: `str`, `bool`, `int`, `float` (also integers), `dict`, `list`, or
  `object` for any value; None for null
- `[kind]`: a list of values of this kind
- `{str: kind}`: an object with any keys and values of this kind
- `{'a': kind, 'b?': kind}`: an object that has the key 'a', and may have 'b';
  other keys are not checked
- `(kind, …)`: one of several kinds
"""

import json
import os
from typing import Any

from vit_jax.files import regular_files

_MAX_BYTES = 2**28
_NAMES = {
  str: 'a text',
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  dict: 'an object {…}',
  list: 'a list […]',
  None: 'null',
}


def read_json(path: str, kind: Any = object) -> Any:
  """Returns the value in a JSON file, or None if there is no file.

  Args:
    path: path of the file.
    kind: kind of the value; see the docstring of this module.

  Raises:
    ValueError: the file is damaged, or its value is not of this kind.
  """
  if not os.path.exists(path):
    return None
  regular_files.check(path)
  if os.path.getsize(path) > _MAX_BYTES:
    raise ValueError(
      f'{path} has {os.path.getsize(path)} bytes, more than a JSON file of '
      f'vit_jax ever has ({_MAX_BYTES}). Replace it with an intact copy.'
    )
  try:
    with open(path, encoding='utf-8') as file:
      value = loads(file.read())
  except ValueError as error:  # invalid JSON or invalid UTF-8
    raise ValueError(
      f'{path} is damaged and cannot be read as JSON: {error}. Replace it with '
      'an intact copy.'
    ) from error
  check(value, kind, path)
  return value


def loads(text: str) -> Any:
  """Returns the value of a JSON text; every error is a ValueError."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError('its values are nested too deeply') from None


def check(value: Any, kind: Any, path: str, key: str = '') -> None:
  """Raises ValueError if a value is not of a kind.

  Args:
    value: a value that `json` has read.
    kind: its kind; see the docstring of this module.
    path: path of its file, for the message.
    key: where the value is in the file, such as 'vit_jax.model'.
  """
  if not _is_a(value, kind):
    shown = repr(value) if len(repr(value)) <= 60 else f'{repr(value)[:60]}…'
    raise ValueError(
      f'{path}: {key or "the content"} is {shown}, but must be '
      f'{_describe(kind)}. Repair the file, or use an intact copy.'
    )
  if isinstance(kind, tuple):
    kind = next(x for x in kind if _is_a(value, x))
  if isinstance(kind, list):
    for i, item in enumerate(value):
      check(item, kind[0], path, f'{key}[{i}]')
  elif isinstance(kind, dict):
    prefix = f'{key}.' if key else ''
    for name, inner in kind.items():
      if name is str:
        for own, item in value.items():
          check(item, inner, path, f'{prefix}{own}')
      elif (name := name.removesuffix('?')) in value:
        check(value[name], inner, path, prefix + name)


def _is_a(value, kind):
  """Returns whether a value is of a kind, without the values in it."""
  if isinstance(kind, tuple):
    return any(_is_a(value, x) for x in kind)
  if isinstance(kind, list):
    return isinstance(value, list)
  if isinstance(kind, dict):
    needed = [k for k in kind if k is not str and not k.endswith('?')]
    return isinstance(value, dict) and all(k in value for k in needed)
  if kind is None:
    return value is None
  if isinstance(value, bool):
    return kind in (bool, object)
  return isinstance(value, (int, float) if kind is float else kind)


def _describe(kind):
  """Returns a kind in words, without the kinds of values in it."""
  if isinstance(kind, tuple):
    return ' or '.join(map(_describe, kind))
  if isinstance(kind, dict):
    needed = [k for k in kind if k is not str and not k.endswith('?')]
    return _NAMES[dict] + (f' with {", ".join(needed)}' if needed else '')
  return _NAMES[list if isinstance(kind, list) else kind]


def write_json(path: str, value: Any) -> None:
  """Writes a JSON file, which appears only when it is complete."""
  partial = f'{path}.partial'
  # In JSON, '\\udce9' is an escape: names of files need not be UTF-8.
  with open(partial, 'w', encoding='utf-8', errors='backslashreplace') as file:
    json.dump(value, file, indent=2, ensure_ascii=False)
    file.write('\n')
  os.replace(partial, path)
