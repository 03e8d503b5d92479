"""A folder of images: its two splits, its classes, its damaged files."""

import os
import pathlib
from typing import Any

from vit_jax import console
from vit_jax.data import examples
from vit_jax.data.image_files import image_checks
from vit_jax.data.image_files import image_kinds

HELD_OUT_FRACTION = 0.1  # of a folder without splits


def find_images(
  folder: str,
  *,
  train_split: str,
  test_split: str,
  max_bad_images: float,
  check_images: bool = True,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """Finds the images of a folder, which are divided into two splits.

  The structure is `{train,test}/{class}/image` or `{class}/image`. In the
  second case, a fixed fraction of the images is held out for testing. With
  `check_images`, images that cannot be decoded are skipped. Links are followed,
  and a file with several paths counts once.

  Args:
    folder: path of the folder.
    train_split: name of the sub-folder for training.
    test_split: name of the sub-folder for testing.
    max_bad_images: largest accepted fraction of undecodable images.
    check_images: whether to decode all images that no run has decoded before.

  Returns:
    Two dicts {class: paths}: the training split and the test split.

  Raises:
    ValueError: the folder cannot be used for training.
  """
  unread = []
  parts = _parts(folder, train_split, test_split, unread)
  warn_unread(unread)
  _check_classes(*parts, folder)
  if not check_images:
    return parts
  paths = [path for part in parts for files in part.values() for path in files]
  bad = image_checks.find_undecodable(paths, folder, max_bad_images)
  parts = [
    {name: [p for p in files if p not in bad] for name, files in part.items()}
    for part in parts
  ]
  _check_classes(*parts, folder)
  return parts


def images_below(folder: str, unread: list[str] | None = None) -> list[str]:
  """Returns the sorted paths of all images in a folder and its sub-folders.

  The suffix of a file determines whether it is an image. A file without a
  suffix is an image if its first bytes are those of an image.

  Two kinds of links are not followed: links to a folder that contains the link,
  and links to a folder that another link has reached.

  Args:
    folder: path of the folder.
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
      if not _leads_back(os.path.join(parent, name), targets)
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


def _raise(error):
  raise error


def _leads_back(path, targets):
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


def _each_once(parts, folder):
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


def _list_classes(folder, unread):
  """Returns {class: sorted image paths} of a folder with class sub-folders."""
  return {
    name: images_below(os.path.join(folder, name), unread)
    for name in sorted(os.listdir(folder))
    if not name.startswith('.')
    and os.path.isdir(os.path.join(folder, name))
    and not _leads_back(os.path.join(folder, name), set())
  }


def _hold_out(classes, folder):
  """Splits {class: paths} into training and test by hashes of the paths.

  The split of an image depends only on its path relative to `folder`, with one
  exception. Each class with two or more images has at least one image in each
  split.
  """
  train, test = {}, {}
  for name, paths in classes.items():
    ranked = sorted(
      (
        examples.hash_fraction(
          os.path.relpath(path, folder).replace(os.sep, '/')
        ),
        path,
      )
      for path in paths
    )
    count = sum(value < HELD_OUT_FRACTION for value, _ in ranked)
    count = min(max(count, 1), max(len(paths) - 1, 0))
    ranked = [path for _, path in ranked]
    test[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
  return train, {name: paths for name, paths in test.items() if paths}


def _parts(folder, train_split, test_split, unread):
  """Returns {class: paths} of the training split and of the test split."""
  train_dir, test_dir = (
    os.path.join(folder, part) for part in (train_split, test_split)
  )
  if os.path.isdir(train_dir) != os.path.isdir(test_dir):
    missing = test_dir if os.path.isdir(train_dir) else train_dir
    raise ValueError(
      f'{missing} is missing. A folder of images has the structure '
      '{train,test}/{class}/image or {class}/image. If the splits have other '
      'names, set config.train_split and config.test_split.'
    )
  folders = [train_dir, test_dir] if os.path.isdir(train_dir) else [folder]
  parts = [_list_classes(path, unread) for path in dict.fromkeys(folders)]
  _each_once(parts, folder)
  if folders == [folder]:
    return _hold_out(parts[0], folder)
  return parts[0], parts[-1]  # one part if both splits have the same name


def _check_classes(train, test, folder):
  """Raises ValueError if the classes cannot be used for training."""
  if not any(train.values()):
    raise ValueError(
      f'no images in {folder}. It must contain {{train,test}}/{{class}}/image '
      'or {class}/image. The names of images must end in '
      f'{", ".join(image_kinds.SUFFIXES)}.'
    )
  empty = [name for name, paths in train.items() if not paths]
  if empty:
    raise ValueError(
      f'{folder}: no training images in class {", ".join(empty)}. Add images, '
      'or remove the folder of the class.'
    )
  if len(train) < 2:
    raise ValueError(
      f'{folder}: only one class, {next(iter(train))!r}. Training needs at '
      'least two classes. Put the images of each class into a separate folder.'
    )
  unknown = sorted(set(test) - set(train))
  if unknown:
    raise ValueError(
      f'{folder}: the test split has classes that are not in the training '
      f'split: {", ".join(unknown)}. Remove them or add training images.'
    )
  if not any(test.values()):
    raise ValueError(f'{folder}: no images in the test split. Add some.')
