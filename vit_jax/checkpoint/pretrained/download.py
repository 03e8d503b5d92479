"""Downloads one file over HTTPS into the cache.

`requests` follows redirects, uses proxies, and notices a body that ends early.
This module refuses answers that are not the file, tries again, and compares
checksums. A file is called NAME.partial until it is complete and correct. A
file in the cache is not downloaded again: delete it to get it anew.
"""

import base64
from collections.abc import Callable
import concurrent.futures
import contextlib
import hashlib
import os
import shutil
import threading
import time
from typing import Any

import requests

from vit_jax import console
from vit_jax.checkpoint.pretrained import cache

_ANSWER_SECONDS = 15  # to reach a server, whatever number of addresses it has
_SILENCE_SECONDS = 30  # between two pieces of a file
_ATTEMPTS = 4
_PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each further
_PIECE = 2**20  # bytes

_REFUSALS = {401: 'refused', 403: 'refused', 404: 'not there', 410: 'not there'}
_RETRIED = (408, 429)  # and all of 500 and above


class Unavailable(ValueError):
  """A source does not give the file; the message is its answer, in short."""


class Unreached(Unavailable):
  """A source gives no answer."""


class _Interrupted(Exception):
  """A failure that the next attempt may not have."""


def within(seconds: float, function: Callable) -> Any:
  """Returns `function()`, or raises a TimeoutError after `seconds`.

  The timeout of a socket applies to each address of a host in turn, which may
  be minutes in all where packets are dropped.
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
  """Returns the first of a chain of exceptions: the operating system's."""
  while cause := error.__cause__ or error.__context__:
    error = cause
  return error


def unreached(error: BaseException) -> Exception:
  """Returns the `Unreached` of a failure to connect."""
  cause = root_cause(error)
  return Unreached(f'not reached ({getattr(cause, "strerror", None) or cause})')


def fetch(url: str) -> str:
  """Returns the path of a URL's file, and downloads it unless it is cached.

  Processes that want the same file wait for the one that downloads it.

  Raises:
    Unavailable: with the server's answer.
    ValueError: the file cannot be written.
  """
  path = cache.path_for(url)
  if os.path.isfile(path):
    return path
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with cache.locked(path, url):
      if not os.path.isfile(path):  # else another process has downloaded it
        _download(url, path)
  except OSError as error:
    raise ValueError(
      f'{error.filename or path} cannot be written: '
      f'{error.strerror or error}; make room, or {cache.OTHER_FOLDER}'
    ) from error
  return path


def _download(url, path):
  """Downloads a file, in several attempts where needed."""
  for attempt in range(_ATTEMPTS):
    try:
      with _open(url) as response:
        _check_is_file(response)
        _announce(url, response, os.path.dirname(path))
        with _complete_file(path) as file:
          _receive(response, file)
      return
    except _Interrupted as error:
      if attempt == _ATTEMPTS - 1:
        raise Unavailable(f'{error}, {_ATTEMPTS} times in a row') from error
      console.log_info(f'{url}: {error}; trying again')
      time.sleep(_PAUSE_SECONDS * 2**attempt)


@contextlib.contextmanager
def _complete_file(path):
  """Opens PATH.partial, which becomes `path` unless an exception is raised."""
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
  """Returns the server's response of status 200, before its body is read."""
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
  except requests.RequestException as error:  # such as too many redirects
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
  """Refuses a response whose body is not the file, or may be half of it."""
  content_type = response.headers.get('Content-Type', '').lower()
  if content_type.startswith('text/html'):
    raise Unavailable('answered with a web page (text/html) and no file')
  if response.raw.length_remaining is None and not response.raw.chunked:
    raise Unavailable(
      'the server does not say how long the file is, so that half of it could '
      'pass for the whole'
    )


def _announce(url, response, folder):
  """Logs what is downloaded, and checks that the disk has room for it."""
  size = response.raw.length_remaining or 0
  free = shutil.disk_usage(folder).free
  if size > free:
    raise ValueError(
      f'{folder} has {console.file_size(free)} free, and {url} needs '
      f'{console.file_size(size)}: make room, or {cache.OTHER_FOLDER}'
    )
  shown = f' ({console.file_size(size)})' if size else ''
  console.log_info(f'fetching {url}{shown} into {folder}')


def _receive(response, file):
  """Writes the body to `file`, and compares its MD5 if the server gives one."""
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
      f'damaged: md5 is {found} and not {expected}, as its source says'
    )


def _md5(headers):
  """Returns the MD5 in base64 that Google Cloud Storage gives, else None.

  An object that was composed of parts has a crc32c alone.
  """
  hashes = headers.get('x-goog-hash', '').split(',')  # crc32c=…,md5=…
  return dict(part.strip().partition('=')[::2] for part in hashes).get('md5')
