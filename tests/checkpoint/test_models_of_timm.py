"""Narrow models of timm give the logits that timm computed, without options.

`tests/timm_fixtures.py` writes the files. `tests/test_every_model_of_timm.py`
compares all architectures with timm itself.
"""

import hashlib
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests import placed_values
from tests import reference
import vit_jax

FOLDER = reference.DATA / 'timm'
MANIFEST = json.loads((FOLDER / 'manifest.json').read_text('utf-8'))
NAMES = [file.removesuffix('.json') for file in MANIFEST]


def stored(name):
  return json.loads((FOLDER / f'{name}.json').read_text('utf-8'))


def write(folder, name):
  """Writes the files that timm saves, and returns what timm computed."""
  case = stored(name)
  (folder / 'config.json').write_text(json.dumps(case['config']))
  shapes = {key: tuple(shape) for key, shape in case['arrays'].items()}
  safetensors.numpy.save_file(
    placed_values.values(shapes), folder / 'model.safetensors'
  )
  return np.asarray(case['logits'])


def images_of(model):
  return placed_values.images(model.image_size)


def logits_of(trained, **changes):
  """Returns logits; the settings of the model can be changed."""
  model = trained.model.clone(**changes)
  return model.apply(
    {'params': trained.params}, images_of(trained), train=False
  )


def difference(found, expected):
  return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('name', NAMES)
def test_logits_of_timm(name, tmp_path):
  expected = write(tmp_path, name)
  model = vit_jax.load(tmp_path)
  size = stored(name)['config']['pretrained_cfg']['input_size'][1:]
  assert list(model.image_size) == size
  with jax.default_matmul_precision('highest'):
    found = model.logits(images_of(model))
  assert difference(found, expected) < MANIFEST[f'{name}.json']['tolerance']


def test_the_manifest_has_the_origin_of_every_file():
  files = {path.name for path in FOLDER.iterdir()} - {'manifest.json'}
  assert files == MANIFEST.keys()
  for file, entry in MANIFEST.items():
    data = (FOLDER / file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry['sha256'], file
    assert json.loads(data)['config']['architecture'] == entry['architecture']
    assert entry['made_by'].startswith('timm 1.'), file
    assert 0 < entry['tolerance'] <= 2e-4
    assert entry.keys() >= {'command', 'settings', 'values'}
