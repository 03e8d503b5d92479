"""The folder that a command writes to."""

import os
import re
import tempfile


def default_path(name: str) -> str:
  """Returns 'workdirs/vit-b16-cifar10' for the name 'vit-b16,cifar10'."""
  return os.path.join('workdirs', re.sub(r'[^\w.+-]+', '-', name).strip('-'))


def make(path: str) -> str:
  """Creates a folder unless it exists, and returns its path.

  Raises:
    ValueError: the folder cannot be created, or files cannot be written to it.
  """
  path = os.path.expanduser(path)
  try:
    os.makedirs(path, exist_ok=True)
    tempfile.TemporaryFile(dir=path).close()
  except OSError as error:
    raise ValueError(
      f'--workdir={path} cannot be written: {error.strerror}. Choose another '
      'folder.'
    ) from error
  return path
