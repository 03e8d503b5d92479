"""hf:// against a local server that speaks the hub's protocol."""

import json
import pathlib
import subprocess
import sys
import threading

import huggingface_hub
from huggingface_hub import constants
import numpy as np
import pytest
import safetensors.numpy

from tests import ROOT
from tests import servers
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import download
from vit_jax.checkpoint.pretrained import hub

WEIGHTS = np.random.default_rng(0).bytes(300_000)
CONFIG = b'{"architecture": "vit_base_patch16_224"}'
REPO = 'timm/vit_base_patch16_224.orig_in21k'


@pytest.fixture(name='server')
def fixture_server(tmp_path, monkeypatch):
  server = servers.Hub()
  server.repositories[REPO] = {
    'README.md': b'# A model',
    'config.json': CONFIG,
    'model.safetensors': WEIGHTS,
    'pytorch_model.bin': b'pickle',
  }
  monkeypatch.setenv('HF_ENDPOINT', server.url)
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
  monkeypatch.delenv('HF_TOKEN', raising=False)
  monkeypatch.setattr(download, '_PAUSE_SECONDS', 0.01)
  yield server
  server.close()


@pytest.mark.parametrize(
  'url, parts',
  [
    ('hf://a/b', ('a/b', 'main', '')),
    ('hf://a/b/', ('a/b', 'main', '')),
    ('hf://a/b.c_d-e/x/y.npz', ('a/b.c_d-e', 'main', 'x/y.npz')),
    ('hf://a/b@v1', ('a/b', 'v1', '')),
    ('hf://a/b@refs%2Fpr%2F1/x.npz', ('a/b', 'refs/pr/1', 'x.npz')),
  ],
)
def test_urls(url, parts):
  assert hub.parse(url) == parts


@pytest.mark.parametrize('url', ['hf://a', 'hf://', 'hf://a b/c', 'hf:///a/b'])
def test_malformed_urls(url):
  with pytest.raises(ValueError, match=r'not of the form hf://ORG/REPO'):
    hub.parse(url)


def test_a_name_that_the_hub_does_not_allow(server):
  with pytest.raises(ValueError, match="'me/-'"):
    hub.fetch('hf://me/-')
  assert not server.requests


@pytest.mark.parametrize('suffix', ['', '/model.safetensors', '@v1'])
def test_weights_come_with_their_config_once(server, suffix):
  path = pathlib.Path(hub.fetch(f'hf://{REPO}{suffix}'))
  assert path.name == 'model.safetensors' and path.read_bytes() == WEIGHTS
  assert path.with_name('config.json').read_bytes() == CONFIG
  assert len(list(path.parent.iterdir())) == 2
  server.close()  # there is no network any more
  assert hub.fetch(f'hf://{REPO}{suffix}') == str(path)


def test_the_only_file_of_weights_is_taken(server):
  server.repositories['me/mine'] = {'sub/x.npz': WEIGHTS, 'README.md': b'.'}
  path = hub.fetch('hf://me/mine')
  assert pathlib.Path(path).read_bytes() == WEIGHTS
  assert path.endswith(f'me/mine/{server.COMMIT}/sub/x.npz')
  assert hub.fetch('hf://me/mine') == path
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  assert server.ranges(storage) == [None]  # fetched once


SHARDS = {
  'a': 'model-00001-of-00002.safetensors',
  'b/kernel': 'model-00002-of-00002.safetensors',
}


@pytest.mark.parametrize(
  'url', ['hf://me/big', 'hf://me/big/sub/model.safetensors.index.json']
)
def test_weights_in_shards_are_a_folder_that_loads(server, tmp_path, url):
  below = 'sub/' if 'sub' in url else ''
  arrays = {name: np.arange(500, dtype=np.float32) for name in SHARDS}
  files = {
    'model.safetensors.index.json': json.dumps(
      {'metadata': {}, 'weight_map': SHARDS}
    ).encode(),
    'config.json': CONFIG,
  }
  for name, file in SHARDS.items():
    safetensors.numpy.save_file({name: arrays[name]}, tmp_path / file)
    files[file] = (tmp_path / file).read_bytes()
  server.repositories['me/big'] = {
    below + name: content for name, content in files.items()
  }
  server.pushed = dict.fromkeys(server.repositories['me/big'], b'other')
  storage = f'/storage/{servers.sha256(files[SHARDS["b/kernel"]])}'
  server.faults[storage] = [403]
  with pytest.raises(download.Unavailable, match='403'):
    hub.fetch(url)
  folder = pathlib.Path(hub.fetch(url))  # the other shard is there
  assert {path.name for path in folder.iterdir()} == set(files)
  found = weights_file.flatten(weights_file.load(folder))
  assert found.keys() == arrays.keys()
  np.testing.assert_array_equal(found['b/kernel'], arrays['b/kernel'])
  asked = len(server.requests)
  assert hub.fetch(url) == str(folder) and len(server.requests) == asked


@pytest.mark.parametrize(
  'index, answer',
  [
    ('{}', 'no index of weights'),
    ('[', 'no index of weights'),
    ('{"weight_map": {"a": "../x"}}', 'names no files beside it'),
    ('{"weight_map": {"a": "x"}}', 'names x, which it has not'),
  ],
)
def test_an_index_of_shards_that_is_none(server, index, answer):
  server.repositories['me/big'] = {
    'model.safetensors.index.json': index.encode()
  }
  with pytest.raises(download.Unavailable, match=answer):
    hub.fetch('hf://me/big')


@pytest.mark.parametrize(
  'url, answer',
  [
    ('hf://me/nothing', 'no such repository, or not public .401.'),
    ('hf://me/two', 'no single file of weights in it; of .* a.npz, b.npz'),
    ('hf://me/two/c.npz', 'it has no c.npz; of .* a.npz, b.npz'),
    (f'hf://{REPO}@v9', 'not there .404.'),
  ],
)
def test_answers_that_are_no_file(server, url, answer):
  server.repositories['me/two'] = {'a.npz': b'', 'b.npz': b''}
  with pytest.raises(download.Unavailable, match=answer):
    hub.fetch(url)


def test_a_private_repository_wants_a_token(server, monkeypatch):
  server.private.add(REPO)
  with pytest.raises(download.Unavailable, match='set HF_TOKEN'):
    hub.fetch(f'hf://{REPO}')
  monkeypatch.setenv('HF_TOKEN', 'secret')
  assert pathlib.Path(hub.fetch(f'hf://{REPO}')).read_bytes() == WEIGHTS
  for method, path, headers in server.requests:
    if path.startswith('/storage'):
      assert 'Authorization' not in headers, method


def test_a_push_between_listing_and_fetching_mixes_no_commits(server):
  server.pushed = {'config.json': b'{}', 'model.safetensors': WEIGHTS[::-1]}
  path = pathlib.Path(hub.fetch(f'hf://{REPO}'))
  assert path.read_bytes() == WEIGHTS
  assert path.with_name('config.json').read_bytes() == CONFIG
  assert server.requests[0][1] == f'/api/models/{REPO}/revision/main'


def test_a_push_between_two_attempts_mixes_no_commits(server):
  """The config of the first commit is here when the second is fetched."""
  server.faults[f'/storage/{servers.sha256(WEIGHTS)}'] = [403]
  with pytest.raises(download.Unavailable, match='403'):
    hub.fetch(f'hf://{REPO}')
  server.COMMIT = 'beef' + 36 * '0'
  server.repositories[REPO] = {
    'config.json': b'{}',
    'model.safetensors': WEIGHTS[::-1],
  }
  path = pathlib.Path(hub.fetch(f'hf://{REPO}'))
  assert path.read_bytes() == WEIGHTS[::-1]
  assert path.with_name('config.json').read_bytes() == b'{}'
  server.close()
  assert hub.fetch(f'hf://{REPO}') == str(path)


def test_an_interrupted_download_goes_on_in_the_next_run(server):
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  server.faults[storage] = [('cut', 100_000), 403]
  with pytest.raises(download.Unavailable, match='403'):
    hub.fetch(f'hf://{REPO}')
  path = hub.fetch(f'hf://{REPO}')
  assert server.ranges(storage)[-1] == 'bytes=100000-'
  assert pathlib.Path(path).read_bytes() == WEIGHTS


def test_damage_is_noticed(server):
  server.files[f'/storage/{servers.sha256(WEIGHTS)}'] = WEIGHTS[::-1]
  with pytest.raises(download.Unavailable, match='damaged: sha256 is'):
    hub.fetch(f'hf://{REPO}')


def test_what_others_have_fetched_is_used(server):
  path = huggingface_hub.hf_hub_download(
    REPO,
    'model.safetensors',
    endpoint=server.url,
    cache_dir=constants.HF_HUB_CACHE,
  )
  asked = len(server.requests)
  assert hub.fetch(f'hf://{REPO}') == path
  assert len(server.requests) == asked


def test_no_network_is_said_at_once(server):
  server.close()
  with pytest.raises(download.Unreached, match='not reached .Connection refus'):
    hub.fetch(f'hf://{REPO}')


def test_a_hub_that_does_not_answer(server, monkeypatch):
  monkeypatch.setattr(hub, '_SECONDS', 0.3)
  gate = threading.Event()
  monkeypatch.setattr(server, 'answer', lambda handler: gate.wait())
  with pytest.raises(download.Unreached, match='not reached'):
    hub.fetch(f'hf://{REPO}')
  gate.set()


def test_the_library_that_is_missing_is_named(server, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(download.Unavailable, match='pip install huggingface_hub'):
    hub.fetch(f'hf://{REPO}')


def test_the_library_is_loaded_when_it_is_needed():
  subprocess.run(
    [
      sys.executable,
      '-c',
      'import sys\nfrom vit_jax.checkpoint.pretrained import search\n'
      'assert "huggingface_hub" not in sys.modules',
    ],
    check=True,
    cwd=ROOT,
  )
