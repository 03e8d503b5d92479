"""Paths of checkpoints that Orbax or TensorStore would misinterpret.

Orbax finds the files of each process with a glob pattern that starts with the
path. Without `literal`, Orbax does not find a folder `[lr=0.1]` and cannot read
its own files. A few other names cannot be escaped, so `check` rejects them.
"""

import glob
import os

from etils import epath

_MISREAD = {
  '\\': 'TensorStore reads a backslash as a slash',
  '**': 'Orbax rejects recursive patterns',
  'gs:/': 'Orbax reads it as a bucket',
}


def literal(path: epath.Path) -> epath.Path:
  """Returns an `epath.Path` in which [, * and ? are literal characters."""

  class LiteralPath(type(path)):
    def glob(self, pattern):
      return map(
        type(self),
        glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)),
      )

  return LiteralPath(path)


def check(folder: str | os.PathLike) -> None:
  """Raises ValueError if checkpoints in `folder` would be misread."""
  folder = os.path.abspath(folder)
  try:
    folder.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{folder!r} cannot contain checkpoints, because its path is not UTF-8. '
      'Rename the folder, or use another one. If the name is right, set '
      'PYTHONUTF8=1.'
    ) from error
  for text, reason in _MISREAD.items():
    if text in folder:
      raise ValueError(
        f'{folder} cannot contain checkpoints, because its path contains '
        f'{text!r} ({reason}). Rename the folder, or use another one.'
      )
