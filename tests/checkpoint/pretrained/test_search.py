"""Weights are found by name in folders, the cache, sources, AugReg's index."""

import os
import pathlib
import re
import subprocess
import sys
import time

from huggingface_hub import constants
import pytest

from tests import ROOT
from tests import servers
from tests.checkpoint.pretrained.test_augreg import ROWS
from vit_jax.checkpoint.pretrained import addresses
from vit_jax.checkpoint.pretrained import download
from vit_jax.checkpoint.pretrained import registry
from vit_jax.checkpoint.pretrained import search

IN21K = '/vit_models/imagenet21k/ViT-B_16.npz'
WEIGHTS = servers.archive(b'weights' * 1000)
INDEX = '/vit_models/augreg/index.csv'


@pytest.fixture(autouse=True)
def fixture_folders(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(download, '_PAUSE_SECONDS', 0.01)
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')


@pytest.fixture(name='bucket')
def fixture_bucket():
  server = servers.Server()
  yield server
  server.close()


@pytest.fixture(name='hub')
def fixture_hub(monkeypatch):
  server = servers.Hub()
  monkeypatch.setenv('HF_ENDPOINT', server.url)
  yield server
  server.close()


def content(path):
  return pathlib.Path(path).read_bytes()


def test_paths(tmp_path):
  file, folder = tmp_path / 'mine.npz', tmp_path / 'run'
  file.write_bytes(b'')
  (folder / 'ViT-B_16').mkdir(parents=True)
  for name in (str(file), str(file)[:-4], '../mine', 'mine', 'mine.npz'):
    assert search.find(name, str(tmp_path)) == str(file), name
  assert search.find(str(folder)) == search.find('../run') == str(folder)
  assert search.find('scratch', '/nowhere') is None


def test_the_name_model_means_a_file_in_the_given_folder(tmp_path):
  (tmp_path / 'here/testing.npz').write_bytes(b'')
  (tmp_path / 'testing.npz').write_bytes(b'')
  assert search.find('model', str(tmp_path), model_name='testing') == str(
    tmp_path / 'testing.npz'
  )


@pytest.mark.parametrize(
  'file', ['ViT-B_16.npz', 'ViT-B_16.safetensors', 'ViT-B_16/model.safetensors']
)
def test_files_downloaded_by_hand_come_first(tmp_path, bucket, file):
  path = tmp_path / 'files' / file
  path.parent.mkdir(parents=True)
  path.write_bytes(b'')
  for name in ('model', 'ViT-B_16'):
    assert search.find(
      name,
      str(tmp_path / 'files'),
      model_name='ViT-B_16',
      sources=(bucket.url,),
    ) == str(path)
  assert not bucket.requests


def test_an_unpublished_name_sends_no_request(tmp_path, bucket):
  with pytest.raises(ValueError) as error:
    search.find(
      'testing', str(tmp_path), model_name='testing', sources=(bucket.url,)
    )
  first, *places, last = str(error.value).splitlines()
  assert "'testing'" in first
  assert places[:2] == [
    f'  {folder}: no testing.npz or testing.safetensors or '
    'testing/model.safetensors'
    for folder in (tmp_path / 'here', tmp_path)
  ]
  (published,) = places[2:]
  assert published.startswith('  published files: ')
  assert published.endswith(', '.join(registry.FAMILIES))
  for setting in ('pretrained_dir', 'pretrained', 'pretrained=scratch'):
    assert re.search(rf'config\.{setting}\b', last)
  assert not bucket.requests


def test_the_name_model_needs_model_name():
  with pytest.raises(ValueError, match="'model'.*model_name="):
    search.find('model')


def test_urls(bucket, hub, monkeypatch):
  monkeypatch.setattr(addresses, '_GOOGLE', bucket.url)
  bucket.files['/b/R50+ViT-B_16.npz'] = WEIGHTS
  hub.repositories['me/mine'] = {'x.npz': WEIGHTS}
  for url in (
    f'{bucket.url}/b/R50%2BViT-B_16.npz',
    'gs://b/R50+ViT-B_16.npz',
    'hf://me/mine/x.npz',
    'hf://me/mine',
  ):
    assert content(search.find(url)) == WEIGHTS
  assert len(bucket.requests) == 1


@pytest.mark.parametrize(
  'name',
  [
    's3://a/b.npz',
    'https:/host',
    'hf://one',
    'https://host/model.bin',
    'hf://a/b/pytorch_model.bin',
    'model.pt',
  ],
)
def test_invalid_names(name):
  with pytest.raises(
    ValueError,
    match=(
      'is a pickle'
      if name.endswith(('.bin', '.pt'))
      else 'unsupported.*a path, https://, gs:// or hf://'
      if name.startswith('s3')
      else 'no weights found'
      if name.startswith('https:/h')
      else 'hf://ORG/REPO'
    ),
  ):
    search.find(name)


def test_the_error_for_a_url_contains_download_commands(bucket, monkeypatch):
  monkeypatch.setattr(addresses, '_GOOGLE', bucket.url)
  bucket.files['/my bucket/x.npz'] = WEIGHTS
  bucket.faults['/my bucket/x.npz'] = [403]
  with pytest.raises(ValueError) as error:
    search.find('gs://my bucket/x.npz')
  lines = str(error.value).splitlines()
  assert "'gs://my bucket/x.npz'" in lines[0]
  assert lines[1].startswith('  gs://my bucket/x.npz: ')
  assert '403 Forbidden' in lines[1] and 'by hand' in lines[2]
  assert lines[3:] == [
    "  gcloud storage cp 'gs://my bucket/x.npz' x.npz",
    '  curl -fL --create-dirs -o x.npz ' + bucket.url + '/my%20bucket/x.npz',
  ]


def test_the_order_of_sources_and_cache(tmp_path, bucket, hub):
  mirror = tmp_path / 'mirror'
  sources = (str(mirror), bucket.url, 'hf://')
  hub.repositories['google/vit-base-patch16-224-in21k'] = {
    'model.safetensors': WEIGHTS
  }

  def find():
    return search.find('model', model_name='ViT-B_16', sources=sources)

  from_hub = find()  # timm's repository does not exist.
  assert from_hub.endswith(
    f'google--vit-base-patch16-224-in21k/snapshots/{hub.COMMIT}/'
    'model.safetensors'
  )
  assert [path for _, path, _ in bucket.requests] == [IN21K]

  bucket.files[IN21K] = WEIGHTS
  assert find() == from_hub  # The cache comes first.
  assert len(bucket.requests) == 1
  os.remove(from_hub)
  from_bucket = find()
  assert from_bucket.endswith(IN21K) and content(from_bucket) == WEIGHTS

  path = mirror / IN21K[1:]
  path.parent.mkdir(parents=True)
  path.write_bytes(WEIGHTS)
  assert find() == str(path)


def test_a_repository_as_a_mirror(hub):
  hub.repositories['me/mirror'] = {IN21K[1:]: WEIGHTS}
  path = search.find('ViT-B_16', sources=('hf://me/mirror',))
  assert path.endswith(f'me--mirror/snapshots/{hub.COMMIT}{IN21K}')
  assert content(path) == WEIGHTS


def test_a_failure_lists_every_source_and_every_command(
  tmp_path, bucket, hub, monkeypatch
):
  monkeypatch.setattr(addresses, '_GOOGLE', bucket.url)
  bucket.faults['/vit_models/sam/ViT-B_16.npz'] = [403]
  bucket.files['/vit_models/sam/ViT-B_16.npz'] = b''
  with pytest.raises(ValueError) as error:
    search.find(
      'sam/ViT-B_16',
      str(tmp_path),
      model_name='ViT-B_16',
      sources=('/mnt/mirror', bucket.url, 'hf://'),
    )
  lines = str(error.value).splitlines()[3:-1]
  for line, place, answer in zip(
    lines,
    (
      '/mnt/mirror/vit_models/sam/ViT-B_16.npz',
      f'{bucket.url}/vit_models/sam/ViT-B_16.npz',
      'hf://timm/vit_base_patch16_224.sam_in1k',
    ),
    ('no such file', '403 Forbidden', '`hf auth login`, or set HF_TOKEN'),
    strict=False,
  ):
    assert line.startswith(f'  {place}: ') and answer in line
  assert 'by hand' in lines[3]
  assert lines[4:] == [
    '  gcloud storage cp gs://vit_models/sam/ViT-B_16.npz sam/ViT-B_16.npz',
    '  curl -fL --create-dirs -o sam/ViT-B_16.npz '
    f'{bucket.url}/vit_models/sam/ViT-B_16.npz',
    '  hf download timm/vit_base_patch16_224.sam_in1k --local-dir sam/ViT-B_16',
  ]


@pytest.mark.parametrize(
  'name, model_name',
  [
    ('R_Ti_16', 'ViT-Ti_16'),
    ('ViT-B_16', 'ViT-L_16'),
    ('S_32-i21k-300ep', 'ViT-B_32'),
    ('sam/Mixer-B_16', 'ViT-B_16'),
    ('R50+ViT-B_16', 'R26+ViT-B_32'),
  ],
)
def test_weights_of_another_model_are_not_downloaded(bucket, name, model_name):
  with pytest.raises(
    ValueError, match=f'the model {model_name}.*config.m'.replace('+', r'\+')
  ):
    search.find(name, model_name=model_name, sources=(bucket.url,))
  assert not bucket.requests


@pytest.mark.parametrize(
  'name',
  [
    'lit/LiT-B16B',
    'LiT-L16Ti.npz',
    'big_vision/siglip/webli_en_b16_224_63724782',
  ],
)
def test_two_towers_are_rejected_as_initial_weights(tmp_path, bucket, name):
  (tmp_path / 'here/LiT-L16Ti.npz').write_bytes(b'')  # Also a local file.
  with pytest.raises(ValueError, match='a text tower.*zero_shot and evaluate'):
    search.find(name, model_name='ViT-B_16', sources=(bucket.url,))
  assert not bucket.requests
  path = registry.locate(name).path
  bucket.files[f'/{path}'] = WEIGHTS  # Without model_name, it is accepted.
  assert search.find(name, sources=(bucket.url,)).endswith(
    'LiT-L16Ti.npz' if 'Ti' in name else path
  )


def test_weights_that_can_be_adapted_are_downloaded(bucket):
  bucket.files[IN21K] = WEIGHTS
  for model_name in ('ViT-B_32', 'ViT-B_16-gap-norep', 'ViT-B_8', None):
    search.find('ViT-B_16', model_name=model_name, sources=(bucket.url,))


def test_a_full_disk_is_not_mistaken_for_a_missing_file(bucket):
  bucket.files[IN21K] = WEIGHTS
  bucket.extra[IN21K] = {'Content-Length': str(10**18)}
  with pytest.raises(ValueError, match='disk space.*VIT_JAX_CACHE'):
    search.find('ViT-B_16', sources=(bucket.url, 'hf://'))


def test_a_host_that_does_not_answer_is_asked_once(monkeypatch, hub):
  hub.close()
  asked = []
  fetch = addresses.hub.fetch
  monkeypatch.setattr(
    addresses.hub, 'fetch', lambda url: (asked.append(url), fetch(url))
  )
  with pytest.raises(ValueError, match='google/vit-base.*: not reached .Conn'):
    search.find('ViT-B_16', sources=('hf://',))
  assert asked == ['hf://timm/vit_base_patch16_224.orig_in21k']


@pytest.mark.parametrize(
  'name, model_name',
  [('R_Ti_16', 'R+ViT-Ti_16'), ('model', 'R+ViT-Ti_16'), ('R_Ti_16', None)],
)
def test_a_model_name_means_its_best_file(bucket, name, model_name):
  file = '/vit_models/augreg/R_Ti_16-i21k-300ep-none.npz'
  bucket.files = {INDEX: ROWS.encode(), file: WEIGHTS}

  def find():
    return search.find(
      name, model_name=model_name, sources=(bucket.url, 'hf://')
    )

  path = find()
  assert path.endswith(file) and content(path) == WEIGHTS
  bucket.close()  # From here on, files come from the cache.
  assert find() == path


def test_a_file_name_needs_no_index(bucket):
  name = 'B_16-i21k-300ep--imagenet2012-steps_20k-lr_0.03-res_384'
  bucket.files[f'/vit_models/augreg/{name}.npz'] = WEIGHTS
  for given in (name, f'{name}.npz', f'augreg/{name}'):
    assert (
      content(search.find(given, model_name='ViT-B_16', sources=(bucket.url,)))
      == WEIGHTS
    )
  assert len(bucket.requests) == 1


def test_without_the_index_the_copy_on_the_hub_is_used_and_logged(
  bucket, hub, capsys
):
  hub.repositories['timm/vit_tiny_r_s16_p8_224.augreg_in21k'] = {
    'model.safetensors': WEIGHTS
  }
  path = search.find('R_Ti_16', sources=(bucket.url, 'hf://'))
  assert content(path) == WEIGHTS
  assert re.search(
    'R_Ti_16: the index of AugReg.*R_Ti_16-i21k-300ep-lr_0.001-aug_none-'
    'wd_0.03-do_0.0-sd_0.0, .*Hub',
    capsys.readouterr().err,
  )
  with pytest.raises(ValueError, match=r'(?s)index.csv: not found .404.*curl'):
    search.find('S_16', sources=(bucket.url,))


NOBODY = 'http://127.0.0.1:9'  # No machine has a server on this port.


def test_no_network_is_an_error_within_seconds(monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', NOBODY)
  start = time.monotonic()
  with pytest.raises(ValueError, match='(?s)not reached.*not reached'):
    search.find('model', model_name='ViT-B_16', sources=(NOBODY, 'hf://'))
  assert time.monotonic() - start < 10


def test_the_error_of_a_run_without_a_network_contains_the_fix(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'vit_jax.main',
      f'--config={ROOT}/configs/augreg.py:R_Ti_16,cifar10',
      f"--config.weights_sources=('{NOBODY}','hf://')",
    ],
    text=True,
    capture_output=True,
    check=False,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'HF_ENDPOINT': NOBODY},
  )
  assert done.returncode == 2
  for fact in (
    'error: no weights found',
    f'{NOBODY}/vit_models/augreg/index',
    'hf://timm/vit_tiny_r_s16_p8',
    'hf download timm/',
    'config.pretrained=scratch',
  ):
    assert fact in done.stderr
  assert 'Traceback' not in done.stderr
