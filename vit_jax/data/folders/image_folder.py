"""The image files of a folder: links, hidden folders, repeated files."""

import os
import pathlib
from typing import Any

from vit_jax import console
from vit_jax.data.folders import listing
from vit_jax.data.image_files import image_kinds

# Folders that systems and programs make. Other names start with a dot.
_SYSTEM_FOLDERS = frozenset(
  (
    *('__macosx', '@eadir', '@tmp', '@recycle', '@recently-snapshot'),
    *('#recycle', '#snapshot', '$recycle.bin', 'system volume information'),
    *('lost+found', '__pycache__'),
  )
)


def is_hidden(name: str) -> bool:
  """Returns whether a folder name is hidden, or one that a system makes."""
  return name.startswith('.') or name.lower() in _SYSTEM_FOLDERS


def is_run(folder: str) -> bool:
  """Returns whether a folder is the folder of a run."""

  def has(name):
    return os.path.exists(os.path.join(folder, name))

  if has('config.json'):
    return has('checkpoints') or has('metrics.jsonl') or has('deployed.json')
  # A run that has just started has only a log and an empty folder.
  return (has('log.txt') or has('evaluations.jsonl')) and not any(
    _is_image(entry.path) or (entry.name != 'checkpoints' and _is_folder(entry))
    for entry in os.scandir(folder)
  )


def contains_only_runs(folder: str) -> bool:
  """Returns whether a folder has runs, and no images or other folders."""
  inner = []
  for entry in os.scandir(folder):
    if _is_image(entry.path):
      return False
    if _is_folder(entry):
      inner.append(entry.path)
  return bool(inner) and all(map(is_run, inner))


def has_image(folder: str, below: bool = True) -> bool:
  """Returns whether a folder has an image; reads no more than needed.

  Args:
    folder: path of the folder.
    below: whether images in sub-folders count, too.
  """
  inner = []
  for entry in os.scandir(folder):
    if _is_folder(entry):
      inner.append(entry.path)
    elif _is_image(entry.path):
      return True
  return below and any(
    has_image(path)
    for path in sorted(inner)
    if not _is_skipped(path, None) and not os.path.islink(path)
  )


def _is_folder(entry):
  """Returns whether a DirEntry is a folder, or a link to one."""
  # `is_dir` reads no file, but it fails for a link that leads to itself.
  if entry.is_symlink():
    return os.path.isdir(entry.path)
  return entry.is_dir()


def _is_image(path):
  return image_kinds.is_read(image_kinds.of_file(path))


def images_below(
  folder: str, hidden: list[str] | None = None, unread: list[str] | None = None
) -> list[str]:
  """Returns the sorted paths of all images in a folder and its sub-folders.

  The suffix of a file determines whether it is an image. A file without a
  suffix is an image if its first bytes are those of an image.

  Hidden folders and folders of runs are not read. Two kinds of links are not
  followed: links to a folder that contains the link, and links to a folder that
  another link has reached.

  Args:
    folder: path of the folder.
    hidden: the paths of folders that are not read are added to this list.
    unread: the paths of files with pictures of a kind that is not read, such as
      videos, are added to this list; see `warn_unread`.
  """
  found, targets = [], set()
  for parent, folders, names in os.walk(
    folder, onerror=_raise, followlinks=True
  ):
    folders[:] = [
      name
      for name in sorted(folders)
      if not _is_skipped(os.path.join(parent, name), hidden)
      and not leads_back(os.path.join(parent, name), targets)
    ]
    for path in (os.path.join(parent, name) for name in names):
      kind = image_kinds.of_file(path)
      if image_kinds.is_read(kind):
        found.append(path)
      elif kind and unread is not None:
        unread.append(path)
  return sorted(found)


def warn_unread(paths: list[str]) -> None:
  """Logs a warning that counts and names files of kinds that are not read."""
  if paths:
    console.log_info(
      'warning: files of kinds that are not read are skipped: '
      + image_kinds.describe_unread_files(sorted(set(paths)))
    )


def skip_unread(found: listing.Listing, paths: list[str]) -> None:
  """Adds files of kinds that are not read to the skipped files, by kind."""
  for path in sorted(set(paths)):
    kind = image_kinds.describe_unread(image_kinds.of_file(path))
    found.skip(f'files {kind}', [path])


def _is_skipped(path, hidden):
  """Returns whether a folder is not read; adds its path to `hidden`."""
  if not is_hidden(os.path.basename(path)) and not is_run(path):
    return False
  if hidden is not None:
    hidden.append(path)
  return True


def _raise(error):
  raise error


def leads_back(path: str, targets: set[str], quiet: bool = False) -> bool:
  """Returns whether a path is a link that must not be followed; logs a warning.

  A link is not followed if its target contains the link, or is in `targets`.
  New targets are added to `targets`. Without this rule, folders that link to
  each other would have too many paths to visit.
  """
  if not os.path.islink(path):
    return False
  target = os.path.realpath(path)
  parents = map(os.path.realpath, pathlib.Path(os.path.abspath(path)).parents)
  if any(pathlib.Path(p).is_relative_to(target) for p in parents):
    reason = 'the target contains the link'
  elif target in targets:
    reason = 'another link leads to the target'
  else:
    targets.add(target)
    return False
  if quiet:
    return True
  console.log_info(
    f'warning: {path} is a link to {target} and is not followed: {reason}'
  )
  return True


def identity(path: str) -> Any:
  """Returns a value that identifies a file, equal for all paths of the file."""
  try:
    status = os.stat(path)
  except OSError:  # a broken link, which the decoding check will find
    return path
  if not status.st_ino:  # a file system without inode numbers
    return os.path.realpath(path)
  return status.st_dev, status.st_ino


def keep_each_once(parts: list[dict[str, list[str]]], folder: str) -> None:
  """Removes repeated files from the parts, in place.

  Args:
    parts: list of dicts {class: paths}.
    folder: folder of the dataset, for messages.

  Raises:
    ValueError: a file is in two classes or in two parts.
  """
  path_of, repeated, clashes = {}, [], []
  for part in parts:
    for name, paths in part.items():
      own = {}
      for path in paths:
        first = own.setdefault(identity(path), path)
        if first != path:
          repeated.append((path, first))
      clashes += [
        (path, path_of[key]) for key, path in own.items() if key in path_of
      ]
      path_of.update(own)
      part[name] = list(own.values())
  if clashes:
    path, other = clashes[0]
    raise ValueError(
      f'{folder}: {path} and {other} are the same file, because of a link '
      f'(pairs in total: {len(clashes)}). An image cannot be in two classes, '
      'or in both splits. Remove one of the two paths.'
    )
  if repeated:
    path, first = repeated[0]
    console.log_info(
      f'warning: {folder}: {len(repeated)} path(s) repeat an image of the '
      f'same class. For example, {path} and {first} are the same file. Each '
      'file counts once.'
    )


def subfolders(
  folder: str, skipped: dict[str, list[str]] | None = None
) -> list[str]:
  """Returns the sorted names of the sub-folders that can have images.

  Args:
    folder: path of the folder.
    skipped: hidden folders and folders of runs are added to this dict; see
      `listing.Listing`. None: nothing is logged.
  """
  names, quiet = [], skipped is None
  skipped = {} if quiet else skipped
  folders = [entry.name for entry in os.scandir(folder) if _is_folder(entry)]
  for name in sorted(folders):
    path = os.path.join(folder, name)
    if is_hidden(name):
      listing.add(skipped, 'hidden folders', [path])
    elif leads_back(path, set(), quiet):
      continue
    elif is_run(path) or contains_only_runs(path):
      listing.add(skipped, 'folders of runs', [path])
    else:
      names.append(name)
  return names
