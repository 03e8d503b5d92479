"""Finds the images of a folder that cannot be decoded.

The user's cache stores which images can be decoded, in one file for each folder
of images. So all runs and all splits share one check. The key of an image is an
8-byte hash of its path, its size, its modification time and the decoder.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import hashlib
import os

import numpy as np

from vit_jax import console
from vit_jax.data import tensorflow as tf
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import image_decoder
from vit_jax.data.image_files import image_kinds
from vit_jax.data.image_files import pillow_decoder

# Limits for all files in the cache; the least recently used are removed.
_MAX_BYTES = 2**28
_MAX_FILES = 1000
_DECODER = f'decoder {image_decoder.VERSION}'


def find_undecodable(
  paths: Sequence[str], folder: str, max_fraction: float
) -> dict[str, str]:
  """Returns {path: reason} of images that cannot be decoded, and logs them.

  Args:
    paths: paths of images below `folder`.
    folder: folder of the dataset.
    max_fraction: largest accepted fraction of undecodable images.

  Raises:
    ValueError: the fraction of undecodable images is larger.
  """
  paths = list(dict.fromkeys(paths))
  keys = np.array([_key(path, folder) for path in paths], np.uint64)
  cache = _cache_file(folder)
  known = _load(cache)
  is_new = ~np.isin(keys, known)
  bad = _decode_all(
    [path for path, new in zip(paths, is_new, strict=True) if new]
  )
  undecodable = {path: reason(path) for path in bad}
  good = keys[[path not in undecodable for path in paths]]
  _save(cache, good, known)
  listed = describe(undecodable)
  if bad:
    console.log(
      'images that cannot be decoded: '
      + ', '.join(f'{path} ({text})' for path, text in undecodable.items())
    )
  if len(bad) > max_fraction * len(paths):
    raise ValueError(
      f'{len(bad)} of {len(paths)} images in {folder} cannot be decoded: '
      f'{listed}. This is more than config.max_bad_images={max_fraction} '
      'accepts. Repair or remove the images, or raise config.max_bad_images.'
    )
  if bad:
    console.log_info(
      f'warning: {len(bad)} of {len(paths)} images cannot be decoded '
      f'and are skipped: {listed}'
    )
  return undecodable


def describe(reasons: Mapping[str, str]) -> str:
  """Returns a text of {path: reason}: counts, with three examples of each."""
  paths_of = {}
  for path, text in reasons.items():
    paths_of.setdefault(text, []).append(path)
  return '; '.join(
    f'{len(paths)} {text}: {", ".join(paths[:3])}' + ', …' * (len(paths) > 3)
    for text, paths in sorted(paths_of.items(), key=lambda x: -len(x[1]))
  )


def reason(path: str) -> str:
  """Returns why an image file cannot be decoded: 'truncated', 'empty', …."""
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except OSError as error:
    return error.strerror or str(error)
  if not content:
    return 'empty'
  header = image_kinds.of_header(content[: image_kinds.HEADER_BYTES])
  for kind in (image_kinds.of_suffix(path), header):
    if kind and not image_kinds.is_read(kind):
      return image_kinds.describe_unread(kind)
  if not header:
    return 'not an image'
  try:
    pillow_decoder.decode(content, decoding.OWN_FILES)
  except ValueError as error:
    return str(error)
  except (OSError, SyntaxError, EOFError, IndexError) as error:
    ends = header != 'JPEG' or b'\xff\xd9' in content[-64:]
    if not ends or 'truncated' in str(error):
      return 'truncated'
  return 'damaged'


def _decode_all(paths):
  """Decodes all paths and returns the paths that cannot be decoded."""
  if not paths:
    return []

  def check(index, path):
    with tf.control_dependencies(
      [image_decoder.check_decodable(tf.io.read_file(path))]
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
  """Returns a number that changes if the file is moved, replaced or edited."""
  try:
    status = os.stat(path)
  except OSError:  # a broken link, which cannot be decoded
    return 0
  name = os.fsencode(os.path.relpath(path, folder))
  version = f'\0{status.st_size} {status.st_mtime_ns} {_DECODER}'.encode()
  digest = hashlib.blake2b(name + version, digest_size=8).digest()
  return int.from_bytes(digest, 'big')


def _cache_file(folder):
  """Returns the path of the cache file for a folder of images."""
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
  return os.path.abspath(
    os.path.join(os.path.expanduser(caches), 'vit_jax', 'image_checks', name)
  )


def _load(cache):
  """Returns the stored keys; an empty array if the file cannot be read."""
  try:
    return np.fromfile(cache, np.uint64)
  except OSError:
    return np.zeros(0, np.uint64)


def _save(cache, good, known):
  """Adds the keys `good` to the stored keys `known`.

  The other keys in `known` are kept, because they can belong to other splits.
  If there are more other keys than keys in `good`, most other keys probably
  belong to old versions of images. Then all other keys are removed.
  """
  if np.isin(good, known).all():
    with contextlib.suppress(OSError):
      os.utime(cache)  # the time of the last use, for `_remove_oldest`
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
      f'warning: {cache} cannot be written ({error.strerror or error}). The '
      'next start will check the images again. Set XDG_CACHE_HOME to a '
      'writable folder.'
    )


def _remove_oldest(folder):
  """Removes the least recently used files if the cache is over its limits."""
  with contextlib.suppress(FileNotFoundError):  # another run removed the file
    files = [(entry.stat(), entry.path) for entry in os.scandir(folder)]
    files.sort(key=lambda file: -file[0].st_mtime_ns)
    total = 0
    for number, (status, path) in enumerate(files):
      total += status.st_size
      if total > _MAX_BYTES or number >= _MAX_FILES:
        os.remove(path)
