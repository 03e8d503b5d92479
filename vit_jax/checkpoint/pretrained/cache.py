"""The cache folder of files that were downloaded over HTTPS.

Files from the Hugging Face Hub are in the cache of huggingface_hub instead.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import urllib.parse

from vit_jax import console

OTHER_FOLDER = 'set VIT_JAX_CACHE to another folder'  # the fix, in messages


def folder() -> str:
  """Returns the cache folder: $VIT_JAX_CACHE, or a folder in ~/.cache."""
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = os.environ.get('VIT_JAX_CACHE') or os.path.join(
    base, 'vit_jax', 'weights'
  )
  return os.path.abspath(os.path.expanduser(path))


def split(url: str) -> urllib.parse.SplitResult:
  """Returns the parts of a URL; raises ValueError if it is malformed."""
  try:
    parts = urllib.parse.urlsplit(url)
    _ = parts.port  # fails unless it is a number up to 65535
  except ValueError as error:
    raise ValueError(f'{url} is not a URL: {error}.') from error
  return parts


def path_for(url: str) -> str:
  """Returns the path of a URL's file in the cache: HOST/PATH."""
  parts = split(url)
  path = urllib.parse.unquote(parts.path).split('/')
  path = [part for part in path if part not in ('', '.', '..')]
  if not path or not parts.hostname:
    raise ValueError(f'{url} contains no file name. Use the URL of a file.')
  # URLs that differ only in the query can be different files.
  if parts.query:
    path.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:16])
  return os.path.join(folder(), parts.netloc.rpartition('@')[2], *path)


@contextlib.contextmanager
def locked(path: str, shown: str) -> Iterator:
  """Ensures that only one process at a time downloads the file `path`.

  The lock is a file PATH.lock, which is not deleted. When a process ends for
  any reason, the operating system releases its lock.
  """
  import filelock

  lock = filelock.FileLock(f'{path}.lock')
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    console.log_info(f'another process is downloading {shown}: waiting for it')
    lock.acquire()
  try:
    yield
  finally:
    lock.release()
