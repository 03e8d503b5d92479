"""The memory allocator of a command, which sets the speed of XLA on CPUs.

XLA frees its buffers after each step. The C library of Linux then gives the
pages back to the system, and in the next step the system must clear and map
each of them again. This takes a fifth to a third of the CPU time of a training
step. tcmalloc keeps the pages. It must be selected when a process starts.

Huge pages of the C library (glibc.malloc.hugetlb) are not used: they made steps
faster on one machine and slower on another (docs/benchmarks.md).
"""

import glob
import os
import platform
import sys

from vit_jax.parallel import interrupts

# `restart` sets it. With a value of the user, such as off, nothing changes.
VARIABLE = 'VIT_JAX_ALLOCATOR'
_LIBRARIES = ('libtcmalloc_minimal.so.4', 'libtcmalloc.so.4')
_ACCELERATORS = (
  *('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/accel*', '/dev/vfio/[0-9]*'),
)


def restart() -> None:
  """Restarts this Python process with tcmalloc, if it is installed.

  Call it first, before slow imports. It does nothing if there is an
  accelerator, outside of Linux, or if the environment variable
  VIT_JAX_ALLOCATOR or LD_PRELOAD is set.
  """
  changes = find(os.environ)
  if changes:
    os.environ.update({**changes, VARIABLE: 'restarted'})
    interrupts.hold()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def find(environment: dict[str, str]) -> dict[str, str]:
  """Returns environment variables that select tcmalloc; {}: nothing changes.

  Args:
    environment: the current variables.
  """
  given = (VARIABLE, 'LD_PRELOAD')
  if sys.platform != 'linux' or any(environment.get(x) for x in given):
    return {}
  platforms = environment.get('JAX_PLATFORMS', '')
  if platforms != 'cpu' and (platforms or any(map(glob.glob, _ACCELERATORS))):
    return {}
  for name in _LIBRARIES:
    for folder in _library_folders():
      path = os.path.join(folder, name)
      if os.path.exists(path):
        return {'LD_PRELOAD': path}
  return {}


def _library_folders():
  return (
    f'{sys.prefix}/lib',
    '/usr/local/lib',
    f'/usr/lib/{platform.machine()}-linux-gnu',
    '/usr/lib64',
  )
