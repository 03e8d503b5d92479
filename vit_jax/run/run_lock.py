"""A lock on a run folder, so that only one run at a time writes into it.

The owner creates a file `.lock-N` and rewrites it every two seconds. File locks
of the operating system are not used, because NFS may not support them.

Another run takes over the lock if the owner has ended, or has not rewritten the
file for 30 seconds. The other run creates `.lock-N+1`. If several runs try, the
file system lets only one succeed.
"""

import contextlib
import errno
import glob
import json
import os
import re
import socket
import threading
import time
import uuid

from vit_jax import console
from vit_jax.files import json_files
from vit_jax.files import regular_files

_BEAT_SECONDS = 2  # interval of rewriting the lock file
_PATIENCE_SECONDS = 30  # time without a rewrite after which a lock is invalid
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class RunLock:
  """The right to write into a folder; a context manager that releases it."""

  def __init__(self, folder):
    self._folder = folder
    self._path = None  # path of the lock file, None without the lock
    self._released = threading.Event()

  def acquire(self) -> None:
    """Acquires the lock.

    Raises:
      ValueError: another run uses the folder.
    """
    os.makedirs(self._folder, exist_ok=True)
    gone = set()  # (path, owner's id) of locks with an owner that has ended
    while True:
      found = _find(self._folder)
      for path, content in found.items():
        owner = _parse(content)
        if (path, owner.get('id')) in gone:
          continue
        if _is_alive(path, content):
          raise ValueError(
            f'another run writes into {self._folder}: process '
            f'{owner.get("pid")} on {owner.get("host")}. Wait until it ends, '
            'or use another workdir=…'
          )
        gone.add((path, owner.get('id')))
      number = 1 + max(map(_number, found), default=0)
      path = os.path.join(self._folder, f'.lock-{number}')
      if self._create(path, gone):
        break
    for other, _ in gone:
      _remove(other)
    self._path = path
    threading.Thread(target=self._beat, args=[path], daemon=True).start()

  def _create(self, path, gone):
    """Creates the lock file; returns whether this run has the only lock."""
    self._owner = {
      'id': uuid.uuid4().hex,
      'host': socket.gethostname(),
      'machine': _machine(),
      'pid': os.getpid(),
      'started': _process(os.getpid())[1],
    }
    try:
      with open(path, 'x', encoding='utf-8') as file:
        file.write(self._content(0))
    except FileExistsError:
      return False
    except OSError:  # such as a full disk
      with contextlib.suppress(OSError):
        os.remove(path)  # a later run would wait for its owner
      raise
    others = {
      (other, _parse(content).get('id'))
      for other, content in _find(self._folder).items()
    }
    if others - gone == {(path, self._owner['id'])}:
      return True
    _remove(path)
    return False

  def _content(self, beat):
    return json.dumps({**self._owner, 'beat': beat})

  def _beat(self, path):
    """Rewrites the lock file until the lock is released or lost."""
    beat = 0
    while not self._released.wait(_BEAT_SECONDS):
      beat += 1
      try:
        with open(path, 'r+', encoding='utf-8') as file:
          file.write(self._content(beat))
      except OSError as error:
        if error.errno in _GONE:
          return
        # Other errors of the file system may be temporary.

  def check(self) -> None:
    """Raises OSError if the folder is gone or another run has the lock."""
    if self._path is None:
      return
    try:
      os.stat(self._path)
    except OSError as error:
      if error.errno not in _GONE:
        return
      if _find(self._folder):
        raise OSError(
          f'another run has taken over {self._folder}, because this run did '
          f'not renew its lock for {_PATIENCE_SECONDS} seconds. This run ends. '
          'Let the other run finish'
        ) from error
      raise OSError(
        f'{self._folder} was removed or renamed during the run. The run ends, '
        'because its files are gone. Start the same command again, or restore '
        'the folder first to resume'
      ) from error

  def release(self) -> None:
    """Releases the lock, if this run has it."""
    self._released.set()
    if self._path:
      # If the folder is read-only now, other runs see that this one has ended.
      with contextlib.suppress(OSError):
        _remove(self._path)
      self._path = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.release()


def _find(folder):
  """Returns {path: content} of the lock files in a folder."""
  found = {}
  for path in glob.glob(os.path.join(glob.escape(folder), '.lock-*')):
    content = _read(path)
    if content is not None and _number(path):
      found[path] = content
  return found


def _number(path):
  match = re.fullmatch(r'.*\.lock-(\d+)', path, re.DOTALL)
  return int(match.group(1)) if match else 0


def _read(path):
  """Returns the content of a lock file, or None if there is no such file."""
  try:
    regular_files.check(path)
    with open(path, encoding='utf-8', errors='replace') as file:
      return file.read()
  except OSError as error:
    if error.errno in _GONE:
      return None
    raise


def _parse(content):
  """Returns the owner in a lock file; {} if the file is not written yet."""
  try:
    owner = json_files.loads(content)
  except ValueError:
    return {}
  return owner if isinstance(owner, dict) else {}


def _remove(path):
  try:
    os.remove(path)
  except OSError as error:
    if error.errno not in _GONE:
      raise


def _is_alive(path, content):
  """Returns whether a lock's owner is running; may wait _PATIENCE_SECONDS."""
  owner = _parse(content)
  if owner.get('machine') and owner['machine'] == _machine():
    state, started = _process(owner.get('pid'))
    if started is None or started != owner.get('started'):
      return False
    if state == 'T':  # stopped by Ctrl-Z; it may continue at any time
      return True
  start, logged = time.monotonic(), False
  while (waited := time.monotonic() - start) < _PATIENCE_SECONDS:
    time.sleep(0.1)
    now = _read(path)
    if now is None:
      return False
    if now != content:
      return True
    if waited > 2 * _BEAT_SECONDS and not logged:
      logged = True
      console.log_info(
        f'a run on {owner.get("host")} left {path}: waiting '
        f'{_PATIENCE_SECONDS} seconds to see if that run is still active'
      )
  return False


def _machine():
  """Returns an id of this boot and process namespace; '' if unknown."""
  try:
    with open('/proc/sys/kernel/random/boot_id', encoding='ascii') as file:
      return file.read().strip() + ' ' + os.readlink('/proc/self/ns/pid')
  except OSError:
    return ''


def _process(pid):
  """Returns (state, start time) of a process; (None, None) if it has ended."""
  try:
    with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as file:
      fields = file.read().rpartition(')')[2].split()  # names may have spaces
  except OSError:
    return None, None
  state, started = fields[0], fields[19]
  return (None, None) if state in 'ZX' else (state, started)
