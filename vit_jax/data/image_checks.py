"""Finds the images of a folder that cannot be decoded.

Images that can be decoded are remembered in the user's cache, one file for each
folder of images. So all runs, parts and splits share one check. A decodable
image is known by a hash of its path, size and time: 8 bytes each.
"""

from collections.abc import Sequence
import contextlib
import hashlib
import os

import numpy as np

from vit_jax import console
from vit_jax.data import preprocess
from vit_jax.data import tensorflow as tf

# Of all files in the cache; those that were used last stay.
_MAX_BYTES = 2**28
_MAX_FILES = 1000


def find_undecodable(
  paths: Sequence[str], folder: str, max_share: float
) -> set[str]:
  """The set of paths that cannot be decoded, whose number is logged.

  Args:
    paths: of images below `folder`.
    folder: of the data set.
    max_share: fraction of the images that may be undecodable.

  Raises:
    ValueError: more of them are.
  """
  paths = list(dict.fromkeys(paths))
  keys = np.array([_key(path, folder) for path in paths], np.uint64)
  cache = _cache_file(folder)
  known = _load(cache)
  is_new = ~np.isin(keys, known)
  bad = _decode_all(
    [path for path, new in zip(paths, is_new, strict=True) if new]
  )
  undecodable = set(bad)
  good = keys[[path not in undecodable for path in paths]]
  _save(cache, good, known)
  shown = ', '.join(bad[:10]) + (', …' if len(bad) > 10 else '')
  if bad:
    console.log('cannot be decoded: ' + ', '.join(bad))
  if len(bad) > max_share * len(paths):
    raise ValueError(
      f'{len(bad)} of {len(paths)} images in {folder} cannot be decoded: '
      f'{shown}. Mend or remove them, or raise config.max_bad_images '
      f'(now {max_share})'
    )
  if bad:
    console.log_info(
      f'warning: {len(bad)} of {len(paths)} images cannot be decoded '
      f'and are left out: {shown}'
    )
  return undecodable


def _decode_all(paths):
  """The paths that cannot be decoded, found by trying each."""
  if not paths:
    return []

  def check(index, path):
    with tf.control_dependencies(
      [preprocess.check_decodable(tf.io.read_file(path))]
    ):
      return tf.identity(index)

  indices = (
    tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    .enumerate()
    .map(check, num_parallel_calls=tf.data.AUTOTUNE)
    .ignore_errors()
  )
  good = np.zeros(len(paths), bool)
  for index in console.counting(
    indices.as_numpy_iterator(), len(paths), 'checking images'
  ):
    good[index] = True
  return [
    path for path, is_good in zip(paths, good, strict=True) if not is_good
  ]


# --- the cache ---------------------------------------------------------------


def _key(path, folder):
  """A number that changes when the file is moved, replaced or edited."""
  try:
    status = os.stat(path)
  except OSError:  # a broken link, which cannot be decoded
    return 0
  name = os.fsencode(os.path.relpath(path, folder))
  version = f'\0{status.st_size} {status.st_mtime_ns}'.encode()
  digest = hashlib.blake2b(name + version, digest_size=8).digest()
  return int.from_bytes(digest, 'big')


def _cache_file(folder):
  """Where the keys of the decodable images of a folder are stored."""
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
  return os.path.abspath(
    os.path.join(os.path.expanduser(caches), 'vit_jax', 'image_checks', name)
  )


def _load(cache):
  """The stored keys; none where there is no file that can be read."""
  try:
    return np.fromfile(cache, np.uint64)
  except OSError:
    return np.zeros(0, np.uint64)


def _save(cache, good, known):
  """Stores the keys `good` next to those `known`.

  Keys of other splits stay. Where they outnumber the images that there are,
  most are of images that have changed, and all of them are forgotten.
  """
  if np.isin(good, known).all():
    with contextlib.suppress(OSError):
      os.utime(cache)  # the last use counts in `_remove_oldest`
    return
  others = np.setdiff1d(known, good)
  if len(others) > len(good):
    others = others[:0]
  partial = f'{cache}.{os.urandom(4).hex()}'
  try:
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    try:
      np.union1d(good, others).tofile(partial)
      os.replace(partial, cache)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.remove(partial)
    _remove_oldest(os.path.dirname(cache))
  except OSError as error:
    console.log_info(
      f'warning: {cache} cannot be written ({error.strerror or error}): the '
      'images are checked again at the next start. Set XDG_CACHE_HOME to a '
      'folder that can be written'
    )


def _remove_oldest(folder):
  """Removes the files that were not used for longest, if all take too much."""
  with contextlib.suppress(FileNotFoundError):  # another run removes them too
    files = [(entry.stat(), entry.path) for entry in os.scandir(folder)]
    files.sort(key=lambda file: -file[0].st_mtime_ns)
    total = 0
    for number, (status, path) in enumerate(files):
      total += status.st_size
      if total > _MAX_BYTES or number >= _MAX_FILES:
        os.remove(path)
