"""Finds the image files that the rows of a table name."""

from collections.abc import Sequence
import os

from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names


class Files:
  """The images of a folder, which can be found by a part of their paths."""

  def __init__(self, paths: Sequence[str], folder: str):
    self.paths = list(paths)
    self.folder = folder
    self._keys = [listing.key_of(path, folder) for path in paths]
    self._by_key = {key: i for i, key in enumerate(self._keys)}
    base = listing.normal(os.path.basename(os.path.abspath(folder)))
    self._by_end = {}  # {end of a path: indices}, with and without a suffix
    for i, key in enumerate(self._keys):
      pieces = f'{base}/{key}'.split('/')
      for start in range(len(pieces)):
        end = '/'.join(pieces[start:])
        for name in {end, os.path.splitext(end)[0]}:
          self._by_end.setdefault(name, []).append(i)

  def find(self, value: str, place: str, part: str) -> str | None:
    """Returns the path of the image that a cell names, or None.

    Args:
      value: a path or a file name, with or without its suffix.
      place: folder of the table, relative to the folder of the images.
      part: part of the row; '' if it is unknown.

    Raises:
      ValueError: several images have this name.
    """
    value = listing.normal(value).replace('\\', '/')
    absolute = value.startswith('/') or value[1:2] == ':'
    value = os.path.normpath(value).replace(os.sep, '/').lstrip('/')
    for key in (os.path.normpath(f'{place}/{value}'), value):
      if key in self._by_key:
        return self.paths[self._by_key[key]]
    hits = self._by_end.get(value, [])
    pieces = value.split('/')
    while absolute and not hits and len(pieces) > 2:
      pieces = pieces[1:]
      hits = self._by_end.get('/'.join(pieces), [])
    if len(hits) > 1 and part:
      own = [i for i in hits if part in _parts_of(self._keys[i])]
      hits = own or hits
    if len(hits) > 1:
      first, second = (self._keys[i] for i in hits[:2])
      raise ValueError(
        f'{self.folder}: {value!r} in the table can be {first} or {second}. '
        'Write paths relative to the folder into the table'
      )
    return self.paths[hits[0]] if hits else None


def _parts_of(key):
  return {split_names.part_of(name) for name in key.split('/')[:-1]}


def top_part(path: str, folder: str) -> str | None:
  """Returns the part that the first folder of an image's path means."""
  first, *rest = listing.key_of(path, folder).split('/')
  return split_names.part_of(first) if rest else None
