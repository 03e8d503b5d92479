"""Loads and saves weights, and adapts them to a model.

Imports `console`, `data`, `files`, `models` and `parallel`. The functions in
`__all__` are imported when they are first used.
"""

import importlib

_WHERE = {
  'adapt': 'adaptation',
  'load': 'weights_file',
  'load_model': 'trained_model',
  'save': 'weights_file',
}

__all__ = tuple(_WHERE)


def __getattr__(name):
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_WHERE[name]}'), name)
