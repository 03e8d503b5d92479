"""Fingerprints of the caller's Python objects, to recognize them later.

A fingerprint describes what an object computes: the compiled code of functions,
the values they capture, their arguments of `functools.partial`, and the
functions and constants they use from the caller's own modules. Comments and
formatting do not matter. Functions of installed libraries count by name.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
import types
from typing import Any

import jax
import numpy as np

_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(
  os.path.join(os.path.realpath(folder), '')
  for folder in (
    *(_PATHS[name] for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')),
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
  )
)
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type(...))


def name_of(thing: Any) -> str:
  """Returns a readable name: 'losses.smooth', or the name of a class."""
  thing = inspect.unwrap(thing) if callable(thing) else thing
  if isinstance(thing, functools.partial):
    return name_of(thing.func)
  if isinstance(thing, types.MethodType):
    return f'{name_of(type(thing.__self__))}.{thing.__name__}'
  if not hasattr(thing, '__qualname__'):
    thing = type(thing)
  return f'{thing.__module__}.{thing.__qualname__}'


def describe(thing: Any) -> dict[str, Any]:
  """Returns the name and the fingerprint of an object, as a dict for JSON.

  If the object has an attribute `fingerprint`, a text, only this text counts.
  The dict has `parts`: {part of the object: hash}, so that a later comparison
  can name the parts that differ. Bytecode depends on the version of Python, so
  the version is stored, too.
  """
  own = getattr(thing, 'fingerprint', None)
  if isinstance(own, str):
    return {'name': name_of(thing), 'fingerprint': own}
  hashes = {}
  for path, text in _walk(thing, '', {}):
    hashes.setdefault(path, hashlib.sha256()).update(text + b'\0')
  return {
    'name': name_of(thing),
    'python': '{}.{}'.format(*sys.version_info),
    'parts': {path: found.hexdigest()[:16] for path, found in hashes.items()},
  }


def difference(
  before: dict[str, Any] | None, now: dict[str, Any] | None
) -> str:
  """Returns how two results of `describe` differ; '' if they are equal.

  None stands for an object that was not given.
  """
  if before is None or now is None:
    if before == now:
      return ''
    return (
      f'{before["name"] if before else "not given"} in the folder, '
      f'{now["name"] if now else "not given"} now'
    )
  texts = [found.get('fingerprint') for found in (before, now)]
  if any(texts):
    if texts[0] == texts[1]:
      return ''
    return f'fingerprint {texts[0]!r} in the folder, {texts[1]!r} now'
  if before['name'] != now['name']:
    return f'{before["name"]} in the folder, {now["name"]} now'
  if before['python'] != now['python']:  # bytecode cannot be compared
    return ''
  parts = [found['parts'] for found in (before, now)]
  changed = [
    path or 'its code'
    for path in dict.fromkeys([*parts[0], *parts[1]])
    if parts[0].get(path) != parts[1].get(path)
  ]
  if not changed:
    return ''
  shown = ', '.join(changed[:5]) + ', …' * (len(changed) > 5)
  return f'{now["name"]} has changed ({shown})'


def _walk(thing: Any, path: str, seen: dict) -> Iterator[tuple[str, bytes]]:
  """Yields (path of a part, bytes that determine it) for all parts."""
  if isinstance(thing, _CONSTANTS):
    yield path, repr(thing).encode()
    return
  if id(thing) in seen:
    yield path, f'as {seen[id(thing)][0]}'.encode()
    return
  seen[id(thing)] = path, thing  # a reference, so that no id is used twice
  thing = inspect.unwrap(thing) if callable(thing) else thing
  if isinstance(thing, np.ndarray | np.generic | jax.Array):
    yield from _walk_array(thing, path)
  elif isinstance(thing, types.FunctionType):
    yield from _walk_function(thing, path, seen)
  elif isinstance(thing, types.MethodType):
    yield from _walk(thing.__func__, path, seen)
    yield from _walk(thing.__self__, _join(path, 'self'), seen)
  elif isinstance(thing, functools.partial):
    yield from _walk(thing.func, path, seen)
    arguments = [*thing.args, thing.keywords]
    yield from _walk(arguments, _join(path, 'arguments'), seen)
  else:
    yield from _walk_object(thing, path, seen)


def _join(path, name):
  return f'{path}.{name}' if path else str(name)


def _walk_array(array, path):
  yield path, f'{array.dtype}{array.shape}'.encode()
  if getattr(array, 'is_fully_addressable', True):
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(
      array.dtype, jax.dtypes.prng_key
    ):
      array = jax.random.key_data(array)
    yield path, hashlib.sha256(np.asarray(array).tobytes()).digest()


def _walk_object(thing, path, seen):
  """Walks a container, a class, or an instance of a class."""
  is_class = isinstance(thing, type)
  yield path, name_of(thing).encode()
  if isinstance(thing, dict):
    children = sorted(thing.items(), key=lambda item: repr(item[0]))
  elif isinstance(thing, set | frozenset):
    children = [('', repr(sorted(map(repr, thing))))]
  elif isinstance(thing, list | tuple):
    children = enumerate(thing)
  elif dataclasses.is_dataclass(thing) and not is_class:
    children = [
      (field.name, getattr(thing, field.name, None))
      for field in dataclasses.fields(thing)
    ]
  elif is_class:
    children = _members(thing) if _is_own(thing) else ()
  elif _is_own(type(thing)):
    children = sorted(getattr(thing, '__dict__', {}).items())
  else:
    children = ()
  for name, value in children:
    yield from _walk(value, _join(path, name), seen)
  if not is_class and _is_own(type(thing)):
    yield from _walk(type(thing), _join(path, 'class'), seen)


def _members(own_class):
  """Returns [(name, value)] of methods, constants and own base classes."""
  members = [('', [base for base in own_class.__bases__ if _is_own(base)])]
  for name, value in vars(own_class).items():
    value = getattr(value, '__func__', getattr(value, 'fget', value))
    if isinstance(value, types.FunctionType) or not name.startswith('__'):
      members.append((name, value))
  return members


def _walk_function(function, path, seen):
  """Walks a function: code, defaults, captured values, global objects."""
  own = _is_own(function)
  yield path, function.__qualname__.encode()
  if own:
    yield from _walk_code(function.__code__, path, function.__doc__)
  values = {}
  for name, cell in zip(
    function.__code__.co_freevars, function.__closure__ or (), strict=True
  ):
    with contextlib.suppress(ValueError):  # not yet assigned
      values[name] = cell.cell_contents
  values['defaults'] = [function.__defaults__, function.__kwdefaults__]
  if own:
    values |= _own_globals(function)
  for name, value in values.items():
    yield from _walk(value, _join(path, name), seen)


def _walk_code(code, path, docstring=None):
  yield path, code.co_code
  yield path, repr((code.co_names, code.co_varnames, code.co_freevars)).encode()
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _walk_code(constant, path)
    elif isinstance(constant, frozenset):  # its order is random
      yield path, repr(sorted(map(repr, constant))).encode()
    elif constant is not docstring:
      yield path, repr(constant).encode()


def _names_in(code):
  """Returns the global names and attributes in a code object, nested too."""
  names = set(code.co_names)
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      names |= _names_in(constant)
  return names


def _own_globals(function):
  """Returns {name: value} of the caller's own objects that a function uses."""
  names, found = sorted(_names_in(function.__code__)), {}
  for name in names:
    value = function.__globals__.get(name, function)
    if value is function:  # an attribute, a builtin, or the function itself
      continue
    if isinstance(value, types.ModuleType):
      if _is_own_module(value):
        found |= {
          f'{name}.{attribute}': getattr(value, attribute)
          for attribute in names
          if hasattr(value, attribute)
        }
    else:
      found[name] = value
  return found


def _is_own(thing):
  """Returns whether a function or class is not part of a library."""
  return _is_own_module(sys.modules.get(thing.__module__))


def _is_own_module(module):
  path = getattr(module, '__file__', None)
  if path is None:  # a notebook, an interactive session, or a builtin module
    return getattr(module, '__name__', '__main__') == '__main__'
  return not os.path.realpath(path).startswith(_LIBRARIES)
