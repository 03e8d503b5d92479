"""Converts arrays of any library to NumPy arrays of at most 32 bits per value.

NumPy arrays, and tensors of JAX, TensorFlow and PyTorch on any device are read.
No library is imported for that.
"""

from typing import Any

import numpy as np

_NARROW = {'int64': 'int32', 'uint64': 'uint32', 'float64': 'float32'}


def to_numpy(x: Any, name: str) -> np.ndarray:
  """Returns an array or a tensor as a NumPy array.

  Args:
    x: array, tensor or nested list of numbers.
    name: name of the array, for messages.

  Raises:
    ValueError: `x` is not an array of numbers.
  """
  if hasattr(x, 'detach'):  # a tensor of PyTorch
    x = x.detach().cpu()
  try:
    array = np.asarray(x)
  except (ValueError, TypeError, RuntimeError) as error:
    raise ValueError(
      f'{name}, a {type(x).__name__}, cannot be read as one array: {error}. '
      'Give an array of numbers, in which all rows have the same shape'
    ) from error
  if array.dtype.kind not in 'biuf' and array.dtype.name != 'bfloat16':
    raise ValueError(
      f'{name}, a {type(x).__name__}, has the dtype {array.dtype}. Give an '
      'array of numbers, in which all rows have the same shape'
    )
  return array


def narrow(array: np.ndarray, name: str) -> np.ndarray:
  """Returns an array with values of 32 bits in place of 64, as JAX needs them.

  Args:
    array: array of numbers.
    name: name of the array, for messages.

  Raises:
    ValueError: an integer needs more than 32 bits.
  """
  dtype = _NARROW.get(array.dtype.name)
  if not dtype:
    return array
  if array.dtype.kind in 'iu' and array.size:
    limits = np.iinfo(dtype)
    for value in (array.min(), array.max()):
      if not limits.min <= value <= limits.max:
        raise ValueError(
          f'{name} has the value {value}, which does not fit into {dtype}, the '
          'largest type of integers that vit_jax uses. Use smaller numbers'
        )
  return array.astype(dtype)
