"""A folder of images: its two parts, its classes, its damaged files."""

import os
import pathlib
from typing import Any

from vit_jax import console
from vit_jax.data import examples
from vit_jax.data import image_checks

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')
HELD_OUT_SHARE = 0.1  # of a folder without parts of its own


def find_images(
  folder: str,
  *,
  train_split: str,
  test_split: str,
  max_bad_images: float,
  check_images: bool = True,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """The images of a folder, `{train,test}/{class}/image` or `{class}/image`.

  Without parts of its own, a fixed share of the folder is held out for testing.
  Images that cannot be decoded are left out, unless they are not checked. Links
  are followed, and a file that is reached twice counts once.

  Args:
    folder: to look in.
    train_split: name of the sub-folder for training.
    test_split: name of the sub-folder for testing.
    max_bad_images: share of undecodable images above which to give up.
    check_images: whether to decode every image that no run has decoded yet.

  Returns:
    ({class: paths} for training, the same for testing).

  Raises:
    ValueError: the folder is not fit to train on.
  """
  parts = _parts(folder, train_split, test_split)
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


def images_below(folder: str) -> list[str]:
  """Sorted paths of the images in a folder and in those below it.

  Links are followed, but for those that lead back to a folder on the way, or
  where another link has led.
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
    found += [
      os.path.join(parent, name)
      for name in names
      if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
    ]
  return sorted(found)


def _raise(error):
  raise error


def _leads_back(path, targets):
  """Whether a path is a link to a folder that contains the link; warns.

  Also where the target is one of `targets`, to which it is added: folders that
  link to each other have more paths than can be walked.
  """
  if not os.path.islink(path):
    return False
  target = os.path.realpath(path)
  parents = map(os.path.realpath, pathlib.Path(os.path.abspath(path)).parents)
  if any(pathlib.Path(p).is_relative_to(target) for p in parents):
    reason = 'which contains the link'
  elif target in targets:
    reason = 'to which another link leads'
  else:
    targets.add(target)
    return False
  console.log_info(
    f'warning: {path} is a link to {target}, {reason}: it is not followed'
  )
  return True


def identity(path: str) -> Any:
  """A value that all paths of the same file have in common, and no others."""
  try:
    status = os.stat(path)
  except OSError:  # a broken link; decoding will find it
    return path
  if not status.st_ino:  # a file system without inode numbers
    return os.path.realpath(path)
  return status.st_dev, status.st_ino


def _each_once(parts, folder):
  """Leaves each file once in the parts, which are {class: paths} each.

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
      f'{folder}: {path} and {other} are one file, reached by links '
      f'({len(clashes)} in all). An image cannot be in two classes, nor '
      'in training and in testing: remove one of the two'
    )
  if repeated:
    path, first = repeated[0]
    console.log_info(
      f'warning: {folder}: {len(repeated)} path(s) lead by links to '
      f'images of the same class, such as {path} to {first}; each '
      'file counts once'
    )


def _list_classes(folder):
  """{class name: sorted image paths} of a folder with one folder a class."""
  return {
    name: images_below(os.path.join(folder, name))
    for name in sorted(os.listdir(folder))
    if not name.startswith('.')
    and os.path.isdir(os.path.join(folder, name))
    and not _leads_back(os.path.join(folder, name), set())
  }


def _hold_out(classes, folder):
  """Splits {class: paths} by a hash of each path below `folder`.

  The part of an image depends on its path alone, but for this: each class of
  two images or more has at least one in either part.
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
    count = sum(share < HELD_OUT_SHARE for share, _ in ranked)
    count = min(max(count, 1), max(len(paths) - 1, 0))
    ranked = [path for _, path in ranked]
    test[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
  return train, {name: paths for name, paths in test.items() if paths}


def _parts(folder, train_split, test_split):
  """({class: paths} of training, the same of testing)."""
  train_dir, test_dir = (
    os.path.join(folder, part) for part in (train_split, test_split)
  )
  if os.path.isdir(train_dir) != os.path.isdir(test_dir):
    missing = test_dir if os.path.isdir(train_dir) else train_dir
    raise ValueError(
      f'{missing} is missing: a folder of images is {{train,test}}/'
      '{class}/image, or {class}/image. Other names for the two parts are '
      'given by config.train_split and config.test_split'
    )
  folders = [train_dir, test_dir] if os.path.isdir(train_dir) else [folder]
  parts = [_list_classes(path) for path in dict.fromkeys(folders)]
  _each_once(parts, folder)
  if folders == [folder]:
    return _hold_out(parts[0], folder)
  return parts[0], parts[-1]  # the same one where both have the same name


def _check_classes(train, test, folder):
  """Raises unless the classes are fit to train on."""
  if not any(train.values()):
    raise ValueError(
      f'no images in {folder}: it should hold {{train,test}}/{{class}}/image '
      f'or {{class}}/image, with image names in {", ".join(IMAGE_SUFFIXES)}'
    )
  empty = [name for name, paths in train.items() if not paths]
  if empty:
    raise ValueError(
      f'{folder}: no training images in class {", ".join(empty)}. Add some, '
      'or remove the folder'
    )
  if len(train) < 2:
    raise ValueError(
      f'{folder}: only one class, {next(iter(train))!r}; training needs two '
      'or more, each in a folder of its own'
    )
  unknown = sorted(set(test) - set(train))
  if unknown:
    raise ValueError(
      f'{folder}: test classes that training does not have: '
      f'{", ".join(unknown)}'
    )
  if not any(test.values()):
    raise ValueError(f'{folder}: the test part holds no image')
