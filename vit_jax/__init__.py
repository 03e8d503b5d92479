"""Vision Transformers in JAX and Flax: train, fine-tune, measure.

  model = vit_jax.load('workdirs/quickstart')  # or weights: a file, a name
  model.classify(['photo.jpg'])
  vit_jax.train_and_evaluate(config, 'workdirs/mine')

Importing vit_jax imports neither JAX nor TensorFlow.
"""

import importlib

__version__ = '0.1.0'
__all__ = ('load', 'train_and_evaluate')

_WHERE = {'load': 'inference.loaded_model', 'train_and_evaluate': 'train'}


def __getattr__(name):
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_WHERE[name]}'), name)


def __dir__():
  return sorted([*globals(), *_WHERE])
