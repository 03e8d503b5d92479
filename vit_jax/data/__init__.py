"""From files, arrays or given batches to batches: the data of a run.

  vit_jax.data.from_arrays(images, labels, test=(images, labels))
  vit_jax.data.from_batches(loader, num_classes=10)

Imports `augment`, `console`, `files` and `parallel`.
"""

import importlib

_MODULES = {
  'from_arrays': 'vit_jax.data.given.arrays',
  'from_batches': 'vit_jax.data.given.batches',
}


def __getattr__(name):
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES[name]), name)
