"""One file over HTTP into the cache: resumed, checked, and there when whole.

While it comes it is called NAME.partial; NAME.partial.tag beside it holds what
identifies the object (its ETag), so that a changed one starts afresh. A file in
the cache is not asked for again: delete it to have it fetched anew.
"""

import base64
import contextlib
import hashlib
import http.client
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request

from vit_jax import console
from vit_jax.checkpoint.pretrained import cache

_ANSWER_SECONDS = 15  # to reach a server, whatever number of addresses it has
_SILENCE_SECONDS = 30  # between two pieces of a file
_ATTEMPTS = 4  # in a row that bring nothing
_PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each further
_PIECE = 2**20  # bytes


class Unavailable(ValueError):
  """A source's answer that is not the file, in a few words."""


class Unreached(Unavailable):
  """There was no answer."""


class _Interrupted(Exception):
  """What may go better at the next attempt."""


def within(seconds, function):
  """What `function()` returns or raises, or a TimeoutError after `seconds`.

  A socket's own timeout is for each address of a host in turn, which may be
  minutes in all where packets are dropped.
  """
  outcome = []

  def run():
    try:
      outcome.append((function(), None))
    except BaseException as error:
      outcome.append((None, error))

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)
  if not outcome:
    raise TimeoutError(f'no answer within {seconds} s')
  ((result, error),) = outcome
  if error is not None:
    raise error
  return result


def unreached(error):
  """The `Unreached` of a failure to connect."""
  error = getattr(error, 'reason', error)
  said = getattr(error, 'strerror', None) or str(error)
  return Unreached(
    'not reached (' + re.sub(r'^\[Errno -?\d+\] ', '', said) + ')'
  )


def fetch(url, path=None, *, shown=None, token=None, sha256=None):
  """The path of a file, fetched unless it is there.

  Processes that want the same file wait for the one that fetches it.

  Args:
    url: http:// or https://.
    path: where to, instead of `cache.path_for(url)`.
    shown: name in messages, instead of the URL.
    token: to authorise with; it is not passed on to where a server redirects.
    sha256: in hexadecimal, where known.

  Raises:
    Unavailable: with the server's answer.
    ValueError: the file cannot be written.
  """
  path = path or cache.path_for(url)
  if os.path.isfile(path):
    return path
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with cache.locked(f'{path}.partial', shown or url) as file:
      if not os.path.isfile(path):  # else another process has just fetched it
        _Download(url, path, file, shown or url, token, sha256).run()
        os.fsync(file.fileno())
        os.replace(file.name, path)
        cache.remove(f'{file.name}.tag')
  except OSError as error:
    raise ValueError(
      f'{error.filename or path} cannot be written: '
      f'{error.strerror}; {cache.OTHER_FOLDER}'
    ) from error
  return path


class _Download:
  """One file on its way, and what is known of it."""

  def __init__(self, url, path, file, shown, token, sha256):
    self._url = url
    self._path = path
    self._file = file  # appended to; never buffered
    self._shown = shown
    self._token = token
    self._sha256 = sha256
    self._md5 = None  # of the object being received, where the server says it
    self._announced = False

  def run(self):
    """Fetches the rest of the file, and checks the whole."""
    in_vain, most = 0, self._size()
    while True:
      have = self._size()
      try:
        with self._open(have) as answer:
          self._receive(answer)
        self._check(resumed=have > 0)
        return
      except _Interrupted as error:
        # Against the most there ever was: a file begun afresh only regains.
        in_vain = 1 if self._size() > most else in_vain + 1
        most = max(most, self._size())
        if in_vain == _ATTEMPTS:
          raise Unavailable(f'{error}, {_ATTEMPTS} times in a row') from error
        console.log(f'{self._shown}: {error}; trying again')
        time.sleep(_PAUSE_SECONDS * 2 ** (in_vain - 1))

  def _size(self):
    return os.fstat(self._file.fileno()).st_size

  def _tag(self):
    """What identified the object when the partial file was begun, or ''."""
    with contextlib.suppress(FileNotFoundError):
      with open(f'{self._file.name}.tag', encoding='utf-8') as file:
        return file.read()
    return ''

  def _begin(self, tag):
    """Empties the file, for the object that `tag` identifies."""
    self._file.truncate(0)
    with open(f'{self._file.name}.tag', 'w', encoding='utf-8') as file:
      file.write(tag)

  def _open(self, have):
    """The server's answer, of status 200 or 206."""
    request = urllib.request.Request(
      self._url, headers={'User-Agent': 'vit_jax', 'Accept': '*/*'}
    )
    if self._token:
      request.add_unredirected_header('Authorization', f'Bearer {self._token}')
    tag = self._tag()
    if have and tag and tag == (self._sha256 or tag):
      request.add_header('Range', f'bytes={have}-')
      if not self._sha256:
        request.add_header('If-Range', tag)
    try:
      # Proxies are those of the environment as it is now.
      return within(
        _ANSWER_SECONDS,
        lambda: urllib.request.build_opener().open(
          request, timeout=_SILENCE_SECONDS
        ),
      )
    except urllib.error.HTTPError as error:
      answer = f'{error.code} {error.reason}'
      if error.code == 416:  # not the object that the partial file is of
        self._begin('')
      if error.code >= 500 or error.code in (408, 416, 429):
        raise _Interrupted(answer) from error
      raise Unavailable(
        f'refused ({answer})'
        if error.code in (401, 403)
        else f'not there ({answer})'
        if error.code in (404, 410)
        else answer
      ) from error
    except urllib.error.URLError as error:
      if isinstance(error.reason, ConnectionResetError):
        raise _Interrupted('connection reset') from error
      raise unreached(error) from error
    except TimeoutError as error:
      raise unreached(error) from error
    except (OSError, http.client.HTTPException) as error:
      raise _Interrupted(f'connection broken ({error})') from error

  def _receive(self, answer):
    """Appends the body of `answer` to the file."""
    length = answer.headers.get('Content-Length')
    if answer.headers.get_content_type() == 'text/html':
      raise Unavailable('answered with a web page (text/html) and no file')
    if length is None and not answer.chunked and not self._sha256:
      raise Unavailable(
        'the server does not say how long the file is, so '
        'that half of it could pass for the whole'
      )
    start, total = 0, int(length) if length else None
    if answer.status == 206:
      start, total = _part(answer.headers.get('Content-Range', ''))
    if start == 0 or start != self._size():
      tag = answer.headers.get('ETag') or answer.headers.get('Last-Modified')
      if not tag or tag.startswith('W/'):  # fit for no If-Range
        tag = ''
      self._begin(self._sha256 or tag)
      if answer.status == 206 and start:
        raise _Interrupted('another part than was asked for')
    self._md5 = _md5(answer.headers)
    self._announce(total)
    self._check_space(total)
    name = os.path.basename(self._path)
    if len(name) > 30:  # a line that wraps cannot be redrawn
      name = f'{name[:29]}…'
    for piece in console.transferring(
      _pieces(answer), f'fetching {name}', start, total
    ):
      self._write(piece)
    if total is not None and self._size() != total:
      raise _Interrupted(f'cut after {self._size()} of {total} bytes')

  def _announce(self, total):
    if not self._announced:
      have = self._size()
      console.log_info(
        f'fetching {self._shown}'
        + (f' ({console.file_size(total)})' if total else '')
        + f' into {os.path.dirname(self._path)}'
        + (f', going on after {console.file_size(have)}' if have else '')
      )
      self._announced = True

  def _check_space(self, total):
    folder = os.path.dirname(self._path)
    free = shutil.disk_usage(folder).free
    if total is not None and total - self._size() > free:
      raise ValueError(
        f'{folder} has {console.file_size(free)} free, and {self._shown} '
        f'needs {console.file_size(total - self._size())}: make room, or '
        f'{cache.OTHER_FOLDER}'
      )

  def _write(self, piece):
    rest = memoryview(piece)
    try:
      while rest:
        rest = rest[self._file.write(rest) :]
    except OSError as error:
      raise ValueError(
        f'{self._file.name} cannot be written: {error.strerror}. The '
        f'{console.file_size(self._size())} that came are kept, and the next '
        f'attempt goes on after them: make room, or {cache.OTHER_FOLDER}'
      ) from error

  def _check(self, resumed):
    """Compares the whole file with the source's checksum, where it gave one."""
    algorithm, expected = (
      ('sha256', self._sha256) if self._sha256 else ('md5', self._md5)
    )
    if expected is None:
      return
    with open(self._file.name, 'rb') as file:
      found = hashlib.file_digest(file, algorithm).hexdigest()
    if found == expected:
      return
    self._begin('')
    said = f'{algorithm} is {found} and not {expected}, as its source says'
    if resumed:  # what lay there may have been the damaged part
      raise _Interrupted(said)
    raise Unavailable(f'damaged: {said}')


def _pieces(answer):
  """The body, piece by piece."""
  try:
    while piece := answer.read1(_PIECE):
      yield piece
  except TimeoutError as error:
    raise _Interrupted(f'silent for {_SILENCE_SECONDS} s') from error
  except (OSError, http.client.HTTPException) as error:
    raise _Interrupted(f'connection broken ({error})') from error


def _part(content_range):
  """(start, size of the whole) of a 206; (−1, None) if it does not say both.

  Its Content-Length is that of the part, which may end before the file does.
  """
  said = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', content_range.strip())
  return (int(said[1]), int(said[2])) if said else (-1, None)


def _md5(headers):
  """The MD5 in hexadecimal, where Google Cloud Storage says it, else None.

  An object composed of parts has a crc32c alone; then its size is the check.
  """
  said = ','.join(headers.get_all('x-goog-hash', []))
  match = re.search(r'\bmd5=([\w+/]{22}==)', said)
  return base64.b64decode(match.group(1)).hex() if match else None
