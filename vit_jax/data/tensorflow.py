"""TensorFlow, imported when it is first used, and kept off the accelerators.

`from vit_jax.data import tensorflow as tf` costs nothing. The entire package
imports TensorFlow from this module. So models, weights and training on arrays
work without TensorFlow, and TensorFlow takes no GPU memory from JAX.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import importlib.util
import os
import re
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


def elements(dataset: Any) -> Iterator:
  """Yields the elements of a Dataset as NumPy arrays.

  Raises:
    ValueError: an example cannot be read; without the names of TensorFlow's
      operations.
    MemoryError: the memory of this machine is not sufficient.
  """
  errors = load().errors
  try:
    yield from dataset.as_numpy_iterator()
  except errors.ResourceExhaustedError as error:
    raise MemoryError(
      f'the memory of this machine does not suffice for a batch of examples '
      f'({_reason(error)}). Use a smaller config.batch or config.batch_eval, '
      'or smaller images (config.pp.crop).'
    ) from error
  except errors.OpError as error:
    raise ValueError(
      f'an example cannot be read: {_reason(error)}. Restore the file if it '
      'was removed or changed.'
    ) from error


def _reason(error):
  """Returns the first line of an error, without names of operations."""
  text = re.sub(r'{{[^}]*}}|\[Op:.*', '', error.message.strip())
  text = text.partition('\n')[0]
  if ';' in text:  # a path; the system's reason
    text = re.sub(r'^.*iterator: [\w:\[\]]*: ', '', text)
  return text.strip().rstrip('.')


def __getattr__(name):
  return getattr(load(), name)
