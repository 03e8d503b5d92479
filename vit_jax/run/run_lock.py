"""A lock on a run's folder, so that only one run at a time writes into it.

The owner holds a file `.lock-N` and rewrites it every two seconds. The system's
file locks are not enough: NFS may have none. A lock is taken over when its
owner has ended, or has not rewritten it for half a minute: the next run creates
`.lock-N+1`, and of several that try, the file system lets one succeed.
"""

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

_BEAT_SECONDS = 2  # between signs of life
_PATIENCE_SECONDS = 30  # without a sign of life, then the owner is gone
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class RunLock:
  """The right to write into a folder; a context manager that gives it back."""

  def __init__(self, folder):
    self._folder = folder
    self._path = None  # of our lock file, while we have the lock
    self._released = threading.Event()

  def acquire(self) -> None:
    """Takes the lock.

    Raises:
      ValueError: another run uses the folder.
    """
    os.makedirs(self._folder, exist_ok=True)
    gone = set()  # (path, owner's id) of locks whose owners are gone
    while True:
      found = _find(self._folder)
      for path, content in found.items():
        owner = _parse(content)
        if (path, owner.get('id')) in gone:
          continue
        if _is_alive(path, content):
          raise ValueError(
            f'another run writes into {self._folder}: process '
            f'{owner.get("pid")} on {owner.get("host")}. Wait until it has '
            'ended, or choose another folder (--workdir=…)'
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
    """Whether the lock file `path` is ours, and no other run has one."""
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
        # Else a disturbance of the file system, which may pass.

  def check(self) -> None:
    """Raises an OSError if the folder is gone, or another run has taken it."""
    if self._path is None:
      return
    try:
      os.stat(self._path)
    except OSError as error:
      if error.errno not in _GONE:
        return
      if _find(self._folder):
        raise OSError(
          f'another run has taken over {self._folder}, since this one showed '
          f'no sign of life for {_PATIENCE_SECONDS} seconds. This one ends'
        ) from error
      raise OSError(
        f'{self._folder} was removed or renamed during the run, which ends: '
        'its files are no longer there'
      ) from error

  def release(self) -> None:
    """Gives the lock back; does nothing without it."""
    self._released.set()
    if self._path:
      _remove(self._path)
      self._path = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.release()


def _find(folder):
  """{path: content} of the lock files in a folder."""
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
  """The content of a lock file; None where there is no such file."""
  try:
    with open(path, encoding='utf-8', errors='replace') as file:
      return file.read()
  except OSError as error:
    if error.errno in _GONE:
      return None
    raise


def _parse(content):
  """The owner that a lock file names; {} if it is not written yet."""
  try:
    owner = json.loads(content)
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
  """Whether the owner of a lock file is alive; may wait for a sign of life."""
  owner = _parse(content)
  if owner.get('machine') and owner['machine'] == _machine():
    state, started = _process(owner.get('pid'))
    if started is None or started != owner.get('started'):
      return False
    if state == 'T':  # stopped by Ctrl-Z; it may go on at any time
      return True
  start, said = time.monotonic(), False
  while (waited := time.monotonic() - start) < _PATIENCE_SECONDS:
    time.sleep(0.1)
    now = _read(path)
    if now is None:
      return False
    if now != content:
      return True
    if waited > 2 * _BEAT_SECONDS and not said:
      said = True
      console.log_info(
        f'{path} was left by a run on {owner.get("host")}: waiting '
        f'{_PATIENCE_SECONDS} seconds for a sign of life'
      )
  return False


def _machine():
  """Names this boot of this machine, and its process numbers; '' if unknown."""
  try:
    with open('/proc/sys/kernel/random/boot_id', encoding='ascii') as file:
      return file.read().strip() + ' ' + os.readlink('/proc/self/ns/pid')
  except OSError:
    return ''


def _process(pid):
  """(state, start time) of a process; (None, None) if it has ended."""
  try:
    with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as file:
      fields = file.read().rpartition(')')[2].split()  # names may hold spaces
  except OSError:
    return None, None
  state, started = fields[0], fields[19]
  return (None, None) if state in 'ZX' else (state, started)
