"""Downloads one file over HTTPS into the cache.

`requests` follows redirects, uses proxies and detects truncated downloads. This
module rejects responses that are not the file, retries, and compares checksums.
A file is called NAME.partial until it is complete and correct. A file in the
cache is not downloaded again unless the user deletes it.
"""

import base64
from collections.abc import Callable
import concurrent.futures
import contextlib
import hashlib
import http.client
import os
import shutil
import threading
import time
from typing import Any
import zipfile

from vit_jax import console
from vit_jax.checkpoint.pretrained import cache

_ANSWER_SECONDS = 15  # Timeout for an answer, over all addresses of a host.
_SILENCE_SECONDS = 30  # Timeout between two chunks of a file.
_ATTEMPTS = 4
_PAUSE_SECONDS = 1.0  # Pause before the second attempt; then doubled each time.
_PIECE = 2**20  # Bytes.

_REFUSALS = {
  401: 'access denied',
  403: 'access denied',
  404: 'not found',
  410: 'not found',
}
_RETRIED = (408, 429)  # In addition to all codes from 500.


class Unavailable(ValueError):
  """A source does not provide the file; the message contains its answer."""


class Unreached(Unavailable):
  """A source does not answer."""


class _Interrupted(Exception):
  """A temporary failure: the next attempt may succeed."""


def within(seconds: float, function: Callable) -> Any:
  """Returns `function()`, or raises TimeoutError after `seconds`.

  The timeout of a socket applies to each address of a host in turn. If packets
  are dropped, the sum of these timeouts can be minutes.
  """
  outcome = concurrent.futures.Future()

  def run():
    try:
      outcome.set_result(function())
    except BaseException as error:
      outcome.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  concurrent.futures.wait([outcome], seconds)
  if not outcome.done():
    raise TimeoutError(f'no answer within {seconds} s')
  return outcome.result()


def root_cause(error: BaseException) -> BaseException:
  """Returns the first exception of a chain, often of the operating system."""
  while cause := error.__cause__ or error.__context__:
    error = cause
  return error


def unreached(error: BaseException) -> Exception:
  """Returns the `Unreached` for a connection error."""
  cause = root_cause(error)
  reason = getattr(cause, 'strerror', None) or ' '.join(str(cause).split())
  if isinstance(cause, http.client.BadStatusLine):  # its text is the answer
    reason = f'its answer is not HTTP: {reason[:60]!r}'
  return Unreached(f'not reached ({reason})')


def fetch(url: str) -> str:
  """Returns the path of a URL's file, downloaded if it is not cached.

  If several processes need one file, one downloads it and the others wait.

  Raises:
    Unavailable: contains the server's answer.
    ValueError: the file cannot be written.
  """
  path = cache.path_for(url)
  if os.path.isfile(path):
    return path
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with cache.locked(path, url):
      # Another process may have downloaded the file in the meantime.
      if not os.path.isfile(path):
        _download(url, path)
  except OSError as error:
    raise ValueError(
      f'{error.filename or path} cannot be written: '
      f'{error.strerror or error}. Free disk space, or {cache.OTHER_FOLDER}.'
    ) from error
  return path


def _download(url, path):
  """Downloads a file, with several attempts if needed."""
  for attempt in range(_ATTEMPTS):
    try:
      with _open(url) as response:
        _check_is_file(response)
        _announce(url, response, os.path.dirname(path))
        with _complete_file(path) as file:
          _receive(response, file)
          file.flush()
          _check_content(file.name, path)
      return
    except _Interrupted as error:
      if attempt == _ATTEMPTS - 1:
        raise Unavailable(f'{error}, {_ATTEMPTS} times in a row') from error
      console.log_info(f'{url}: {error}. Trying again.')
      time.sleep(_PAUSE_SECONDS * 2**attempt)


@contextlib.contextmanager
def _complete_file(path):
  """Opens PATH.partial, which is renamed to `path` if no exception occurs."""
  partial = f'{path}.partial'
  try:
    with open(partial, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(partial)
    raise


def _open(url):
  """Returns the server's response with status 200; the body is unread."""
  import requests

  try:
    response = within(
      _ANSWER_SECONDS,
      lambda: requests.get(
        url,
        stream=True,
        timeout=_SILENCE_SECONDS,
        headers={'User-Agent': 'vit_jax', 'Accept-Encoding': 'identity'},
      ),
    )
  except (requests.ConnectionError, requests.Timeout, TimeoutError) as error:
    if isinstance(root_cause(error), ConnectionResetError):
      raise _Interrupted('connection reset') from error
    raise unreached(error) from error
  except requests.RequestException as error:  # For example, many redirects.
    raise Unavailable(f'no usable answer ({error})') from error
  status = response.status_code
  if status == 200:
    return response
  response.close()
  answer = f'{status} {response.reason}'
  if status in _RETRIED or status >= 500:
    raise _Interrupted(answer)
  kind = _REFUSALS.get(status)
  raise Unavailable(f'{kind} ({answer})' if kind else answer)


def _check_is_file(response):
  """Rejects a response with a web page, or with an unknown length."""
  content_type = response.headers.get('Content-Type', '').lower()
  if content_type.startswith('text/html'):
    raise Unavailable('the answer is a web page (text/html), not the file')
  if response.raw.length_remaining is None and not response.raw.chunked:
    raise Unavailable(
      'the server does not send the length of the file, so a truncated '
      'download could not be detected'
    )


def _announce(url, response, folder):
  """Logs the download, and checks that the disk has enough free space."""
  size = response.raw.length_remaining or 0
  free = shutil.disk_usage(folder).free
  if size > free:
    raise ValueError(
      f'{folder} has {console.file_size(free)} free, but {url} needs '
      f'{console.file_size(size)}. Free disk space, or {cache.OTHER_FOLDER}.'
    )
  shown = f' ({console.file_size(size)})' if size else ''
  console.log_info(f'downloading {url}{shown} into {folder}')


def _receive(response, file):
  """Writes the body to `file`, and compares its MD5 if the server sends one."""
  import requests

  name = os.path.basename(file.name).removesuffix('.partial')
  size = response.raw.length_remaining
  digest = hashlib.md5()
  try:
    with console.Bar(desc=name, total=size, unit='B', unit_scale=True) as bar:
      for piece in response.iter_content(_PIECE):
        digest.update(piece)
        file.write(piece)
        bar.update(len(piece))
  except requests.RequestException as error:
    raise _Interrupted(f'connection broken ({root_cause(error)})') from error
  expected = _md5(response.headers)
  found = base64.b64encode(digest.digest()).decode()
  if expected and found != expected:
    raise Unavailable(
      f'damaged: its MD5 is {found}, but the server sent {expected}'
    )


def _check_content(partial, path):
  """Raises Unavailable if a complete answer cannot be the file of `path`.

  Otherwise, an empty file or an error page would stay in the cache, and every
  later start would fail.
  """
  with open(partial, 'rb') as file:
    start = file.read(64)
  size = os.path.getsize(partial)
  if path.endswith('.npz'):
    fits = zipfile.is_zipfile(partial)
  elif path.endswith('.safetensors'):
    header = int.from_bytes(start[:8], 'little')
    fits = start[8:9] == b'{' and 8 + header <= size
  else:
    fits = size and not start.lstrip().lower().startswith((b'<html', b'<!doc'))
  if not fits:
    raise Unavailable(
      f'the answer is not the file: it has {size} bytes, and starts with '
      f'{start[:20]!r}'
    )


def _md5(headers):
  """Returns the MD5 in base64 from Google Cloud Storage, or None.

  An object that was composed of parts has only a crc32c.
  """
  hashes = headers.get('x-goog-hash', '').split(',')  # crc32c=…,md5=…
  return dict(part.strip().partition('=')[::2] for part in hashes).get('md5')
