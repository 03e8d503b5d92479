"""The photographs of a dataset: parts, labels, and what is skipped."""

from collections.abc import Iterable
import dataclasses
import hashlib
import os
import unicodedata

import numpy as np

from vit_jax import console
from vit_jax.data.image_files import check_cache
from vit_jax.data.image_files import image_checks


@dataclasses.dataclass
class Part:
  """The images of one part, with a label for each.

  Attributes:
    paths: paths of the images [N].
    labels: class numbers int64 [N], rows of 0 and 1 float32 [N, K] (several
      classes per image), or numbers float32 [N, T]; [N, 0] without labels.
  """

  paths: list[str]
  labels: np.ndarray

  def take(self, indices: np.ndarray) -> 'Part':
    """Returns the part with only these images."""
    return Part([self.paths[i] for i in indices], self.labels[indices])


@dataclasses.dataclass
class Listing:
  """The images that a run uses, and what is skipped and why.

  Attributes:
    folder: folder of the dataset.
    parts: {'train', 'test' and perhaps 'validation': `Part`}.
    class_names: name of each class; () if the labels are numbers.
    skipped: {reason: paths}, for example {'hidden folders': [...]}.
    notes: lines for the user, such as the parts that were recognized.
    groups: {path: group} with `config.group_by`, else {}.
    table: path of the table of labels; '' if folders are the classes.
    fingerprints: {part: fingerprint} of parts that have changed since.
    checked: what decoding the images has shown; None if none was decoded.
  """

  folder: str
  parts: dict[str, Part]
  class_names: tuple[str, ...]
  skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  groups: dict[str, str] = dataclasses.field(default_factory=dict)
  table: str = ''
  fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
  checked: image_checks.Checked | None = None

  @property
  def paths(self) -> list[str]:
    """Returns the paths of all images of all parts."""
    return [path for part in self.parts.values() for path in part.paths]

  def key(self, path: str) -> str:
    """Returns the path relative to the folder, equal on all systems."""
    return key_of(path, self.folder)

  def fingerprint(self, name: str) -> str:
    """Returns a hash of the images and the labels of a part."""
    if name in self.fingerprints:
      return self.fingerprints[name]
    part = self.parts[name]
    digest = hashlib.sha256(
      b'\0'.join(
        os.fsencode(check_cache.relative(path, self.folder))
        for path in part.paths
      )
    )
    if self.table:  # otherwise, the paths contain the classes
      digest.update(part.labels.tobytes())
      digest.update('\0'.join(self.class_names).encode('utf-8', 'replace'))
    return digest.hexdigest()

  def skip(self, reason: str, paths: Iterable[str]) -> None:
    """Adds paths that are skipped for the same reason."""
    add(self.skipped, reason, paths)

  def lines(self, shown: Iterable[str] = ()) -> list[str]:
    """Returns the lines to show before training.

    Args:
      shown: reasons of `skipped` that another line has shown.
    """
    return [f'{self.folder}: {note}' for note in self.notes] + [
      f'{self.folder}: skipped: {reason}: {some(paths, self.folder)}'
      for reason, paths in self.skipped.items()
      if reason not in shown
    ]


def add(skipped: dict[str, list], reason: str, paths: Iterable[str]) -> None:
  """Adds paths to a dict {reason: paths}, if there are any."""
  paths = list(paths)
  if paths:
    skipped.setdefault(reason, []).extend(paths)


def some(names: Iterable[str], folder: str = '', count: int = 3) -> str:
  """Returns '12 (a, b, c, …)': the number of names and the first ones.

  Args:
    names: names, or paths below `folder`.
    folder: paths are shown relative to it. '': they are shown as they are.
    count: number of names to show.
  """
  names = list(names)
  shown = [key_of(name, folder) if folder else name for name in names[:count]]
  more = ', …' if len(names) > count else ''
  return f'{len(names)} ({", ".join(map(console.printable, shown))}{more})'


def key_of(path: str, folder: str) -> str:
  """Returns a path relative to a folder, equal on all systems."""
  return normal(check_cache.relative(path, folder).replace(os.sep, '/'))


def normal(name: str) -> str:
  """Returns a name in the Unicode form NFC. macOS often writes NFD."""
  return unicodedata.normalize('NFC', name)
