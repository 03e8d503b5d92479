"""Narrow models give the outputs of timm and transformers, without options.

`tests/narrow_models.py` writes the files. `scripts/check_timm.py`
compares all architectures with timm itself.
"""

import hashlib
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests import placed_values
from tests import reference
import vit_jax
from vit_jax.export import formats

FOLDER = reference.DATA / 'narrow_models'
MANIFEST = json.loads((FOLDER / 'manifest.json').read_text('utf-8'))
NAMES = [file.removesuffix('.json') for file in MANIFEST]


def stored(name):
  return json.loads((FOLDER / f'{name}.json').read_text('utf-8'))


def load(folder, name, without=()):
  """Loads a model from files as the other library writes them."""
  case = stored(name)
  (folder / 'config.json').write_text(json.dumps(case['config']))
  if 'preprocessor' in case:
    (folder / 'preprocessor_config.json').write_text(
      # Without it, some classes of transformers crop 224 x 224 pixels.
      json.dumps({'do_center_crop': False} | case['preprocessor'])
    )
  shapes = {
    key: tuple(shape)
    for key, shape in case['arrays'].items()
    if key not in without
  }
  safetensors.numpy.save_file(
    placed_values.values(shapes), folder / 'model.safetensors'
  )
  return vit_jax.load(folder)


def outputs(model, **changes):
  """Returns logits or features, with changed settings of the model."""
  images = placed_values.images(model.image_size)
  with jax.default_matmul_precision('highest'):
    return jax.jit(
      lambda params: model.model.clone(**changes).apply(
        {'params': params}, images, train=False
      )
    )(model.params)


def difference(found, expected):
  """Returns the largest difference, as a fraction of the largest value."""
  found, expected = np.asarray(found), np.asarray(expected)
  return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('name', NAMES)
def test_outputs_of_the_other_library(name, tmp_path):
  model, case = load(tmp_path, name), stored(name)
  found = outputs(model)
  if 'config' in case and 'pretrained_cfg' in case['config']:
    size = case['config']['pretrained_cfg']['input_size'][1:]
    assert list(model.image_size) == size
  expected = case['logits' if 'logits' in case else 'features']
  assert found.shape == np.shape(expected)
  tolerance = MANIFEST[f'{name}.json']['tolerance']
  assert difference(found, expected) < tolerance
  check_export(model, case['config'], tmp_path)


def check_export(model, config, folder):
  """An export has the same names, arrays and architecture."""
  formats.export(model, str(folder / 'out/'))
  found = json.loads((folder / 'out/config.json').read_text('utf-8'))
  for key in ('architecture', 'architectures', 'model_type'):
    assert found.get(key) == config.get(key)
  before, after = (
    safetensors.numpy.load_file(path / 'model.safetensors')
    for path in (folder, folder / 'out')
  )
  # No output depends on mask tokens.
  before = {k: x for k, x in before.items() if not k.endswith('mask_token')}
  assert after.keys() == before.keys()
  for name, array in after.items():
    if not re.match(r'head(_dist)?\.bias', name) or 'dist_token' not in after:
      np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_the_manifest_has_the_origin_of_every_file():
  files = {path.name for path in FOLDER.iterdir()} - {'manifest.json'}
  assert files == MANIFEST.keys()
  for file, entry in MANIFEST.items():
    data = (FOLDER / file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry['sha256'], file
    config = json.loads(data)['config']
    named = [config.get('architecture'), *config.get('architectures', ())]
    assert entry['architecture'] in named, file
    assert entry['made_by'].startswith(('timm 1.', 'transformers 5.')), file
    assert 0 < entry['tolerance'] <= 2e-4
    assert entry.keys() >= {'command', 'settings', 'values'}


# --- traps of other ports -----------------------------------------------------


@pytest.mark.parametrize(
  'name, gelu, epsilon',
  [
    ('clip_quickgelu', 'quick', 1e-5),
    ('deit_distilled', 'exact', 1e-6),
    ('hf_siglip', 'tanh', 1e-6),
    ('hf_vit', 'exact', 1e-12),
  ],
)
def test_gelu_and_epsilon(name, gelu, epsilon, tmp_path):
  """A wrong value is not within the tolerance of the comparison above."""
  model = load(tmp_path, name)
  assert (model.model.gelu, model.model.norm_epsilon) == (gelu, epsilon)
  expected = outputs(model)
  other = 'exact' if gelu == 'tanh' else 'tanh'
  assert difference(outputs(model, gelu=other), expected) > 1e-3
  other = 1e-5 if epsilon == 1e-6 else 1e-6
  assert difference(outputs(model, norm_epsilon=other), expected) > 2e-4


def test_dinov3_pools_differently_in_timm_and_in_transformers(tmp_path):
  for name, classifier in (('dinov3', 'gap'), ('hf_dinov3', 'token')):
    (tmp_path / name).mkdir()
    model = load(tmp_path / name, name)
    assert model.model.classifier == classifier, name
    assert model.model.rotary == 'normalized'
    assert model.model.num_registers


def test_images_without_mean_and_deviation(tmp_path):
  """TIPS takes pixels in [0, 1], which are not normalized."""
  model = load(tmp_path, 'tips')
  assert model.model.image_mean == (0, 0, 0)
  assert model.model.image_std == (1, 1, 1)
  usual = outputs(model, image_mean=None, image_std=None)
  assert difference(usual, outputs(model)) > 1e-3


def test_angles_are_float32_whatever_the_compute_type(tmp_path):
  model = load(tmp_path, 'rope_mixed')
  steps = jax.make_jaxpr(
    lambda params: model.model.clone(dtype='bfloat16').apply(
      {'params': params}, placed_values.images(model.image_size), train=False
    )
  )(model.params)
  for function in ('cos', 'sin'):
    dtypes = re.findall(rf':(\w+)\[[\d,]+\] = {function} ', str(steps))
    assert dtypes and set(dtypes) == {'f32'}


@pytest.mark.parametrize('name', ['hf_dinov3', 'clip_quickgelu'])
def test_a_head_that_was_not_loaded_gives_no_logits(name, tmp_path):
  model = load(tmp_path, name, without=('head.weight', 'head.bias'))
  assert model.model.num_classes == 0
  with pytest.raises(ValueError, match='no head'):
    model.logits(placed_values.images(model.image_size))
  with pytest.raises(ValueError, match='no head'):
    model.classify(placed_values.images(model.image_size))
