"""Folder of files downloaded over HTTPS: where the file of a URL is.

Files from the Hugging Face Hub are in the cache of huggingface_hub instead.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import urllib.parse

import filelock

from vit_jax import console

OTHER_FOLDER = 'set VIT_JAX_CACHE to another folder'  # the fix, in messages


def folder() -> str:
  """Returns the folder of downloads: $VIT_JAX_CACHE, or below ~/.cache."""
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = os.environ.get('VIT_JAX_CACHE') or os.path.join(
    base, 'vit_jax', 'weights'
  )
  return os.path.abspath(os.path.expanduser(path))


def path_for(url: str) -> str:
  """Returns where the file of a URL is in the cache: HOST/PATH."""
  parts = urllib.parse.urlsplit(url)
  path = urllib.parse.unquote(parts.path).split('/')
  path = [part for part in path if part not in ('', '.', '..')]
  if not path or not parts.hostname:
    raise ValueError(f'{url} names no file')
  if parts.query:  # another query may be another file of the same name
    path.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:16])
  return os.path.join(folder(), parts.netloc.rpartition('@')[2], *path)


@contextlib.contextmanager
def locked(path: str, shown: str) -> Iterator:
  """Lets one process at a time download the file `path`.

  The lock is a file PATH.lock, which stays. The operating system releases the
  lock of a process that ends in any way.
  """
  lock = filelock.FileLock(f'{path}.lock')
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    console.log_info(f'another process is fetching {shown}: waiting for it')
    lock.acquire()
  try:
    yield
  finally:
    lock.release()
