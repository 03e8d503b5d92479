"""Vision Transformers in JAX and Flax: training, fine-tuning and evaluation.

  model = vit_jax.load('workdirs/quickstart')  # or a weights file or a name
  model.classify(['photo.jpg'])
  config = vit_jax.get_config('configs/vit.py:s16')
  vit_jax.train_and_evaluate(config, 'workdirs/mine')
  vit_jax.data.from_arrays(images, labels)  # data for train_and_evaluate

Importing vit_jax imports neither JAX nor TensorFlow.
"""

import importlib

__version__ = '0.1.0'
__all__ = ('Stop', 'data', 'get_config', 'load', 'train_and_evaluate')

_MODULES = {
  'Stop': 'run.stopping',
  'get_config': 'config_file',
  'load': 'inference.loaded_model',
  'train_and_evaluate': 'train',
}


def __getattr__(name):
  if name == 'data':
    return importlib.import_module(f'{__name__}.data')
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__():
  return sorted([*globals(), *__all__])
