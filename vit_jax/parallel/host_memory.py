"""The memory of this machine, and batches that do not fit into it."""

import math
import os

import jax

_CGROUP_LIMIT = '/sys/fs/cgroup/memory.max'


def of_machine() -> int:
  """Returns the bytes of memory that this machine or container has."""
  import psutil

  total = psutil.virtual_memory().total
  if os.path.exists(_CGROUP_LIMIT):
    with open(_CGROUP_LIMIT, encoding='ascii') as file:
      limit = file.read().strip()
    total = min(total, int(limit)) if limit.isdigit() else total
  return total


def check_batch(name: str, size: int, image_size: tuple[int, int]) -> None:
  """Raises ValueError if the images of one batch do not fit into memory.

  Args:
    name: name of the setting, 'batch' or 'batch_eval'.
    size: number of images in a global batch.
    image_size: (height, width) of an image; it has three float32 channels.
  """
  needed = size * 3 * 4 * math.prod(image_size) // jax.process_count()
  if needed > of_machine():
    raise ValueError(
      f'config.{name}={size}: the images of a batch would need '
      f'{needed / 1e9:.2f} GB, but this machine has {of_machine() / 1e9:.2f} '
      f'GB of memory. Use a smaller config.{name}'
    )
