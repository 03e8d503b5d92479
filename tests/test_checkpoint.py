import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from tests import reference
from vit_jax import adaptation
from vit_jax import checkpoint
from vit_jax import layouts
from vit_jax import models

CASES = ('same_everything', 'prelinen_names', 'pre_logits_dropped_up',
         'unpooled_up', 'hybrid_gn_4d')


initial_params = reference.initial_params


@pytest.fixture(name='testing_file')
def fixture_testing_file(tmp_path):
  """A file of the testing model at 64 px, with its parameters."""
  model = models.get_model('testing', num_classes=7)
  params = reference.params_like(initial_params(model, (64, 64)), 'ckpt/')
  checkpoint.save(tmp_path / 'testing.npz', params)
  return tmp_path / 'testing.npz', params


@pytest.mark.parametrize('case', CASES)
def test_published_layouts_adapt_as_the_reference(case, tmp_path):
  facts, arrays = reference.facts()[case], reference.arrays()
  np.savez(tmp_path / 'file.npz', **{
      path: reference.value_at(f'ckpt/{linen_path}', tuple(shape))
      for path, linen_path, shape in facts['file']})
  size = (facts['resolution'],) * 2
  settings = {name: tuple(value) if isinstance(value, list) else value
              for name, value in facts['settings'].items()}
  model = models.get_model('testing', num_classes=10, **settings)
  params = adaptation.adapt(
      checkpoint.load(tmp_path / 'file.npz'), initial_params(model, size),
      model.grid_size(*size))
  np.testing.assert_allclose(
      params['Transformer']['posembed_input']['pos_embedding'],
      arrays[f'pretrained/{case}/positions'], atol=1e-7)
  images = np.random.default_rng(5).uniform(-1, 1, (2, *size, 3))
  with jax.default_matmul_precision('highest'):
    logits = model.apply({'params': params}, images.astype(np.float32),
                         train=False)
  np.testing.assert_allclose(logits, arrays[f'pretrained/{case}/logits'],
                             atol=2e-5, rtol=0)


def test_save_and_load_are_bit_exact(testing_file):
  path, params = testing_file
  jax.tree.map(np.testing.assert_array_equal, checkpoint.load(path), params)
  assert [p.name for p in path.parent.iterdir()] == ['testing.npz']


def test_spellings():
  half = np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16)
  found = layouts.to_linen({
      'opt/target/params/a/gn1/scale': np.ones((1, 1, 1, 4), np.float32),
      'opt/target/params/a/LayerNorm_2/bias': half.view('V2')})
  assert set(found) == {'a/gn1/scale', 'a/LayerNorm_1/bias'}
  assert found['a/gn1/scale'].shape == (4,)
  np.testing.assert_array_equal(found['a/LayerNorm_1/bias'], [0, 1, 2, 3])


@pytest.mark.parametrize('keep', [0.0, 0.5, 0.99])
def test_truncated_file(testing_file, keep):
  path, _ = testing_file
  content = path.read_bytes()
  path.write_bytes(content[:int(keep * len(content))])
  with pytest.raises(ValueError, match='testing.npz .*truncated'):
    checkpoint.load(path)


def test_damaged_and_pickled_files(testing_file, tmp_path):
  path, _ = testing_file
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xff
  path.write_bytes(content)
  with pytest.raises(ValueError, match='cannot be read'):
    checkpoint.load(path)
  np.savez(tmp_path / 'pickle.npz', x=np.array([{}], dtype=object))
  with pytest.raises(ValueError, match='pickle.npz.*allow_pickle'):
    checkpoint.load(tmp_path / 'pickle.npz')


def test_other_files_that_numpy_or_zip_can_open(tmp_path):
  np.save(tmp_path / 'array.npy', np.ones(3))
  with zipfile.ZipFile(tmp_path / 'model.zip', 'w') as file:
    file.writestr('archive/data.pkl', 'x')
  np.savez(tmp_path / 'clash.npz', **{'a': np.ones(1), 'a/b': np.ones(1)})
  for name in ('array.npy', 'model.zip', 'clash.npz'):
    with pytest.raises(ValueError, match=f'{name} .*cannot be read'):
      checkpoint.load(tmp_path / name)


<<<<<<< HEAD
def test_the_head_can_be_kept(testing_file):
  path, params = testing_file
  model = models.get_model('testing', num_classes=7)
  initial = initial_params(model, (64, 64))
  kept = adaptation.adapt(checkpoint.load(path), initial, (4, 4),
                          keep_head=True)
  jax.tree.map(np.testing.assert_array_equal, kept, params)
  fresh = adaptation.adapt(checkpoint.load(path), initial, (4, 4))
  jax.tree.map(np.testing.assert_array_equal, fresh['head'], initial['head'])
=======
def test_finding_weights(testing_file):
  path, _ = testing_file
  folder = str(path.parent)
  for name in ('testing', 'testing.npz', str(path), str(path)[:-4]):
    assert weights.find(name, 'ViT-B_16', folder) == str(path)
  assert weights.find('model', 'testing', folder) == str(path)
  assert weights.find('scratch', 'testing', '/nowhere') is None
  with pytest.raises(ValueError, match='pretrained=scratch') as error:
    weights.find('other', 'ViT-B_16', folder)
  assert f'{folder}/other.npz' in str(error.value)
  assert f'{os.getcwd()}/other.npz' in str(error.value)
>>>>>>> cb3749c (Input channels, patch sizes, grids of files; tests of adapting)
