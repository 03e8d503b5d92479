"""Downloads of hf:// from a local server with the Hub's protocol."""

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
from tests.checkpoint.pretrained import test_download
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
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
  monkeypatch.delenv('HF_TOKEN', raising=False)
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
  with pytest.raises(ValueError, match='hf://ORG/REPO'):
    hub.parse(url)


def test_a_name_that_the_hub_does_not_allow(server):
  with pytest.raises(ValueError, match="'me/-'"):
    hub.fetch('hf://me/-')
  assert not server.requests


@pytest.mark.parametrize('suffix', ['', '/model.safetensors', '@v1'])
def test_weights_and_config_are_downloaded_once(server, suffix):
  path = pathlib.Path(hub.fetch(f'hf://{REPO}{suffix}'))
  assert path.name == 'model.safetensors' and path.read_bytes() == WEIGHTS
  assert path.with_name('config.json').read_bytes() == CONFIG
  assert len(list(path.parent.iterdir())) == 2
  server.close()  # From here on, there is no network.
  assert hub.fetch(f'hf://{REPO}{suffix}') == str(path)


def test_the_only_weights_file_is_downloaded(server):
  server.repositories['me/mine'] = {'sub/x.npz': WEIGHTS, 'README.md': b'.'}
  path = hub.fetch('hf://me/mine')
  assert pathlib.Path(path).read_bytes() == WEIGHTS
  assert path.endswith(f'me--mine/snapshots/{server.COMMIT}/sub/x.npz')
  assert hub.fetch('hf://me/mine') == path
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  assert server.ranges(storage) == [None]  # Downloaded once.


SHARDS = {
  'a': 'model-00001-of-00002.safetensors',
  'b/kernel': 'model-00002-of-00002.safetensors',
}


@pytest.mark.parametrize(
  'url', ['hf://me/big', 'hf://me/big/sub/model.safetensors.index.json']
)
def test_sharded_weights_are_downloaded_to_a_folder(server, tmp_path, url):
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
  folder = pathlib.Path(hub.fetch(url))  # The other shard is cached.
  assert {path.name for path in folder.iterdir()} == set(files)
  found = weights_file.flatten(weights_file.load(folder))
  assert found.keys() == arrays.keys()
  np.testing.assert_array_equal(found['b/kernel'], arrays['b/kernel'])
  asked = len(server.requests)
  assert hub.fetch(url) == str(folder) and len(server.requests) == asked


@pytest.mark.parametrize(
  'index, answer',
  [
    ('{}', 'must be an object .* with weight_map'),
    ('[', 'cannot be read as JSON'),
    ('{"weight_map": {"a": "../x"}}', 'files outside its folder'),
    ('{"weight_map": {"a": "x"}}', 'it has no x; .*: none'),
  ],
)
def test_an_invalid_index_of_shards(server, index, answer):
  server.repositories['me/big'] = {
    'model.safetensors.index.json': index.encode()
  }
  with pytest.raises(download.Unavailable, match=answer):
    hub.fetch('hf://me/big')


@pytest.mark.parametrize(
  'url, answer',
  [
    ('hf://me/nothing', 'does not exist or is private .401.'),
    ('hf://me/two', 'no weights file, or several; .* a.npz, b.npz'),
    ('hf://me/two/c.npz', 'it has no c.npz; .* a.npz, b.npz'),
    (f'hf://{REPO}@v9', 'not found .404.'),
  ],
)
def test_missing_repositories_files_and_revisions(server, url, answer):
  server.repositories['me/two'] = {'a.npz': b'', 'b.npz': b''}
  with pytest.raises(download.Unavailable, match=answer):
    hub.fetch(url)


def test_a_private_repository_needs_a_token(server, monkeypatch):
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
  """The config of the first commit is cached before the second commit."""
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


def test_an_interrupted_download_resumes(server, monkeypatch):
  monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 50_000)
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  server.faults[storage] = [('cut', 100_000)]
  path = hub.fetch(f'hf://{REPO}')
  assert server.ranges(storage) == [None, 'bytes=100000-']
  assert pathlib.Path(path).read_bytes() == WEIGHTS


def test_a_server_that_stops_sending(server, monkeypatch):
  monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.3)
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  gate = threading.Event()
  server.faults[storage] = [('pause', 100_000, gate)]
  path = hub.fetch(f'hf://{REPO}')
  gate.set()
  assert len(server.ranges(storage)) == 2
  assert pathlib.Path(path).read_bytes() == WEIGHTS


def test_a_failed_download_leaves_no_wrong_file(server, tmp_path):
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  server.faults[storage] = [('cut', 100_000), 403]
  with pytest.raises(download.Unavailable, match='403'):
    hub.fetch(f'hf://{REPO}')
  assert not list(tmp_path.rglob('model.safetensors'))
  assert not list(tmp_path.rglob('*.incomplete'))
  assert pathlib.Path(hub.fetch(f'hf://{REPO}')).read_bytes() == WEIGHTS


def test_damage_is_detected(server):
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  server.files[storage] = WEIGHTS[::-1]
  with pytest.raises(download.Unavailable, match='damaged: .*SHA-256'):
    hub.fetch(f'hf://{REPO}')
  server.files[storage] = WEIGHTS
  assert pathlib.Path(hub.fetch(f'hf://{REPO}')).read_bytes() == WEIGHTS


def test_a_wrong_size(server, tmp_path):
  server.files[f'/storage/{servers.sha256(WEIGHTS)}'] = WEIGHTS[:-1]
  with pytest.raises(
    download.Unavailable, match='size 300000 but has .*299999'
  ):
    hub.fetch(f'hf://{REPO}')
  assert not list(tmp_path.rglob('model.safetensors'))


def cache_elsewhere(server, *names):
  """Downloads files as timm and transformers do; returns the last path."""
  for name in names:
    path = huggingface_hub.hf_hub_download(
      REPO, name, endpoint=server.url, cache_dir=constants.HF_HUB_CACHE
    )
  return path


def test_files_are_shared_with_other_users_of_the_hub(server):
  expected = cache_elsewhere(server, 'config.json', 'model.safetensors')
  asked = len(server.requests)
  assert hub.fetch(f'hf://{REPO}') == expected
  assert len(server.requests) == asked
  server.repositories['me/mine'] = {'x.npz': WEIGHTS}
  ours = hub.fetch('hf://me/mine/x.npz')
  assert ours == huggingface_hub.hf_hub_download(
    'me/mine', 'x.npz', cache_dir=constants.HF_HUB_CACHE, local_files_only=True
  )


@pytest.mark.parametrize('cached', [(), ('config.json',)])
def test_configs_of_weights_that_another_library_cached(server, cached):
  """They come from the commit of the weights, and are downloaded once."""
  config = b'{"model_type": "vit"}'
  server.repositories[REPO]['config.json'] = config
  server.repositories[REPO]['preprocessor_config.json'] = b'{"size": 4}'
  server.pushed = {'config.json': b'{}', 'preprocessor_config.json': b'{}'}
  if cached:
    server.pushed.clear()
  path = cache_elsewhere(server, *cached, 'model.safetensors')
  server.pushed = {'config.json': b'{}', 'preprocessor_config.json': b'{}'}
  assert hub.fetch(f'hf://{REPO}') == path
  folder = pathlib.Path(path).parent
  assert (folder / 'config.json').read_bytes() == config
  assert (folder / 'preprocessor_config.json').read_bytes() == b'{"size": 4}'
  server.close()
  assert hub.fetch(f'hf://{REPO}') == path


def test_configs_that_do_not_exist_are_asked_for_once(server):
  del server.repositories[REPO]['config.json']
  path = cache_elsewhere(server, 'model.safetensors')
  for _ in range(2):
    assert hub.fetch(f'hf://{REPO}') == path
    asked = len(server.requests)
  server.repositories[REPO]['config.json'] = CONFIG
  assert hub.fetch(f'hf://{REPO}') == path
  assert len(server.requests) == asked


def test_configs_that_cannot_be_asked_for(server, capsys):
  path = cache_elsewhere(server, 'model.safetensors')
  server.close()
  assert hub.fetch(f'hf://{REPO}') == path
  assert 'the cache without config.json and pre' in capsys.readouterr().err


def test_no_network_is_an_immediate_error(server):
  server.close()
  with pytest.raises(download.Unreached, match='not reached .Connection refus'):
    hub.fetch(f'hf://{REPO}')


def test_a_hub_that_does_not_answer(server, monkeypatch):
  monkeypatch.setattr(hub, '_SECONDS', 0.3)
  gate = threading.Event()
  monkeypatch.setattr(server, 'answer', lambda handler: gate.wait())
  with pytest.raises(download.Unreached, match='no answer within 0.3 s'):
    hub.fetch(f'hf://{REPO}')
  gate.set()


def test_offline_mode_sends_no_request(server, monkeypatch):
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(download.Unreached, match='HF_HUB_OFFLINE'):
    hub.fetch(f'hf://{REPO}')
  assert not server.requests


@pytest.mark.parametrize(
  'status, body, message',
  [
    (200, b'<html>log in to the network</html>', 'no usable answer .JSONDec'),
    (200, b'[]', 'no usable answer .TypeError'),
    (200, b'{}', 'no usable answer .KeyError'),
    (403, b'', 'denied .403.: accept its license'),
    (418, b'{"error": "short and stout"}', 'answered 418 .short and stout'),
    (503, b'', 'answered 503 .Service Unavailable'),
  ],
)
def test_answers_of_a_server_that_is_not_the_hub(
  server, monkeypatch, status, body, message
):
  headers = {'Content-Type': 'application/json'}
  monkeypatch.setattr(
    server,
    'answer',
    lambda handler: servers.reply(handler, status, headers, body),
  )
  with pytest.raises(download.Unavailable, match=message):
    hub.fetch(f'hf://{REPO}')


def test_a_file_that_is_a_web_page(server, tmp_path):
  def answer(handler):
    if '/resolve/' in handler.path:
      page = {'Content-Type': 'text/html'}
      return servers.reply(handler, 200, page, b'<html>')
    return servers.Hub.answer(server, handler)

  server.answer = answer
  with pytest.raises(download.Unavailable, match='no usable answer'):
    hub.fetch(f'hf://{REPO}')
  assert not list(tmp_path.rglob('*.json'))


def fetch_elsewhere(tmp_path, limit=None):
  """Returns a process that downloads REPO and prints its local path."""
  return test_download.fetch_elsewhere(
    None,
    limit,
    'from vit_jax.checkpoint.pretrained import hub\n'
    f'print(hub.fetch("hf://{REPO}"))',
    HF_HUB_CACHE=str(tmp_path / 'hub'),
  )


def test_a_full_disk(server, tmp_path):
  stderr = fetch_elsewhere(tmp_path, limit=100_000).communicate()[1]
  last = stderr.splitlines()[-1]
  assert 'cannot be written: File too large' in last
  assert 'set HF_HUB_CACHE' in last
  assert not list(tmp_path.rglob('model.safetensors'))
  assert pathlib.Path(hub.fetch(f'hf://{REPO}')).read_bytes() == WEIGHTS


def test_processes_share_one_download(server, tmp_path):
  storage = f'/storage/{servers.sha256(WEIGHTS)}'
  gate = threading.Event()
  server.faults[storage] = [('pause', 100_000, gate)]
  processes = [fetch_elsewhere(tmp_path)]
  servers.wait_until(lambda: server.ranges(storage))
  processes += [fetch_elsewhere(tmp_path)]

  def asked():
    paths = [path for method, path, _ in server.requests if method == 'HEAD']
    return sum(path.endswith('model.safetensors') for path in paths)

  servers.wait_until(lambda: asked() == 2)
  gate.set()
  paths = {process.communicate()[0].strip() for process in processes}
  assert server.ranges(storage) == [None]
  assert pathlib.Path(paths.pop()).read_bytes() == WEIGHTS and not paths


def test_huggingface_hub_is_imported_only_if_needed():
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
