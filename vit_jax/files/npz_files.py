"""Reads `.npz` files that may be damaged, or made by a stranger.

NumPy takes the memory of an array before it reads the array, and takes a file
that is no archive for a pickle. So both are checked before.
"""

from collections.abc import Sequence
import math
import os
import zipfile

import numpy as np

from vit_jax.files import regular_files

# An archive of zeros may be a thousand times smaller than its arrays.
_SMALL_BYTES = 2**30
_MAX_RATIO = 100


def read(
  path: str | os.PathLike, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file.

  Args:
    path: path of the file.
    names: names of the arrays to read; None: all.

  Raises:
    ValueError: the file is no archive of arrays, or it lacks an array.
    OSError: the file cannot be read.
  """
  regular_files.check(path)
  with open(path, 'rb') as file:
    if not zipfile.is_zipfile(file):
      raise ValueError('it is not an archive of arrays, or it is truncated')
  try:
    with np.load(path, allow_pickle=False) as file:
      _check_sizes(file.zip, os.path.getsize(path))
      arrays = {name: file[name] for name in names or file.files}
  except (OSError, ValueError):
    raise
  except Exception as error:  # zipfile and zlib have their own errors
    raise ValueError(f'it is damaged ({type(error).__name__}: {error})') from (
      error
    )
  if not all(isinstance(array, np.ndarray) for array in arrays.values()):
    raise ValueError('it contains objects that are not NumPy arrays')
  return arrays


def _check_sizes(archive, num_bytes):
  """Raises ValueError if the headers of arrays do not match their sizes."""
  total = sum(member.file_size for member in archive.infolist())
  if total > max(_SMALL_BYTES, _MAX_RATIO * num_bytes):
    raise ValueError(
      f'it has {num_bytes} bytes, but its arrays would have {total}'
    )
  for member in archive.infolist():
    with archive.open(member) as file:
      if file.read(6) != np.lib.format.MAGIC_PREFIX:
        continue  # not an array
      version = tuple(file.read(2))
      if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
      else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
      size = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
      raise ValueError(f'{member.filename} contains pickled objects')
    if size != member.file_size:
      raise ValueError(
        f'{member.filename} has {member.file_size} bytes, but its header '
        f'says {size}'
      )
