"""Paths of downloads, and several processes that download one file."""

import os
import pathlib
import threading

import pytest

from tests import servers
from tests.checkpoint.pretrained.test_download import CONTENT
from tests.checkpoint.pretrained.test_download import fetch_elsewhere
from tests.checkpoint.pretrained.test_download import files
from tests.checkpoint.pretrained.test_download import fixture_folder  # noqa: F401
from tests.checkpoint.pretrained.test_download import fixture_server  # noqa: F401
from tests.checkpoint.pretrained.test_download import PATH
from vit_jax.checkpoint.pretrained import cache
from vit_jax.checkpoint.pretrained import download


def test_another_query_is_another_file(server):
  one, two = map(servers.archive, (b'one', b'two'))
  server.files |= {'/x.npz?v=1': one, '/x.npz?v=2': two}
  for query, content in (('v=1', one), ('v=2', two)):
    path = pathlib.Path(download.fetch(f'{server.url}/x.npz?{query}'))
    assert path.name == 'x.npz' and path.read_bytes() == content


def test_a_path_stays_in_the_cache(folder):
  path = cache.path_for('https://user:word@host:80/../a/%2e%2e/../b.npz')
  assert path == str(folder / 'host:80/a/b.npz')
  with pytest.raises(ValueError, match='https://host/ .*no file name'):
    cache.path_for('https://host/')


def test_the_cache_follows_the_users_settings(monkeypatch):
  assert cache.folder() == os.environ['VIT_JAX_CACHE']
  monkeypatch.delenv('VIT_JAX_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
  assert cache.folder() == '/somewhere/vit_jax/weights'
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', '/home/me')
  assert cache.folder() == '/home/me/.cache/vit_jax/weights'


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'file'))
  with pytest.raises(ValueError, match='file/.* cannot be written: Not a d'):
    download.fetch(server.url + PATH)


def test_processes_share_one_download(server, folder):
  gate = threading.Event()
  server.faults[PATH] = [('pause', 1_000_000, gate)]
  processes = [fetch_elsewhere(server)]
  servers.wait_until(lambda: server.requests)
  processes += [fetch_elsewhere(server) for _ in range(2)]
  for process in processes[1:]:
    assert 'another process is downloading' in process.stderr.readline()
  gate.set()
  paths = {process.communicate()[0].strip() for process in processes}
  assert len(server.requests) == 1
  assert pathlib.Path(paths.pop()).read_bytes() == CONTENT and not paths
  assert files(folder) == ['R50+ViT-B_16.npz']


@pytest.mark.parametrize('by', ['a signal', 'an answer'])
def test_a_waiting_process_downloads_if_the_first_fails(server, by):
  gate = threading.Event()
  server.faults[PATH] = [
    ('pause', 1_000_000, gate) if by == 'a signal' else ('silent', gate, 404)
  ]
  first = fetch_elsewhere(server)
  servers.wait_until(lambda: server.requests)
  second = fetch_elsewhere(server)
  assert 'another process is downloading' in second.stderr.readline()
  if by == 'a signal':
    first.kill()
  else:
    gate.set()
  assert 'not found (404' in first.communicate()[1] or by == 'a signal'
  gate.set()
  path = second.communicate()[0].strip()
  assert pathlib.Path(path).read_bytes() == CONTENT
