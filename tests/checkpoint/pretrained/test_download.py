"""Downloads from a local server, and all kinds of failures."""

import base64
import hashlib
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests import ROOT
from tests import servers
from vit_jax.checkpoint.pretrained import download

CONTENT = servers.archive(np.random.default_rng(0).bytes(2_999_978))
OTHER = servers.archive(np.random.default_rng(1).bytes(1_999_978))
PATH = '/vit_models/imagenet21k+imagenet2012/R50+ViT-B_16.npz'


@pytest.fixture(name='server')
def fixture_server():
  server = servers.Server()
  server.files[PATH] = CONTENT
  yield server
  server.close()


@pytest.fixture(name='folder', autouse=True)
def fixture_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(download, '_PAUSE_SECONDS', 0.01)
  return tmp_path / 'cache'


def files(folder):
  """Returns the names of the files in the cache, without lock files."""
  return sorted(
    path.name
    for path in folder.rglob('*')
    if path.is_file() and path.suffix != '.lock'
  )


def fetch_elsewhere(server, limit=None, code='', **environment):
  """Returns a process that downloads PATH and prints its local path."""
  code = code or f'print(download.fetch({server.url + PATH!r}))'
  return subprocess.Popen(
    [
      sys.executable,
      '-c',
      'from vit_jax.checkpoint.pretrained import download\n' + code,
    ],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**os.environ, **environment},
    preexec_fn=limit
    and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
  )


def test_a_file_is_downloaded_once(server, folder, capsys):
  path = download.fetch(server.url + PATH)
  assert pathlib.Path(path).read_bytes() == CONTENT
  assert os.path.relpath(path, folder) == (
    server.url.removeprefix('http://') + PATH
  )
  assert files(folder) == ['R50+ViT-B_16.npz']
  assert download.fetch(server.url + PATH) == path
  assert len(server.requests) == 1
  assert f'{server.url}{PATH} (3.0 MB) into {folder}' in (
    capsys.readouterr().err
  )


def test_an_interrupted_download_is_tried_again(server, folder, capsys):
  server.faults[PATH] = [('cut', 1_000_000), 503, 429]
  path = download.fetch(server.url + PATH)
  assert pathlib.Path(path).read_bytes() == CONTENT
  assert len(server.requests) == 4
  assert files(folder) == ['R50+ViT-B_16.npz']
  log = capsys.readouterr().err
  assert '1000000 bytes read, 2000000 more expected' in log
  assert '503 Service Unavailable' in log


def test_a_killed_process_leaves_no_wrong_file(server, folder):
  gate = threading.Event()
  server.faults[PATH] = [('pause', 2_500_000, gate)]
  process = fetch_elsewhere(server)
  partial = folder / (server.url.removeprefix('http://') + PATH + '.partial')
  servers.wait_until(
    lambda: partial.exists() and partial.stat().st_size > len(OTHER)
  )
  process.send_signal(signal.SIGKILL)
  process.communicate()
  gate.set()
  assert files(folder) == ['R50+ViT-B_16.npz.partial']
  server.files[PATH] = OTHER  # A shorter object: no byte of the first is kept.
  assert pathlib.Path(download.fetch(server.url + PATH)).read_bytes() == OTHER
  assert files(folder) == ['R50+ViT-B_16.npz']


def test_a_changed_object_is_downloaded_completely(server):
  server.faults[PATH] = [('cut', 1_000_000), 403]
  with pytest.raises(download.Unavailable, match='403 Forbidden'):
    download.fetch(server.url + PATH)
  server.files[PATH] = OTHER
  path = download.fetch(server.url + PATH)
  assert pathlib.Path(path).read_bytes() == OTHER


def test_an_unrequested_part_is_rejected(server, folder):
  """The server answers with a part that was not requested."""
  server.faults[PATH] = [206]
  with pytest.raises(download.Unavailable, match='206 Partial Content'):
    download.fetch(server.url + PATH)
  assert not files(folder)


@pytest.mark.parametrize('wrong', ['3000001', '1000000000'])
def test_a_wrong_size(server, folder, wrong):
  server.extra[PATH] = {'Content-Length': wrong}
  with pytest.raises(
    download.Unavailable,
    match=f'3000000 bytes read, {int(wrong) - 3_000_000} more .*, 4 times in a',
  ):
    download.fetch(server.url + PATH)
  assert not files(folder)


@pytest.mark.parametrize('size', [None, 'unknown', '-1'])
def test_a_missing_or_invalid_size(server, folder, size):
  server.extra[PATH] = {'Content-Length': size}
  with pytest.raises(download.Unavailable, match='length of the file'):
    download.fetch(server.url + PATH)
  assert not files(folder)


def test_two_sizes(server, folder):
  server.extra[PATH] = {'Content-Length': '1000000, 3000000'}
  with pytest.raises(download.Unavailable, match='multiple unmatching values'):
    download.fetch(server.url + PATH)
  assert not files(folder)


def test_chunked_transfer(server, folder):
  server.faults[PATH] = [('chunked', 1_000_000), ('chunked', None)]
  path = download.fetch(server.url + PATH)
  assert pathlib.Path(path).read_bytes() == CONTENT
  assert len(server.requests) == 2
  server.files['/y.npz'] = CONTENT
  server.faults['/y.npz'] = [('chunked', 1_000_000)] * 4
  with pytest.raises(download.Unavailable, match='4 times in a row'):
    download.fetch(f'{server.url}/y.npz')
  assert files(folder) == ['R50+ViT-B_16.npz']


def google_hash(content):
  digest = base64.b64encode(hashlib.md5(content).digest()).decode()
  return {'x-goog-hash': f'crc32c=n03x6A==,md5={digest}'}


def test_the_md5_of_google_storage_is_checked(server, folder):
  server.extra[PATH] = google_hash(OTHER)
  with pytest.raises(download.Unavailable, match='damaged: .*MD5'):
    download.fetch(server.url + PATH)
  assert not files(folder) and len(server.requests) == 1
  server.extra[PATH] = google_hash(CONTENT)
  download.fetch(server.url + PATH)


def test_a_header_with_only_one_hash(server, folder):
  digest = base64.b64encode(hashlib.md5(OTHER).digest()).decode()
  server.extra[PATH] = {'x-goog-hash': f'md5={digest}'}
  with pytest.raises(download.Unavailable, match='damaged: .*MD5'):
    download.fetch(server.url + PATH)
  server.extra[PATH] = {'x-goog-hash': 'crc32c=n03x6A=='}  # No MD5.
  assert pathlib.Path(download.fetch(server.url + PATH)).read_bytes() == CONTENT


@pytest.mark.parametrize(
  'fault, requests, message',
  [
    (401, 1, r'denied \(401 Unauthorized\)'),
    (403, 1, r'denied \(403 Forbidden\)'),
    (404, 1, r'not found \(404'),
    (('web page',), 1, 'is a web page'),
    (500, 4, '500 Internal Server Error, 4 times in a row'),
    (('cut', 0), 4, '0 bytes read, 3000000 more expected.*, 4 times in a row'),
  ],
)
def test_answers_without_a_file(server, folder, fault, requests, message):
  server.faults[PATH] = [fault] * 10
  with pytest.raises(download.Unavailable, match=message):
    download.fetch(server.url + PATH)
  assert len(server.requests) == requests
  assert not files(folder)


def test_no_server():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  start = time.monotonic()
  with pytest.raises(download.Unreached, match='Connection refused'):
    download.fetch(f'http://127.0.0.1:{port}/x.npz')
  assert time.monotonic() - start < 5


def test_a_host_that_does_not_accept_connections(monkeypatch):
  monkeypatch.setattr(download, '_ANSWER_SECONDS', 0.3)
  with socket.socket() as full:  # Its connection queue will be full.
    full.bind(('127.0.0.1', 0))
    full.listen(0)
    waiting = [socket.socket() for _ in range(3)]
    for one in waiting:
      one.setblocking(False)
      one.connect_ex(full.getsockname())
    start = time.monotonic()
    with pytest.raises(download.Unreached, match='no answer within 0.3 s'):
      download.fetch(f'http://127.0.0.1:{full.getsockname()[1]}/x.npz')
    assert time.monotonic() - start < 2
    for one in waiting:
      one.close()


def test_a_server_that_stops_sending(server, folder, monkeypatch):
  monkeypatch.setattr(download, '_SILENCE_SECONDS', 0.2)
  gate = threading.Event()
  server.faults[PATH] = [('pause', 1_000_000, gate)]
  path = download.fetch(server.url + PATH)
  assert pathlib.Path(path).read_bytes() == CONTENT
  server.files['/y.npz'] = CONTENT
  server.faults['/y.npz'] = [('pause', 1_000_000, gate)] * 4
  with pytest.raises(download.Unavailable, match='timed out.*4 times in a row'):
    download.fetch(f'{server.url}/y.npz')
  gate.set()
  assert len(server.requests) == 6
  assert files(folder) == ['R50+ViT-B_16.npz']


def test_too_little_disk_space_is_an_error_before_the_download(server, folder):
  server.extra[PATH] = {'Content-Length': str(10**18)}
  with pytest.raises(
    ValueError,
    match=r'free, but .* needs 1000000000000.0 MB.*set VIT_JAX_CACHE',
  ) as error:
    download.fetch(server.url + PATH)
  assert not isinstance(error.value, download.Unavailable)
  assert not files(folder)


def test_a_disk_that_becomes_full_during_the_download(server, folder):
  (folder / 'sound.npz').parent.mkdir()
  (folder / 'sound.npz').write_bytes(b'sound')
  process = fetch_elsewhere(server, limit=1_000_000)
  message = process.communicate()[1].splitlines()[-1]
  assert f'{PATH} cannot be written: File too large' in message
  assert 'set VIT_JAX_CACHE' in message
  assert files(folder) == ['sound.npz']
  path = download.fetch(server.url + PATH)
  assert pathlib.Path(path).read_bytes() == CONTENT


def test_a_proxy_is_used_if_it_is_set(server, monkeypatch):
  monkeypatch.setenv('http_proxy', server.url)
  monkeypatch.delenv('no_proxy', raising=False)
  server.files['http://far.invalid/x.npz'] = CONTENT
  path = download.fetch('http://far.invalid/x.npz')
  assert pathlib.Path(path).read_bytes() == CONTENT


def test_redirects(server, folder):
  other = servers.Server()
  other.files['/signed'] = CONTENT
  server.faults[PATH] = [('redirect', f'{other.url}/signed')]
  path = download.fetch(server.url + PATH)
  assert pathlib.Path(path).read_bytes() == CONTENT
  assert path.endswith(PATH)
  other.close()


@pytest.mark.parametrize(
  'to, message',
  [('/loop', 'redirects'), ('file:///etc/passwd', 'no usable answer')],
)
def test_invalid_redirects(server, folder, to, message):
  server.files['/loop'] = CONTENT
  server.faults['/loop'] = [('redirect', to) for _ in range(99)]
  with pytest.raises(download.Unavailable, match=message):
    download.fetch(f'{server.url}/loop')
  assert not files(folder)
