"""TensorFlow, imported when it is first used, and kept off the accelerators.

`from vit_jax.data import tensorflow as tf` costs nothing. The entire package
imports TensorFlow from this module. So models, weights and training on arrays
work without TensorFlow, and TensorFlow takes no GPU memory from JAX.
"""

from collections.abc import Callable
import functools
import importlib.util
import os
import sys
from typing import Any


def is_installed() -> bool:
  """Returns whether TensorFlow is installed, without importing it."""
  return importlib.util.find_spec('tensorflow') is not None


@functools.cache
def load() -> Any:
  """Imports TensorFlow, which may print messages; hides the GPUs from it.

  Keras is not imported, which saves a third of the import time. `tf.keras`
  still imports it at its first use.

  Raises:
    ValueError: TensorFlow is not installed.
  """
  if not is_installed():
    raise ValueError(
      'TensorFlow is not installed. vit_jax needs it to read datasets, image '
      'files and texts. It is not needed for models, weights, export, '
      '`logits` and `features` of arrays, and training on your own batches. '
      'Install it with: pip install tensorflow tensorflow-datasets. This '
      f'Python is {sys.version_info.major}.{sys.version_info.minor} on '
      f'{sys.platform}; docs/installation.md lists where TensorFlow exists'
    )
  name = 'TF_USE_LEGACY_KERAS'
  value = os.environ.get(name)
  # TensorFlow then tries to import tf_keras instead of Keras. If tf_keras is
  # not installed, TensorFlow imports neither.
  os.environ[name] = '1'
  try:
    import tensorflow
  finally:
    if value is None:
      del os.environ[name]
    else:
      os.environ[name] = value
  tensorflow.config.set_visible_devices([], 'GPU')
  return tensorflow


def preload() -> None:
  """Imports TensorFlow if it is installed, to hide its first messages."""
  if is_installed():
    load()


def rare(branch: Callable) -> Callable:
  """Returns a branch of `tf.cond` that takes no time where it is not taken.

  TensorFlow visits each operation of the other branch. This branch becomes a
  single operation, whose call takes some microseconds where it is taken.
  """
  attributes = {'_noinline': True}
  return load().function(
    branch, autograph=False, experimental_attributes=attributes
  )


def __getattr__(name):
  return getattr(load(), name)
