"""The folder of downloads: where the file of a URL lies, and who may fetch it.

What is being fetched is called NAME.partial until it is whole.
"""

import contextlib
import fcntl
import hashlib
import os
import urllib.parse

from vit_jax import console

OTHER_FOLDER = 'set VIT_JAX_CACHE to another folder'  # the mend, in messages


def folder():
  """The folder of downloads: $VIT_JAX_CACHE, or below ~/.cache."""
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = os.environ.get('VIT_JAX_CACHE') or os.path.join(
    base, 'vit_jax', 'weights'
  )
  return os.path.abspath(os.path.expanduser(path))


def path_for(url):
  """Where the file of a URL lies in the cache: HOST/PATH."""
  parts = urllib.parse.urlsplit(url)
  path = urllib.parse.unquote(parts.path).split('/')
  path = [part for part in path if part not in ('', '.', '..')]
  if not path or not parts.hostname:
    raise ValueError(f'{url} names no file')
  if parts.query:  # another query may be another file of the same name
    path.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:16])
  return os.path.join(folder(), parts.netloc.rpartition('@')[2], *path)


@contextlib.contextmanager
def locked(partial, shown):
  """The partial file, open for appending, once no other process has it."""
  while True:
    with open(partial, 'ab', buffering=0) as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        console.log_info(f'another process is fetching {shown}: waiting for it')
        fcntl.flock(file, fcntl.LOCK_EX)
      if not _is_at(file, partial):  # the other process was done with it
        continue
      try:
        yield file
      finally:
        if _is_at(file, partial) and not os.path.getsize(partial):
          remove(f'{partial}.tag')
          remove(partial)
      return


def remove(path):
  """Removes a file that may be gone already."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(path)


def _is_at(file, path):
  return os.path.exists(path) and os.path.samestat(
    os.fstat(file.fileno()), os.stat(path)
  )
