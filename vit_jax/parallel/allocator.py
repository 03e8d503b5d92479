"""The memory allocator of a command, which sets the speed of XLA on CPUs.

XLA frees its buffers after each step. The C library of Linux then gives the
pages back to the system, and in the next step the system must clear and map
each page of 4 KiB again. This takes a fifth to a third of the CPU time of a
training step. tcmalloc keeps the pages. With huge pages of 2 MiB, there are far
fewer of them. Either has to be selected when a process starts.
"""

import glob
import os
import platform
import sys

# `restart` sets it. With a value of the user, such as off, nothing changes.
VARIABLE = 'VIT_JAX_ALLOCATOR'
_HUGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
_LIBRARIES = ('libtcmalloc_minimal.so.4', 'libtcmalloc.so.4')
_FIRST_GLIBC = (2, 35)  # that can ask for huge pages
_PAGES_FILE = '/sys/kernel/mm/transparent_hugepage/enabled'
_ACCELERATORS = (
  *('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/accel*', '/dev/vfio/[0-9]*'),
)


def restart() -> None:
  """Restarts this Python process with a better allocator for XLA on CPUs.

  Call it first, before slow imports. It does nothing if there is an accelerator
  or no better allocator, outside of Linux, or if the environment variable
  VIT_JAX_ALLOCATOR, LD_PRELOAD or GLIBC_TUNABLES is set.
  """
  changes = find(os.environ)
  if changes:
    os.environ.update({**changes, VARIABLE: 'restarted'})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def find(environment: dict[str, str]) -> dict[str, str]:
  """Returns environment variables for a better allocator; {}: none.

  Args:
    environment: the current variables.
  """
  given = (VARIABLE, 'LD_PRELOAD', *_HUGE_PAGES)
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
  return _HUGE_PAGES if _has_huge_pages() else {}


def _library_folders():
  return (
    f'{sys.prefix}/lib',
    '/usr/local/lib',
    f'/usr/lib/{platform.machine()}-linux-gnu',
    '/usr/lib64',
  )


def _has_huge_pages():
  """Returns whether the C library and the kernel have huge pages."""
  library, version = platform.libc_ver()
  if library != 'glibc':
    return False
  if tuple(map(int, version.split('.')[:2])) < _FIRST_GLIBC:
    return False
  try:
    with open(_PAGES_FILE, encoding='ascii') as file:
      return '[never]' not in file.read()
  except OSError:
    return False
