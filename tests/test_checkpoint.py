import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from tests import reference
from vit_jax import adaptation
from vit_jax import checkpoint
from vit_jax import layouts
from vit_jax import models

CASES = ('same_everything', 'prelinen_names', 'pre_logits_dropped_up',
         'unpooled_up', 'hybrid_gn_4d')


def initial_params(model, image_size):
  shapes = jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, *image_size, 3)), train=False))
  return reference.params_like(shapes['params'], 'init/')


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


@pytest.mark.parametrize('case', [
    '14to24_cls_d10', '14to24_nocls_d10', '7to12_cls_d10', '24to14_nocls_d10'])
def test_resampled_positions_equal_the_reference(case):
  given, expected = (reference.arrays()[f'positions/{case}/{side}']
                     for side in ('in', 'out'))
  token = int('_cls' in case)
  side = int((expected.shape[1] - token)**0.5)
  found = adaptation.resample_positions(given[:, token:], (side, side))
  np.testing.assert_allclose(found, expected[:, token:], atol=1e-6)


def test_positions_of_a_wide_grid_are_linear_along_each_side():
  rows, columns = np.mgrid[0:4, 0:4].astype(np.float32)
  plane = np.stack([rows, columns], -1).reshape(1, 16, 2)
  wide = adaptation.resample_positions(plane, (3, 7)).reshape(3, 7, 2)
  np.testing.assert_allclose(wide[:, 0, 0], np.linspace(0, 3, 3), atol=1e-6)
  np.testing.assert_allclose(wide[0, :, 1], np.linspace(0, 3, 7), atol=1e-6)
  with pytest.raises(ValueError, match='15 positions are no square'):
    adaptation.resample_positions(plane[:, :15], (3, 7))


def test_save_and_load_are_bit_exact(testing_file):
  path, params = testing_file
  jax.tree.map(np.testing.assert_array_equal, checkpoint.load(path), params)
  assert [p.name for p in path.parent.iterdir()] == ['testing.npz']


def test_token_is_dropped_or_starts_afresh(testing_file):
  loaded = checkpoint.load(testing_file[0])
  pooled = initial_params(
      models.get_model('testing', num_classes=3, classifier='gap'), (64, 64))
  without = adaptation.adapt(loaded, pooled, (4, 4))
  positions = ('Transformer', 'posembed_input', 'pos_embedding')
  flat = traverse_util.flatten_dict
  np.testing.assert_array_equal(
      flat(without)[positions], flat(loaded)[positions][:, 1:])

  token = initial_params(models.get_model('testing', num_classes=3), (64, 64))
  back = adaptation.adapt(without, token, (4, 4))
  np.testing.assert_array_equal(back['cls'], token['cls'])
  np.testing.assert_array_equal(
      flat(back)[positions][:, :1], flat(token)[positions][:, :1])
  np.testing.assert_array_equal(
      flat(back)[positions][:, 1:], flat(loaded)[positions][:, 1:])


def test_representation_layer_is_kept_where_the_model_has_it(testing_file):
  model = models.get_model('testing', num_classes=3, representation_size=6)
  initial = initial_params(model, (64, 64))
  loaded = checkpoint.load(testing_file[0])
  with pytest.raises(ValueError, match=r'missing.*pre_logits/kernel \(10, 6\)'):
    adaptation.adapt(loaded, initial, (4, 4))
  kernel = np.ones((10, 6), np.float32)
  loaded['pre_logits'] = {'kernel': kernel, 'bias': kernel[0]}
  adapted = adaptation.adapt(loaded, initial, (4, 4))
  np.testing.assert_array_equal(adapted['pre_logits']['kernel'], kernel)


def test_spellings():
  half = np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16)
  found = layouts.to_linen({
      'opt/target/params/a/gn1/scale': np.ones((1, 1, 1, 4), np.float32),
      'opt/target/params/a/LayerNorm_2/bias': half.view('V2')})
  assert set(found) == {'a/gn1/scale', 'a/LayerNorm_1/bias'}
  assert found['a/gn1/scale'].shape == (4,)
  np.testing.assert_array_equal(found['a/LayerNorm_1/bias'], [0, 1, 2, 3])


def test_a_file_of_another_model_is_named(tmp_path):
  small = models.get_model('ti16', num_classes=1)
  checkpoint.save(tmp_path / 'x.npz', initial_params(small, (32, 32)))
  other = models.get_model('testing', num_classes=1)
  with pytest.raises(ValueError) as error:
    adaptation.adapt(checkpoint.load(tmp_path / 'x.npz'),
                     initial_params(other, (32, 32)), (2, 2))
  message = str(error.value)
  assert 'embedding/kernel: (16, 16, 3, 192) in the file, (16, 16, 3, 10)' in (
      message)
  assert 'not in the model: Transformer/encoderblock_11/' in message
  assert message.endswith('The file fits config.model.name=ViT-Ti_16')


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


def test_the_head_can_be_kept(testing_file):
  path, params = testing_file
  model = models.get_model('testing', num_classes=7)
  initial = initial_params(model, (64, 64))
  kept = adaptation.adapt(checkpoint.load(path), initial, (4, 4),
                          keep_head=True)
  jax.tree.map(np.testing.assert_array_equal, kept, params)
  fresh = adaptation.adapt(checkpoint.load(path), initial, (4, 4))
  jax.tree.map(np.testing.assert_array_equal, fresh['head'], initial['head'])
