"""Refuses what is no regular file: reading a pipe or a device may not end."""

import os
import stat

_KINDS = (
  (stat.S_ISDIR, 'a folder'),
  (stat.S_ISFIFO, 'a named pipe'),
  (stat.S_ISSOCK, 'a socket'),
  (stat.S_ISCHR, 'a device'),
  (stat.S_ISBLK, 'a device'),
)


def other_kind(path: str | os.PathLike) -> str | None:
  """Returns 'a named pipe', 'a device', …; None for a file, or without one."""
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError):  # whoever opens the path reports this
    return None
  return next((kind for test, kind in _KINDS if test(mode)), None)


def check(path: str | os.PathLike) -> None:
  """Raises ValueError if a path is that of something other than a file."""
  kind = other_kind(path)
  if kind:
    raise ValueError(f'{path} is {kind}. Use the path of a regular file.')
