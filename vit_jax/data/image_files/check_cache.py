"""The user's cache of checked images: what is known of each good image.

There is one file for each folder of images. So all runs and all splits share
one check.
"""

import contextlib
import hashlib
import os
import stat

import numpy as np

from vit_jax import console
from vit_jax.data.image_files import image_decoder

# Limits for all files in the cache; the least recently used are removed.
_MAX_BYTES = 2**28
_MAX_FILES = 1000
_DECODER = f'decoder {image_decoder.VERSION}'

# What is known of an image that can be decoded.
RECORD = np.dtype(
  [
    ('key', '<u8'),  # see `key`
    ('content', '<u8'),  # hash of the bytes of the file
    ('height', '<u4'),  # of the upright image, in pixels
    ('width', '<u4'),
    ('kind', 'S10'),  # of the first bytes; see `image_kinds.of_header`
  ]
)


NO_FILE = 0  # key of what is not a file


def relative(path: str, folder: str) -> str:
  """Returns `os.path.relpath(path, folder)`, in a tenth of its time."""
  start = os.path.join(folder, '')
  name = path[len(start) :]
  # A path with components such as `..` is not in its shortest form.
  is_short = (
    '/.' not in name and '//' not in name and name[:1] not in ('.', '/')
  )
  if path.startswith(start) and is_short:
    return name
  return os.path.relpath(path, folder)


def key(path: str, folder: str) -> int:
  """Returns a number that changes if the file is moved, replaced or edited.

  It is an 8-byte hash of the path below `folder`, the size, the modification
  time and the decoder. It is `NO_FILE` for what is not a regular file.
  """
  try:
    status = os.stat(path)
  except OSError:  # a broken link, which cannot be decoded
    return NO_FILE
  if not stat.S_ISREG(status.st_mode):  # to read a pipe may not end
    return NO_FILE
  name = os.fsencode(relative(path, folder))
  version = f'\0{status.st_size} {status.st_mtime_ns} {_DECODER}'.encode()
  digest = hashlib.blake2b(name + version, digest_size=8).digest()
  return int.from_bytes(digest, 'big')


def path_of(folder: str) -> str:
  """Returns the path of the cache file for a folder of images."""
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
  return os.path.abspath(
    os.path.join(
      os.path.expanduser(caches), 'vit_jax', 'image_checks', f'{name}.npy'
    )
  )


def load(path: str) -> np.ndarray:
  """Returns the stored records [N], sorted by key; none for a damaged file."""
  try:
    records = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError):
    records = None
  if getattr(records, 'dtype', None) != RECORD or records.ndim != 1:
    return np.zeros(0, RECORD)
  return records


def find(keys: np.ndarray, records: np.ndarray) -> np.ndarray:
  """Returns the index of each key in `records`, −1 for an unknown key."""
  if not len(records):
    return np.full(len(keys), -1)
  where = np.searchsorted(records['key'], keys).clip(max=len(records) - 1)
  return np.where(records['key'][where] == keys, where, -1)


def save(path: str, good: np.ndarray, known: np.ndarray) -> None:
  """Adds the records `good` to the stored records `known`.

  The other records in `known` are kept, because they can belong to other
  splits. If there are more of them than records in `good`, most of them
  probably belong to old versions of images. Then all of them are removed.
  """
  if np.isin(good['key'], known['key']).all():
    with contextlib.suppress(OSError):
      os.utime(path)  # the time of the last use, for `_remove_oldest`
    return
  others = known[~np.isin(known['key'], good['key'])]
  if len(others) > len(good):
    others = others[:0]
  _, first = np.unique(good['key'], return_index=True)
  records = np.concatenate([good[first], others])
  partial = f'{path}.{os.urandom(4).hex()}'
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
      with open(partial, 'wb') as file:
        np.save(file, records[np.argsort(records['key'])])
      os.replace(partial, path)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.remove(partial)
    _remove_oldest(os.path.dirname(path))
  except OSError as error:
    console.log_info(
      f'warning: {path} cannot be written ({error.strerror or error}). The '
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
