"""Damages valid files at random, and reads them.

  python benchmarks/fuzz.py --count=20000

A reader may return a value or raise the errors that it documents. Anything else
is a finding: another error, more than --memory_gb for one file, more than
--seconds for one file, or a crash. The last two end the program. Files with
checksums must not be accepted with other values. The program prints a table,
and the seed of each finding. Its exit status is 1 if there is a finding.
"""

import collections
import faulthandler
import io
import json
import os
import random
import resource
import sys
import tarfile
import tempfile
import time
import warnings

from absl import app
from absl import flags
import numpy as np
from PIL import Image
import safetensors.numpy

from vit_jax import console
from vit_jax.checkpoint import checksums
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint import weights_file
from vit_jax.data import data_settings
from vit_jax.data import tensorflow as tf
from vit_jax.data.folders.labels import label_table
from vit_jax.data.given import npz_file
from vit_jax.data.image_files import image_checks
from vit_jax.data.image_files import image_decoder
from vit_jax.data.image_files import libjpeg_messages
from vit_jax.data.streams import shard_index
from vit_jax.files import npz_files

_COUNT = flags.DEFINE_integer('count', 2000, 'damaged files of each kind')
_SEED = flags.DEFINE_integer('seed', 0, 'seed of the first file')
_SECONDS = flags.DEFINE_float('seconds', 20, 'time limit for one file')
_MEMORY = flags.DEFINE_float('memory_gb', 2, 'memory limit for one file')
_KINDS = flags.DEFINE_list('kinds', [], 'kinds of files; all by default')

_ERRORS = (ValueError, OSError)
_SPECIAL = (b'\0', b'\xff', b'{', b'[', b'"', b'9' * 30, b'-1', b'null', b'1e9')


def damage(content, rng):
  """Returns content with one to four random changes."""
  content = bytearray(content)
  for _ in range(rng.randint(1, 4)):
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 1, 4, 64, 4096)))
    change = rng.randrange(6)
    if change == 0 and start < len(content):
      content[start] ^= 1 << rng.randrange(8)
    elif change == 1:
      content[start:end] = rng.choice(_SPECIAL)
    elif change == 2:
      del content[start:end]
    elif change == 3:
      content[start:start] = content[start:end]
    elif change == 4:
      content[start:end] = rng.randbytes(end - start)
    else:
      del content[start:]
  return bytes(content)


_PIXELS = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)


def _image(kind):
  file = io.BytesIO()
  Image.fromarray(_PIXELS).save(file, kind)
  return file.getvalue()


def _npz(**arrays):
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


_PLAIN = _npz(a=np.arange(12.0, dtype=np.float32), b=np.ones((2, 3)))
_DATASET = _npz(
  image=_PIXELS.reshape(20, 15, 4, 3),
  label=np.arange(20) % 3,
  class_names=np.array(['a', 'b', 'c']),
)


def _tar():
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as archive:
    for i in range(4):
      for suffix, content in (('jpg', b'image'), ('json', b'{"label": 1}')):
        member = tarfile.TarInfo(f'{i}.{suffix}')
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
  return file.getvalue()


_ARRAYS = {'head/bias': np.ones(3, np.float32)}
_STORED = {
  'model': {
    'name': 'b16',
    'num_layers': 3,
    'image_mean': [0.5, 0.5, 0.5],
    'image_std': [0.25, 0.25, 0.25],
  },
  'image_size': [224, 224],
  'class_names': ['cat', 'dog'],
  'thresholds': [0.5, 0.25],
  'resizing': {'resize': 'crop', 'crop_fraction': 0.9},
}
_TIMM = {
  'architecture': 'vit_tiny_patch16_224',
  'model_args': {'img_size': 32, 'depth': 3},
  'pretrained_cfg': {'input_size': [3, 32, 32], 'mean': [0.5, 0.5, 0.5]},
}
_TABLE = 'file,label\n' + ''.join(f'{i}.jpg,"cat {i}"\n' for i in range(20))
_LINES = ''.join(f'{{"file": "{i}.jpg", "label": [1, 2]}}\n' for i in range(9))


def _read_table(path):
  label_table.read(path, os.path.dirname(path))


def _read_image(path):
  """Decodes an image as a run does; if that fails, finds the reason."""
  with open(path, 'rb') as file:
    content = file.read()
  try:
    found = image_decoder.decode(tf.constant(content)).numpy()
  except tf.errors.OpError as error:
    raise ValueError(image_checks.reason(path)) from error
  if path.endswith('.png'):  # it has checksums
    np.testing.assert_array_equal(found, _PIXELS)


def _read_npz(path):
  arrays = npz_files.read(path)
  names = {'a', 'b'}
  if names <= arrays.keys():
    np.testing.assert_array_equal(arrays['a'], np.arange(12))
    np.testing.assert_array_equal(arrays['b'], np.ones((2, 3)))


def _read_dataset(path):
  npz_file.load(data_settings.DataSettings(dataset=path, image_size=(8, 8)))


def _verify(path):
  with open(path, 'rb') as file:
    changed = file.read() != _PLAIN
  assert bool(checksums.verify(os.path.dirname(path))) == changed


# {kind: (name of the file, valid content, reader, its errors)}
KINDS = {
  'npz': ('w.npz', _PLAIN, _read_npz, _ERRORS),
  'weights.npz': ('w.npz', _PLAIN, weights_file.load, _ERRORS),
  'dataset.npz': ('data.npz', _DATASET, _read_dataset, _ERRORS),
  'safetensors': (
    'w.safetensors',
    safetensors.numpy.save(_ARRAYS),
    weights_file.load,
    _ERRORS,
  ),
  'metadata': (
    'w.npz.json',
    json.dumps({'vit_jax': _STORED}).encode(),
    lambda path: metadata.of_weights(path.removesuffix('.json')),
    _ERRORS,
  ),
  'config.json': (
    'config.json',
    json.dumps(_TIMM).encode(),
    lambda path: metadata.of_weights(os.path.dirname(path)),
    _ERRORS,
  ),
  'index': (
    'model.safetensors.index.json',
    b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}',
    npz_names.read_shards,
    _ERRORS,
  ),
  'checkpoint': ('array', _PLAIN, _verify, ()),
  'csv': ('labels.csv', _TABLE.encode(), _read_table, _ERRORS),
  'jsonl': ('labels.jsonl', _LINES.encode(), _read_table, _ERRORS),
  'class names': (
    'names.txt',
    json.dumps(['cat', 'dog', 'cow']).encode(),
    metadata.class_names_in,
    _ERRORS,
  ),
  'tar': ('train.tar', _tar(), shard_index.list_examples, _ERRORS),
  **{
    kind: (f'x.{kind}', _image(kind), _read_image, _ERRORS)
    for kind in ('png', 'jpeg', 'gif', 'bmp', 'webp', 'tiff')
  },
}


def _used_bytes():
  """Returns the size of the address space of this process (Linux)."""
  with open('/proc/self/statm', encoding='ascii') as file:
    return int(file.read().split()[0]) * resource.getpagesize()


def fuzz(kind, folder):
  """Returns a Counter of what happened to the damaged files of one kind."""
  name, valid, read, errors = KINDS[kind]
  path = os.path.join(folder, name)
  outcomes = collections.Counter()
  with open(path, 'wb') as file:
    file.write(valid)
  if kind == 'checkpoint':
    checksums.write_checksums(folder)
  read(path)  # the valid file
  limit = int(_used_bytes() + _MEMORY.value * 2**30)
  resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
  for seed in range(_SEED.value, _SEED.value + _COUNT.value):
    with open(path, 'wb') as file:
      file.write(damage(valid, random.Random(seed)))
    faulthandler.dump_traceback_later(_SECONDS.value, exit=True)
    start = time.monotonic()
    try:
      read(path)
      outcomes['read'] += 1
    except errors:
      outcomes['refused'] += 1
    except Exception as error:
      outcomes['findings'] += 1
      print(f'{kind}, seed {seed}: {type(error).__name__}: {str(error)[:200]}')
    outcomes['slowest'] = max(outcomes['slowest'], time.monotonic() - start)
  faulthandler.cancel_dump_traceback_later()
  return outcomes


def main(argv):
  del argv
  total = 0
  warnings.simplefilter('ignore')  # of Pillow
  print('| kind | read | refused | findings | slowest, ms |')
  print('| --- | --- | --- | --- | --- |')
  console.be_silent()
  libjpeg_messages.hide()
  for kind in _KINDS.value or KINDS:
    with tempfile.TemporaryDirectory() as folder:
      found = fuzz(kind, folder)
    numbers = (found[x] for x in ('read', 'refused', 'findings'))
    milliseconds = f'{1000 * found["slowest"]:.0f}'
    print('|', ' | '.join(map(str, (kind, *numbers, milliseconds))), '|')
    total += found['findings']
  sys.exit(bool(total))


if __name__ == '__main__':
  app.run(main)
