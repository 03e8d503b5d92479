"""TensorFlow, imported when it is first used, and kept off the accelerators.

`from vit_jax.data import tensorflow as tf` costs nothing. All of the package
takes TensorFlow from here, so that models, weights and training on arrays work
without it, and that JAX has the memory of the GPUs for itself.
"""

import functools
from typing import Any


@functools.cache
def load() -> Any:
  """Imports TensorFlow, which may write to the terminal."""
  import tensorflow

  tensorflow.config.set_visible_devices([], 'GPU')
  return tensorflow


def __getattr__(name):
  return getattr(load(), name)
