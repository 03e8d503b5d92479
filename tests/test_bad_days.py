"""Damaged and hostile files, and bad luck: one clear error, and no hang."""

import contextlib
import errno
import faulthandler
import hashlib
import http.client
import io
import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import types
import zipfile

import ml_collections
import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from tests import servers
from vit_jax import base_config
from vit_jax import config_file
from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import checksums
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import addresses
from vit_jax.checkpoint.pretrained import cache
from vit_jax.checkpoint.pretrained import download
from vit_jax.commands import embed
from vit_jax.commands import errors
from vit_jax.commands.output import print_predictions
from vit_jax.commands.parsing import command_line
from vit_jax.cost import memory
from vit_jax.data import data_settings
from vit_jax.data import input_pipeline
from vit_jax.data import tensorflow as tf
from vit_jax.data.folders import class_folders
from vit_jax.data.folders import folder_source
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders.labels import label_table
from vit_jax.data.image_files import image_checks
from vit_jax.data.image_files import image_kinds
from vit_jax.data.streams import shard_index
from vit_jax.files import json_files
from vit_jax.files import npz_files
from vit_jax.inference import classify
from vit_jax.inference import embedding_file
from vit_jax.inference import feature_files
from vit_jax.inference import inputs
from vit_jax.parallel import processes
from vit_jax.report import run_record
from vit_jax.run import checkpointing
from vit_jax.run import run_files
from vit_jax.run import run_lock
from vit_jax.run.writers import metric_log

DEEP = '[' * 100_000
BIG = 10**9


@pytest.fixture(autouse=True)
def time_limit():
  """Fails a test after 20 s, and ends a process that hangs in a library."""

  def fail(*_):
    raise TimeoutError('the test hangs')

  before = signal.signal(signal.SIGALRM, fail)
  signal.alarm(20)
  faulthandler.dump_traceback_later(60, exit=True)
  yield
  faulthandler.cancel_dump_traceback_later()
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


# --- JSON --------------------------------------------------------------------

KINDS = {
  'text': (3, str, 'the content is 3, but must be a text'),
  'bool as int': (True, int, 'is True, but must be an integer'),
  'float as int': (4.0, int, 'is 4.0, but must be an integer'),
  'key': ({'a': [1, 'x']}, {'a': [int]}, r"a\[1\] is 'x', but must be an int"),
  'lacks': ({}, {'a': int}, 'must be an object {…} with a'),
  'any keys': ({'b': None}, {str: str}, 'b is None, but must be a text'),
  'choice': ({'a': {}}, {'a?': ([str], None)}, r'must be a list \[…\] or null'),
  'inner': ({'a': {'b': 1}}, {'a': ({'b': str}, None)}, 'a.b is 1'),
  'nested': (DEEP, object, 'nested too deeply'),
  'digits': ('9' * 5000, object, 'cannot be read as JSON'),
  'nothing': ('', object, 'cannot be read as JSON'),
}


@pytest.mark.parametrize('value, kind, reason', KINDS.values(), ids=KINDS)
def test_json_of_another_kind(tmp_path, value, kind, reason):
  path = tmp_path / 'x.json'
  path.write_text(value if isinstance(value, str) else json.dumps(value))
  with pytest.raises(ValueError, match=f'{path}.*{reason}'):
    json_files.read_json(str(path), kind)


def test_json_of_the_expected_kind(tmp_path):
  value = {'a': 1, 'b': [0.5, 2], 'c': None, 'more': {}, 'd': {'x': True}}
  kind = {'a': int, 'b': [float], 'c?': (str, None), 'd': {str: bool}, 'e?': 3}
  json_files.write_json(str(tmp_path / 'x.json'), value)
  assert json_files.read_json(str(tmp_path / 'x.json'), kind) == value
  assert json_files.read_json(str(tmp_path / 'y.json'), kind) is None


# --- metadata next to weights ------------------------------------------------

STORED = {
  'model': {'name': 'testing', 'num_heads': 2},
  'image_size': [16, 16],
  'class_names': ['a', 'b'],
}
METADATA = {
  'model': 3,
  'model.name': 3,
  'model.num_heads': '2',
  'model.num_layers': 0,
  'model.hidden_size': 2.0,
  'model.norm_epsilon': 'x',
  'model.dtype': 'float1',
  'model.image_mean': 'abc',
  'model.classifier': ['gap'],
  'model.nosuch': 1,
  'image_size': [16],
  'image_size.': '16x',
  'image_size. ': [-16, 16],
  'image_size.  ': [BIG, BIG],
  'class_names': 5,
  'class_names.': '01',
  'class_names. ': [1, 2],
  'exif': 7,
  'background': 'purple',
  'license': ['MIT'],
  'module': 3,
  'output': 'x',
  'origin': [1],
  'resizing': [1],
  'resizing.': {'crop_fraction': 'x'},
  'targets': [1],
  'targets.': {'names': [1], 'units': [''], 'mean': [0], 'std': [1]},
  'thresholds': ['a', 'b'],
}


@pytest.mark.parametrize('key, value', METADATA.items(), ids=METADATA)
def test_bad_metadata(tmp_path, monkeypatch, key, value):
  stored = json.loads(json.dumps(STORED))
  group, _, name = key.partition('.')
  if name.strip():
    stored[group][name] = value
  else:
    stored[group] = value
  path = tmp_path / 'w.npz.json'
  path.write_text(json.dumps({'vit_jax': stored}))
  with pytest.raises(ValueError, match=f'{path}[:,].*') as error:
    metadata.of_weights(str(tmp_path / 'w.npz'))
  words = re.findall(r'\w+', (name.strip() or group).replace('_', ' '))
  assert all(word in str(error.value) for word in words)
  assert 'Error' not in str(error.value)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r'^w\.npz\.json[:,]'):
    metadata.of_weights('w.npz')


TIMM = {'architecture': 'vit_tiny_patch16_224', 'pretrained_cfg': {}}
HUGGING_FACE = {'model_type': 'vit', 'image_size': 224, 'patch_size': 16}
OTHERS = {
  'a list': [1],
  'a number': 3,
  'architecture': {'architecture': 3},
  'model_args': TIMM | {'model_args': [1]},
  'model_args.embed_dim': TIMM | {'model_args': {'embed_dim': 'x'}},
  'model_args.img_size': TIMM | {'model_args': {'img_size': 'x'}},
  'model_args of 0 heads': TIMM | {'model_args': {'num_heads': 0}},
  'pretrained_cfg': TIMM | {'pretrained_cfg': [1]},
  'pretrained_cfg.mean': TIMM | {'pretrained_cfg': {'mean': 3}},
  'pretrained_cfg.input_size': TIMM | {'pretrained_cfg': {'input_size': 3}},
  'pretrained_cfg.crop_pct': TIMM | {'pretrained_cfg': {'crop_pct': 'x'}},
  'label_names': TIMM | {'label_names': 'abc'},
  'model_type': {'model_type': ['vit']},
  'num_attention_heads': HUGGING_FACE | {'num_attention_heads': [4]},
  'no heads': HUGGING_FACE | {'num_attention_heads': 0},
  'no patch': HUGGING_FACE | {'patch_size': 0},
  'layer_norm_eps': HUGGING_FACE | {'layer_norm_eps': 'x'},
  'hidden_act': HUGGING_FACE | {'hidden_act': 3},
  'id2label': HUGGING_FACE | {'id2label': [1]},
  'id2label.0': HUGGING_FACE | {'id2label': {'0': 1}},
  'id2label without 0': HUGGING_FACE | {'id2label': {'a': 'b'}},
  'architectures': HUGGING_FACE | {'architectures': 3},
  'vision_config': {'model_type': 'clip', 'vision_config': [1]},
}


@pytest.mark.parametrize('key, config', OTHERS.items(), ids=OTHERS)
def test_bad_config_of_another_library(tmp_path, key, config):
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f'{tmp_path}/config.json') as error:
    metadata.of_weights(str(tmp_path / 'model.safetensors'))
  if '.' in key or isinstance(config, dict) and key in config:
    assert f'config.json: {key} is ' in str(error.value) or (
      key == 'layer_norm_eps'  # a setting of ours
    )


@pytest.mark.parametrize(
  'value', [[1], {'size': 'x'}, {'size': {'height': 'x'}}]
)
def test_bad_preprocessor_config(tmp_path, value):
  (tmp_path / 'config.json').write_text(json.dumps(HUGGING_FACE))
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(value))
  with pytest.raises(ValueError, match='/preprocessor_config.json: '):
    metadata.of_weights(str(tmp_path / 'model.safetensors'))


@pytest.mark.parametrize('name', ['num_layers', 'num_parallel'])
def test_more_layers_than_arrays(tmp_path, name):
  path = str(tmp_path / 'w.npz')
  np.savez(path, **{'head/bias': np.zeros(2, np.float32)})
  stored = STORED | {'model': {'name': 'testing', name: BIG}}
  json_files.write_json(f'{path}.json', {'vit_jax': stored})
  with pytest.raises(ValueError, match=f'only 1 arrays, .*{name}={BIG}'):
    trained_model.load_model(path)


@pytest.mark.parametrize('heads', ['0', '-4', 'abc', '4.0', '9' * 5000])
def test_bad_number_of_heads_in_a_header(tmp_path, heads):
  path = str(tmp_path / 'w.safetensors')
  arrays = {'blocks.0.attn.proj.weight': np.ones((4, 4), np.float32)}
  safetensors.numpy.save_file(arrays, path, {'num_heads': heads})
  with pytest.raises(ValueError, match='w.safetensors: num_heads=.*header'):
    weights_file.load(path)


INDEX = {
  'text': '"x"',
  'empty': '{}',
  'list': '{"weight_map": [1]}',
  'number': '{"weight_map": {"a": 1}}',
  'nothing': '{"weight_map": {}}',
  'outside': '{"weight_map": {"a": "../x.safetensors"}}',
  'parent': '{"weight_map": {"a": ".."}}',
  'nested': DEEP,
}


@pytest.mark.parametrize('text', INDEX.values(), ids=INDEX)
def test_bad_index_of_shards(tmp_path, text):
  (tmp_path / 'model.safetensors.index.json').write_text(text)
  with pytest.raises(ValueError, match=r'model.safetensors.index.json( |:)'):
    weights_file.load(tmp_path)


MODEL_SETTINGS = {
  'num_heads': [4],
  'hidden_size': 'x',
  'num_layers': True,
  'dtype': 'float1',
  'stem_units': 3,
  'image_mean': 'abc',
  'qkv_bias': 1,
  'rotary_grid': (1, 2, 3),
}


@pytest.mark.parametrize('name, value', MODEL_SETTINGS.items())
def test_settings_of_a_model_have_types(name, value):
  with pytest.raises(ValueError, match=f'{name}={re.escape(repr(value))} '):
    models.get_model('testing', num_classes=1, **{name: value})


# --- weights -----------------------------------------------------------------


def npy(shape, dtype='<f4', content=b''):
  file = io.BytesIO()
  header = {'descr': dtype, 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue() + content


def write_zip(path, content, name='a.npy', **settings):
  with zipfile.ZipFile(path, 'w', **settings) as file:
    file.writestr(name, content)


def write_objects(path):
  np.savez(path, a=np.array([{}], object))


def write_damaged(path):
  write_zip(path, npy((4,), content=bytes(16)))
  content = bytearray(path.read_bytes())
  content[content.index(b'NUMPY') + 140] ^= 255
  path.write_bytes(content)


def write_version_3(path):
  file = io.BytesIO()
  header = {'descr': '<f4', 'fortran_order': False, 'shape': (2**60,)}
  np.lib.format.write_array_header_2_0(file, header)
  write_zip(path, file.getvalue().replace(b'\2\0', b'\3\0', 1))


ARCHIVES = {
  'text': (lambda path: path.write_text('x' * 1500), 'not an archive'),
  'empty': (lambda path: path.write_bytes(b''), 'not an archive'),
  'pickle': (lambda p: p.write_bytes(pickle.dumps({})), 'not an archive'),
  'cut': (lambda path: path.write_bytes(b'PK\3\4' * 100), 'truncated'),
  'objects': (write_objects, 'pickled objects'),
  'no arrays': (lambda p: write_zip(p, b'x', 'a.txt'), 'not NumPy arrays'),
  'lie': (lambda path: write_zip(path, npy((2**60,))), 'its header says'),
  'damage': (write_damaged, 'damaged'),
  'version': (write_version_3, 'its header says'),
}


@pytest.mark.parametrize('write, reason', ARCHIVES.values(), ids=ARCHIVES)
def test_bad_archives(tmp_path, write, reason):
  write(tmp_path / 'w.npz')
  with pytest.raises(ValueError, match=reason) as error:
    npz_files.read(tmp_path / 'w.npz')
  assert 'allow_pickle' not in str(error.value)
  with pytest.raises(ValueError, match=r'w.npz \(\d+ bytes\) cannot be read'):
    weights_file.load(tmp_path / 'w.npz')


def test_an_archive_that_would_fill_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(npz_files, '_SMALL_BYTES', 2**16)
  zeros = npy((2**18,), content=bytes(2**20))
  write_zip(tmp_path / 'w.npz', zeros, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match='its arrays would have 1048704'):
    npz_files.read(tmp_path / 'w.npz')


def test_names_of_arrays_with_too_many_parts(tmp_path):
  name = '/'.join('a' * 3000)
  np.savez(tmp_path / 'w.npz', **{name: np.zeros(1, np.float32)})
  with pytest.raises(ValueError, match='too many parts'):
    weights_file.load(tmp_path / 'w.npz')


# --- run folders -------------------------------------------------------------


def write_and(read, name):
  """Returns a function (folder, text) that writes a file and reads it."""

  def use(folder, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    read(str(folder))

  return use


RUN_FILES = {
  'config': (write_and(metadata.read_config, 'config.json'), '[1]'),
  'crop': (write_and(metadata.read_config, 'config.json'), '{"pp.crop": "x"}'),
  'dataset': (write_and(metadata.read_config, 'config.json'), '{"dataset": 3}'),
  'old run': (
    write_and(metadata.of_run, 'config.json'),
    '{"model.name": "testing"}',
  ),
  'lacks': (
    write_and(metadata.of_run, 'config.json'),
    '{"model.name": "testing", "pp.crop_width": null}',
  ),
  'old heads': (
    write_and(metadata.of_run, 'config.json'),
    '{"model.name": "testing", "model.num_heads": "4", "pp.crop": 8, '
    '"pp.crop_width": null}',
  ),
  'names': (write_and(metadata.read_class_names, 'class_names.json'), '5'),
  'name': (write_and(metadata.read_class_names, 'class_names.json'), '[1]'),
  'deployed': (write_and(metadata.of_run, 'deployed.json'), '[1]'),
  'deployed 2': (write_and(metadata.read_start, 'deployed.json'), '{}'),
  'chosen': (write_and(metadata.read_all_chosen, 'chosen.json'), '{"x": {}}'),
  'chosen 2': (
    write_and(metadata.read_all_chosen, 'chosen.json'),
    '{"3": {"params": {"thresholds": "abc"}}}',
  ),
  'data': (write_and(run_files._read_data, 'data.json'), '{"a": "b"}'),
  'given': (write_and(run_files.read_given, 'given.json'), '{"task": 3}'),
  'frozen': (
    write_and(lambda x: run_files.check_frozen(x, None), 'frozen.json'),
    '{}',
  ),
  'metrics': (
    write_and(lambda x: metric_log.read(f'{x}/metrics.jsonl'), 'metrics.jsonl'),
    '{"step": "x"}\n',
  ),
  'metrics 2': (
    write_and(lambda x: metric_log.read(f'{x}/metrics.jsonl'), 'metrics.jsonl'),
    '\udcff\n'.encode('utf-8', 'surrogatepass').decode('latin-1'),
  ),
  'metrics 3': (
    write_and(lambda x: metric_log.read(f'{x}/metrics.jsonl'), 'metrics.jsonl'),
    DEEP + '\n',
  ),
  'checkpoint': (
    write_and(checkpointing._check_notes, '3/_CHECKPOINT_METADATA'),
    '[1]',
  ),
}


@pytest.mark.parametrize('use, text', RUN_FILES.values(), ids=RUN_FILES)
def test_bad_files_of_a_run(tmp_path, use, text):
  with pytest.raises(ValueError, match=f'{tmp_path}/') as error:
    use(tmp_path, text)
  assert len(str(error.value)) < 500
  assert 'Error' not in str(error.value)
  (path,) = (x for x in tmp_path.rglob('*') if x.is_file())
  assert path.read_text() == text


@pytest.mark.parametrize('name', ['data.json', 'data_check.json'])
def test_bad_files_of_a_report(tmp_path, name):
  (tmp_path / 'metrics.jsonl').touch()
  (tmp_path / name).write_text('[1]')
  with pytest.raises(ValueError, match=f'{tmp_path}/{name}: the content is '):
    run_record.read(str(tmp_path))


@pytest.mark.parametrize('text', ['[1]', '{}', '{"a": 3}', '{"a": [1]}', DEEP])
def test_bad_checksums(tmp_path, text):
  (tmp_path / 'checksums.json').write_text(text)
  assert 'missing or damaged' in checksums.verify(tmp_path)


@pytest.mark.parametrize('text', ['[1]', DEEP, 'x', '{"origin": 3}'])
def test_damaged_features_are_computed_again(tmp_path, text):
  (tmp_path / 'features.json').write_text(text)
  assert not feature_files.matches(str(tmp_path), {'key': 1})
  np.savez(tmp_path / 'x.npz', origin=np.array(text))
  assert embedding_file.origin_of(str(tmp_path / 'x.npz')) != {'key': 1}


# --- what is not a regular file ----------------------------------------------


def make_pipe(path):
  os.mkfifo(path)


def make_socket(path):
  with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
    server.bind(path.name)


def make_device(path):
  path.symlink_to('/dev/zero')


def read_shared(path):
  return config_file.get_config(str(path))


READERS = {
  'weights.npz': weights_file.load,
  'weights.safetensors': weights_file.load,
  'weights': weights_file.load,
  'w.npz.json': lambda path: metadata.of_weights(str(path)[:-5]),
  'names.txt': metadata.class_names_in,
  'classes.txt': lambda path: class_folders.read_class_file(str(path)),
  'log.txt': lambda path: run_record._read_log(str(path.parent)),
  'list.txt': lambda path: embed._check(
    types.SimpleNamespace(images=[], list=str(path))
  ),
  'labels.csv': lambda path: label_table.read(str(path), str(path.parent)),
  'train.tar': lambda path: shard_index.list_examples(str(path)),
  'data.npz': npz_files.read,
  'config.py': read_shared,
  'metrics.jsonl': lambda path: metric_log.read(str(path)),
  '.lock-1': lambda path: run_lock._read(str(path)),
  'a.png': lambda path: classify.find_images([str(path)]),
  'b.png': lambda path: inputs.read(str(path), (8, 8)),
}
MAKERS = (make_pipe, make_socket, make_device)


@pytest.mark.parametrize('make', MAKERS)
@pytest.mark.parametrize('name', READERS)
def test_only_regular_files_are_read(tmp_path, name, make):
  make(tmp_path / name)
  with pytest.raises(
    ValueError, match=f'{name} is a (named pipe|socket|device)'
  ):
    READERS[name](tmp_path / name)


@pytest.mark.parametrize('make', MAKERS)
def test_a_checkpoint_with_something_else_than_files(tmp_path, make):
  empty = hashlib.sha256().hexdigest()
  json_files.write_json(str(tmp_path / 'checksums.json'), {'x': [0, empty]})
  make(tmp_path / 'x')
  assert re.match('x is a (named pipe|soc|dev)', checksums.verify(tmp_path))


@pytest.mark.parametrize('make', MAKERS)
def test_images_that_are_no_files(tmp_path, make, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  folder = tmp_path / 'photos'
  folder.mkdir()
  make(folder / 'x.png')
  make(folder / 'without')
  assert image_kinds.of_file(str(folder / 'without')) is None
  paths = image_folder.images_below(str(folder))
  assert paths == [str(folder / 'x.png')]
  with pytest.raises(
    ValueError, match='not a file, but a (named pipe|socket|device): .*x.png'
  ):
    image_checks.check(paths, str(folder), 0.5)


# --- tables and tar files ----------------------------------------------------

TABLES = {
  'csv': 'file,label\n1.png,' + 'x' * 200_000,
  'jsonl': '{"file": "1.png", "label": ' + DEEP + '\n',
}


@pytest.mark.parametrize('suffix', TABLES)
def test_bad_tables(tmp_path, suffix):
  path = tmp_path / f'labels.{suffix}'
  path.write_text(TABLES[suffix])
  with pytest.raises(ValueError, match=f'{path}(: line 1)? '):
    label_table.read(str(path), str(tmp_path))


NAMES = {
  'nested': DEEP,
  'cut': '["a",',
  'image': b'\xff\xd8\xff',
  'numbers': '[1, 2]',
}


@pytest.mark.parametrize('content', NAMES.values(), ids=NAMES)
def test_bad_class_names(tmp_path, content):
  path = tmp_path / 'names.txt'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(
    ValueError, match=f'{path}(: name 1 of 2| contains no class names)'
  ):
    metadata.class_names_in(path)


def test_names_that_are_not_utf_8(tmp_path):
  name = os.fsdecode(b'v\xf6gel')
  with pytest.raises(ValueError, match='udcf6gel. is not UTF-8'):
    folder_source.check_names(str(tmp_path), (name,))
  path = str(tmp_path / 'x.json')
  json_files.write_json(path, [name, 'vögel'])
  assert json_files.read_json(path) == [name, 'vögel']


def test_run_folders_that_are_not_utf_8(tmp_path):
  with pytest.raises(ValueError, match='udcf6.* not UTF-8.*PYTHONUTF8'):
    checkpointing.Checkpoints(tmp_path / os.fsdecode(b'l\xf6sung'), keep=1)


def test_checkpoints_that_are_larger_than_files_may_be(tmp_path):
  checkpoints = checkpointing.Checkpoints(tmp_path / 'c', keep=1)
  text = f'OUT_OF_RANGE: {"x" * 300} [OS error 27: EFBIG File too large]'
  with pytest.raises(OSError, match=r'larger than .* ulimit -f\)'):
    with checkpoints._explained():
      raise ValueError(text)


# --- the terminal ------------------------------------------------------------

EVIL = '\x1b[2J\x1b]0;x\x07cat\x9b\u202e'
SHOWN = r'\x1b[2J\x1b]0;x\x07cat\x9b\u202e'


def test_control_characters_are_escaped(capsys):
  assert console.printable(f'é{EVIL}\n') == rf'é{SHOWN}\x0a'
  console.log_info(f'a\n{EVIL}')
  console.show(f'{EVIL}\n')
  with pytest.raises(SystemExit):
    errors.exit_with_error(EVIL)
  shown = capsys.readouterr()
  assert shown.err == f'a\n{SHOWN}\nerror: {SHOWN}\n'
  assert shown.out == rf'{SHOWN}\x0a' + '\n'


def test_names_of_classes_and_files_are_escaped(capsys):
  class Trained:
    shown_class_names = (EVIL,)
    class_index = {}
    output = 'softmax'

  path = f'{EVIL}\n.png'
  print_predictions.show(
    iter([classify.Prediction(path, [0], [1.0])]), Trained, {path: None}, False
  )
  assert capsys.readouterr().out.splitlines() == [
    rf'{SHOWN}\x0a.png',
    f'  100.00 %  {SHOWN}',
  ]


def test_names_in_lists_stay_in_one_line():
  assert listing.some(['a\nb']) == r'1 (a\x0ab)'
  assert image_checks.describe({'a\nb': 'empty'}) == r'1 empty: a\x0ab'


# --- downloads and addresses -------------------------------------------------

ANSWERS = {
  '/w.npz': [b'', b'<html>no</html>', b'PK\3\4' * 10],
  '/w.safetensors': [b'', b'<html>no</html>', bytes(20), b'\xff' * 8 + b'{'],
  '/index.csv': [b'', b'<!DOCTYPE html>'],
}


@pytest.mark.parametrize('path', ANSWERS)
def test_an_answer_that_is_no_file_does_not_stay(tmp_path, path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  server = servers.Server()
  try:
    for content in ANSWERS[path]:
      server.files[path] = content
      with pytest.raises(download.Unavailable, match='not the file'):
        download.fetch(server.url + path)
      assert not os.path.exists(cache.path_for(server.url + path))
    content = {
      '/w.npz': servers.archive(b'x'),
      '/w.safetensors': safetensors.numpy.save({'a': np.zeros(1)}),
      '/index.csv': b'name,ds\n',
    }[path]
    server.files[path] = content
    with open(download.fetch(server.url + path), 'rb') as file:
      assert file.read() == content
  finally:
    server.close()


@pytest.mark.parametrize(
  'url', ['http://127.0.0.1:abc/x.npz', 'http://[::1/x.npz', 'http://a:99999/x']
)
def test_malformed_urls(url):
  for use in (addresses.host, addresses.fetch):
    with pytest.raises(ValueError, match=f'{re.escape(url)} is not a URL'):
      use(url)


def test_an_answer_that_is_not_http_stays_in_one_line():
  error = http.client.BadStatusLine('\0\x1b[2Jx\r\n' + 'y' * 99)
  text = str(download.unreached(error))
  assert 'not HTTP' in text and '\n' not in text and len(text) < 120


# --- settings and machines ---------------------------------------------------

CONFIGS = {
  'exit': ('import sys\nsys.exit(3)\n', 'line 2: SystemExit: 3'),
  'dict': ("def get_config():\n  return {'a': 1}\n", 'returns a ConfigDict'),
}


@pytest.mark.parametrize('text, reason', CONFIGS.values(), ids=CONFIGS)
def test_bad_config_files(tmp_path, text, reason):
  path = tmp_path / 'x.py'
  path.write_text(text)
  with pytest.raises(ValueError, match=f'{path}.*{reason}'):
    config_file.get_config(str(path))


def test_a_config_that_lacks_settings():
  config = config_file.get_config('configs/quickstart.py')
  base_config.check_complete(config)
  with pytest.raises(ValueError, match='has no .*, …. Its .*base_config.get_c'):
    base_config.check_complete(ml_collections.ConfigDict({'a': 1}))


def test_a_folder_is_no_config_file(tmp_path):
  (tmp_path / 'x.py').mkdir()
  with pytest.raises(ValueError, match='x.py is a folder'):
    config_file.get_config(str(tmp_path / 'x.py'))


def test_the_error_names_the_config_that_lacks_settings():
  with pytest.raises(ValueError, match='--config=x.py has no '):
    base_config.check_complete(ml_collections.ConfigDict(), '--config=x.py')


def test_an_unknown_model_is_answered_with_few_names():
  with pytest.raises(ValueError, match='NoSuch.*vit_jax models') as error:
    models.get_model('NoSuch')
  assert len(str(error.value)) < 200


def test_classes_with_one_image_each(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for name in ('a', 'b'):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(tmp_path / 'photos' / name / '1.png')
  folder = str(tmp_path / 'photos')
  settings = data_settings.DataSettings(folder, (8, 8))
  with pytest.raises(ValueError, match='test split has no images.*second im'):
    folder_source.list_images(settings, folder, check_images=True)


def test_bad_workdirs(tmp_path):
  (tmp_path / 'file').touch()
  (tmp_path / 'link').symlink_to('/nowhere/x')
  for path, reason in (
    (tmp_path / 'file', 'it is a file'),
    (tmp_path / 'link', 'a link to /nowhere/x'),
    ('/dev/null', 'it is a file'),
    ('a\0b', 'null byte'),
  ):
    with pytest.raises(ValueError, match=f'--out=.* be written: .*{reason}'):
      command_line.make_folder(str(path), '--out')


def test_a_batch_that_needs_more_memory_than_the_machine_has():
  config = config_file.get_config('configs/quickstart.py')
  config.batch = BIG
  with pytest.raises(ValueError, match=f'config.batch={BIG}: .* GB of memory'):
    memory.check_batches(config)


def test_an_evaluation_batch_that_needs_more_memory():
  settings = data_settings.DataSettings('digits', (8, 8), batch_eval=BIG)
  with pytest.raises(ValueError, match=f'config.batch_eval={BIG}: .* GB of me'):
    input_pipeline.get_datasets(settings)


def test_a_port_that_another_program_uses():
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    server.listen()
    port = server.getsockname()[1]
    with pytest.raises(ValueError, match=f'the port {port} cannot be used'):
      processes.start(f'127.0.0.1:{port}', 2, 0)
  with pytest.raises(ValueError, match='the port 99999 cannot be used'):
    processes.start('127.0.0.1:99999', 2, 0)


ERRORS = {
  'quota': (
    OSError(errno.EDQUOT, 'Disk quota exceeded'),
    2,
    'a file, or the output, cannot be written: Disk quota exceeded. Free disk '
    'space, and run the command again',
  ),
  'limit': (
    OSError(errno.EFBIG, 'File too large', 'x/log.txt'),
    2,
    'x/log.txt cannot be written: File too large. Raise the limit of the size '
    'of files (ulimit -f)',
  ),
  'memory': (MemoryError('Unable to allocate 3 TiB'), 1, 'A smaller --batch'),
  'no memory': (MemoryError(), 1, 'Free memory, or raise the limit.'),
  'backend': (
    RuntimeError("Unable to initialize backend 'tpu': no\nline 2"),
    2,
    "backend 'tpu': no",
  ),
}


@pytest.mark.parametrize('error, status, end', ERRORS.values(), ids=ERRORS)
def test_errors_in_one_line(capsys, error, status, end):
  with pytest.raises(SystemExit) as ended:
    with errors.exit_on_error(memory='A smaller --batch'):
      raise error
  assert ended.value.code == status
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and line.endswith(end)


def test_a_file_that_is_removed_during_training(tmp_path):
  dataset = tf.data.Dataset.from_tensors(str(tmp_path / 'x.jpg'))
  dataset = dataset.map(tf.io.read_file)
  with pytest.raises(ValueError, match='cannot be read: .*x.jpg; No') as error:
    list(tf.elements(dataset))
  assert 'function_node' not in str(error.value)
  assert 'Iterator' not in str(error.value)


def test_a_machine_without_memory_for_a_batch():
  class Dataset:
    def as_numpy_iterator(self):
      raise tf.errors.ResourceExhaustedError(
        None, None, '{{function_node x}} Failed to allocate [Op:Iterator]'
      )

  with pytest.raises(MemoryError, match=r'batch of examples \(Failed to allo'):
    list(tf.elements(Dataset()))


def test_ctrl_c_during_an_import_and_in_a_callback(capsys, monkeypatch):
  def start():
    try:
      raise KeyboardInterrupt
    except KeyboardInterrupt as error:  # as jaxlib does
      raise ImportError('an extension') from error

  with pytest.raises(SystemExit) as ended, errors.exit_on_error():
    start()
  assert ended.value.code == 130
  with pytest.raises(SystemExit) as ended, errors.exit_on_error():
    with errors.quiet():
      os.write(2, b'a message of a library')
      raise KeyboardInterrupt
  assert ended.value.code == 130
  assert capsys.readouterr().err == 'error: interrupted\n' * 2

  class Callback:
    def __del__(self):
      raise KeyboardInterrupt

  monkeypatch.setattr(sys, 'unraisablehook', errors._handle_ignored)
  # A shell script starts a program with & so that it ignores Ctrl-C.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      Callback()
      time.sleep(5)  # the interrupt arrives after 0.1 s
  finally:
    signal.signal(signal.SIGINT, before)


# Ctrl-C arrives during the first slow import.
CTRL_C = """import os, signal
os.kill(os.getpid(), signal.SIGINT)
"""
# A shell script starts a program with & so that it ignores Ctrl-C.
AS_IN_A_TERMINAL = """import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
HELD = """import os, signal, sys
from vit_jax.parallel import interrupts
interrupts.hold()
os.kill(os.getpid(), signal.SIGINT)
end = 'from vit_jax.parallel import interrupts; interrupts.end_at_once()'
os.execv(sys.executable, [sys.executable, '-c', end])
"""
STARTS = {
  'main': ('-m', 'vit_jax.main'),
  'command': ('-m', 'vit_jax', 'predict'),
  'script': ('-c', 'from vit_jax.__main__ import start; start()'),
  'restart': ('-c', HELD),
}


@pytest.mark.parametrize('command', STARTS.values(), ids=STARTS)
def test_ctrl_c_while_a_command_starts(tmp_path, command):
  (tmp_path / 'tqdm.py').write_text(CTRL_C)
  ended = subprocess.run(
    [sys.executable, '-c', AS_IN_A_TERMINAL, *command],
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.getcwd()}'},
    capture_output=True,
    text=True,
  )
  assert (ended.returncode, ended.stderr) == (-signal.SIGINT, '')


AGAIN = """from vit_jax import console
from vit_jax.commands import errors

def interrupt():
  raise KeyboardInterrupt

console.log_traceback = interrupt
errors.start(interrupt)
"""


def test_ctrl_c_again_while_the_first_is_handled():
  ended = subprocess.run(
    [sys.executable, '-c', AGAIN], capture_output=True, text=True
  )
  assert (ended.returncode, ended.stderr) == (130, '')


def test_exceptions_that_python_ignores_are_only_logged(
  tmp_path, capsys, monkeypatch
):
  class Callback:
    def __del__(self):
      raise RuntimeError('Event loop is closed')

  root, own = logging.getLogger(), logging.getLogger('vit_jax')
  before = root.handlers, own.handlers, root.level
  monkeypatch.setattr(sys, 'unraisablehook', errors._handle_ignored)
  try:
    console.start_logging(tmp_path)
    Callback()
  finally:
    root.handlers, own.handlers = before[:2]
    root.setLevel(before[2])
  assert 'Event loop is closed' in (tmp_path / 'log.txt').read_text()
  assert capsys.readouterr().err == ''
