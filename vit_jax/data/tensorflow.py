"""TensorFlow, imported when it is first used, and kept off the accelerators.

`from vit_jax.data import tensorflow as tf` costs nothing. The entire package
imports TensorFlow from this module. So models, weights and training on arrays
work without TensorFlow, and TensorFlow takes no GPU memory from JAX.
"""

import functools
from typing import Any


@functools.cache
def load() -> Any:
  """Imports TensorFlow, which may print messages; hides the GPUs from it."""
  import tensorflow

  tensorflow.config.set_visible_devices([], 'GPU')
  return tensorflow


def __getattr__(name):
  return getattr(load(), name)
