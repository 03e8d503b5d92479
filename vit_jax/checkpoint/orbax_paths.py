"""Paths of checkpoints, as Orbax and TensorStore would misread them.

Orbax looks for the files of each process by a pattern that begins with the
path itself. Without `literal`, a folder `[lr=0.1]` is not found, and what Orbax
writes cannot be read. A few other names cannot be helped; `check` refuses them.
"""

import glob
import os

from etils import epath

_MISREAD = {
  '\\': 'TensorStore takes a backslash for a slash',
  '**': 'Orbax refuses patterns that go through folders',
  'gs:/': 'Orbax takes it for a bucket',
}


def literal(path: epath.Path) -> epath.Path:
  """An `epath.Path` in which [, * and ? stand for themselves."""

  class LiteralPath(type(path)):
    def glob(self, pattern):
      return map(
        type(self),
        glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)),
      )

  return LiteralPath(path)


def check(folder: str | os.PathLike) -> None:
  """Raises a ValueError if checkpoints in `folder` would be misread."""
  folder = os.path.abspath(folder)
  for text, reason in _MISREAD.items():
    if text in folder:
      raise ValueError(
        f'{folder}: checkpoints cannot be in a folder with '
        f'{text!r} in its path ({reason}). Rename the folder, '
        'or choose another'
      )
