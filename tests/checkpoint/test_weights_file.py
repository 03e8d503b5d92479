import zipfile

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from tests import reference
from vit_jax import models
from vit_jax import train_state
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import checksums
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint import weights_file
from vit_jax.run import checkpointing

CASES = (
  'same_everything',
  'prelinen_names',
  'pre_logits_dropped_up',
  'unpooled_up',
  'hybrid_gn_4d',
)


initial_params = reference.initial_params


@pytest.fixture(name='testing_file')
def fixture_testing_file(tmp_path):
  """Returns a file of the testing model at 64 px, and its parameters."""
  model = models.get_model('testing', num_classes=7)
  params = reference.params_like(initial_params(model, (64, 64)), 'ckpt/')
  weights_file.save(tmp_path / 'testing.npz', params)
  return tmp_path / 'testing.npz', params


@pytest.mark.parametrize('case', CASES)
def test_published_formats_equal_the_reference(case, tmp_path):
  facts, arrays = reference.facts()[case], reference.arrays()
  np.savez(
    tmp_path / 'file.npz',
    **{
      path: reference.value_at(f'ckpt/{linen_path}', tuple(shape))
      for path, linen_path, shape in facts['file']
    },
  )
  size = (facts['resolution'],) * 2
  settings = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in facts['settings'].items()
  }
  model = models.get_model('testing', num_classes=10, **settings)
  params = adaptation.adapt(
    weights_file.load(tmp_path / 'file.npz'),
    initial_params(model, size),
    model.grid_size(*size),
  )
  np.testing.assert_allclose(
    params['Transformer']['posembed_input']['pos_embedding'],
    arrays[f'pretrained/{case}/positions'],
    atol=1e-7,
  )
  images = np.random.default_rng(5).uniform(-1, 1, (2, *size, 3))
  with jax.default_matmul_precision('highest'):
    logits = model.apply(
      {'params': params}, images.astype(np.float32), train=False
    )
  np.testing.assert_allclose(
    logits, arrays[f'pretrained/{case}/logits'], atol=2e-5, rtol=0
  )


def test_save_and_load_are_bit_exact(testing_file):
  path, params = testing_file
  jax.tree.map(np.testing.assert_array_equal, weights_file.load(path), params)
  assert [p.name for p in path.parent.iterdir()] == ['testing.npz']


def test_alternative_array_names():
  half = np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16)
  found = npz_names.to_linen(
    {
      'opt/target/params/a/gn1/scale': np.ones((1, 1, 1, 4), np.float32),
      'opt/target/params/a/LayerNorm_2/bias': half.view('V2'),
    }
  )
  assert set(found) == {'a/gn1/scale', 'a/LayerNorm_1/bias'}
  assert found['a/gn1/scale'].shape == (4,)
  np.testing.assert_array_equal(found['a/LayerNorm_1/bias'], [0, 1, 2, 3])


@pytest.mark.parametrize('keep', [0.0, 0.5, 0.99])
def test_truncated_file(testing_file, keep):
  path, _ = testing_file
  content = path.read_bytes()
  path.write_bytes(content[: int(keep * len(content))])
  with pytest.raises(ValueError, match='testing.npz .*truncated'):
    weights_file.load(path)


def test_damaged_and_pickled_files(testing_file, tmp_path):
  path, _ = testing_file
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(content)
  with pytest.raises(ValueError, match='cannot be read'):
    weights_file.load(path)
  np.savez(tmp_path / 'pickle.npz', x=np.array([{}], dtype=object))
  with pytest.raises(ValueError, match='pickle.npz.*contains pickled objects'):
    weights_file.load(tmp_path / 'pickle.npz')


def test_other_files_that_numpy_or_zip_can_open(tmp_path):
  np.save(tmp_path / 'array.npy', np.ones(3))
  with zipfile.ZipFile(tmp_path / 'model.zip', 'w') as file:
    file.writestr('archive/data.pkl', 'x')
  np.savez(tmp_path / 'clash.npz', **{'a': np.ones(1), 'a/b': np.ones(1)})
  for name in ('array.npy', 'model.zip', 'clash.npz'):
    with pytest.raises(ValueError, match=f'{name} .*cannot be read'):
      weights_file.load(tmp_path / name)


def test_files_have_the_published_names(testing_file):
  """Other libraries read these names, which are older than Flax linen."""
  with np.load(testing_file[0]) as file:
    names = {name.split('/')[2] for name in file if 'encoderblock_0' in name}
  assert names == {
    'LayerNorm_0',
    'MultiHeadDotProductAttention_1',
    'LayerNorm_2',
    'MlpBlock_3',
  }


@pytest.mark.parametrize(
  'prefix', ['params/', 'opt/target/', 'target/', 'opt/target/params/']
)
def test_prefixes(testing_file, tmp_path, prefix):
  path, params = testing_file
  with np.load(path) as file:
    np.savez(tmp_path / 'x.npz', **{prefix + key: file[key] for key in file})
  jax.tree.map(
    np.testing.assert_array_equal, weights_file.load(tmp_path / 'x.npz'), params
  )


def big_vision(params, is_stacked):
  """Returns {path: array} with the names of big_vision."""
  flat = weights_file.flatten(params)
  positions = flat.pop('Transformer/posembed_input/pos_embedding')
  found = {'opt/0/mu/head/bias': np.ones(3), 'params/pos_embedding': positions}
  for path, array in flat.items():
    if is_stacked and '/encoderblock_0/' in path:
      array = np.stack([array, flat[path.replace('_0/', '_1/', 1)]])
      path = path.replace('/encoderblock_0/', '/encoderblock/')
    if not is_stacked or '/encoderblock_' not in path:
      found[f'params/{path}'] = array
  return found


@pytest.mark.parametrize('is_stacked', [True, False])
@pytest.mark.parametrize('classifier', ['gap', 'token'])
def test_big_vision(tmp_path, is_stacked, classifier):
  model = models.get_model(
    'testing', num_classes=7, num_layers=2, classifier=classifier
  )
  params = initial_params(model, (64, 64))
  there = big_vision(params, is_stacked)
  np.savez(tmp_path / 'x.npz', **there)
  jax.tree.map(
    np.testing.assert_array_equal, weights_file.load(tmp_path / 'x.npz'), params
  )

  # If only patches have positions, the position of the class token is zero.
  token = int(classifier == 'token')
  there['params/pos_embedding'] = there['params/pos_embedding'][:, token:]
  np.savez(tmp_path / 'x.npz', **there)
  positions = params['Transformer']['posembed_input']['pos_embedding']
  positions[:, :token] = 0
  jax.tree.map(
    np.testing.assert_array_equal, weights_file.load(tmp_path / 'x.npz'), params
  )


def test_the_image_tower_of_siglip(tmp_path):
  """The file has two towers; each tower becomes a nested dict."""
  params = initial_params(
    models.get_model('testing', num_classes=7, classifier='gap', num_layers=2),
    (64, 64),
  )
  np.savez(
    tmp_path / 'x.npz',
    **{
      path.replace('params/', 'params/img/', 1): array
      for path, array in big_vision(params, is_stacked=True).items()
    },
    **{'params/t': np.ones(1), 'params/txt/pos_embedding': np.ones(5)},
  )
  loaded = weights_file.load(tmp_path / 'x.npz')
  jax.tree.map(np.testing.assert_array_equal, loaded['img'], params)
  assert loaded['txt'].keys() == {'pos_embedding'}


def test_a_run(tmp_path):
  """Loads only parameters: of the newest step or of a given step."""
  model = models.get_model('testing', num_classes=2)
  params = initial_params(model, (32, 32))
  tx = optax.adam(1e-3)
  checkpoints = checkpointing.Checkpoints(tmp_path / 'checkpoints', keep=2)
  mesh = jax.make_mesh((8,), ('data',))
  for step in (9, 10):
    state = train_state.TrainState(
      step, {**params, 'cls': params['cls'] + step}, tx.init(params)
    )
    checkpoints.save(
      step, jax.device_put(state, jax.NamedSharding(mesh, jax.P()))
    )
  checkpoints.close()
  (tmp_path / 'checkpoints/11.orbax-checkpoint-tmp').mkdir()  # Not finished.
  assert weights_file.steps_in(tmp_path / 'checkpoints') == [9, 10]
  for path, step in (
    ('', 10),
    ('checkpoints', 10),
    ('checkpoints/9', 9),
    ('checkpoints/10/', 10),
  ):
    loaded = weights_file.load(f'{tmp_path}/{path}')
    jax.tree.map(
      np.testing.assert_array_equal,
      loaded,
      {**params, 'cls': params['cls'] + step},
    )
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(loaded))

  item = next((tmp_path / 'checkpoints' / '10').rglob('_METADATA'))
  data = max(
    (path for path in item.parent.rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)  # Only the checksum detects this.
  with pytest.raises(
    ValueError,
    match=(r'checkpoints/10 is damaged: .*has changed. .*: .*checkpoints/9$'),
  ):
    weights_file.load(tmp_path)
  item.write_text(item.read_text()[:50])
  checksums.write_checksums(item.parent)
  with pytest.raises(ValueError, match='checkpoints/10 cannot be read'):
    weights_file.load(tmp_path)
  for content in (None, '{}', '{"d": 3}', '{"d": ["1", 2]}', '[]', '{'):
    seal = item.parent / checksums.SEAL
    seal.unlink() if content is None else seal.write_text(content)
    with pytest.raises(
      ValueError,
      match=(
        'checkpoints/10 is damaged: its checksums.json is missing or damaged'
      ),
    ):
      weights_file.load(tmp_path)
  checksums.write_checksums(item.parent)
  (item.parent / 'd/more').touch()
  with pytest.raises(ValueError, match='d/more is not listed in its checksums'):
    weights_file.load(tmp_path)
  with pytest.raises(ValueError, match='neither a finished checkpoint'):
    weights_file.load(tmp_path / 'checkpoints' / '9' / item.parent.name / 'd')


def test_safetensors_with_damage_and_pickles(testing_file, tmp_path):
  weights_file.save(tmp_path / 'x.safetensors', testing_file[1])
  content = (tmp_path / 'x.safetensors').read_bytes()
  for length in (0, 4, 100, len(content) - 1):
    (tmp_path / 'x.safetensors').write_bytes(content[:length])
    with pytest.raises(ValueError, match='x.safetensors .*truncated'):
      weights_file.load(tmp_path / 'x.safetensors')
  for name in ('pytorch_model.bin', 'x.pt', 'x.pth', 'x.ckpt'):
    (tmp_path / name).write_bytes(b'x')
    with pytest.raises(ValueError, match=f'{name} is a pickle.*safetensors'):
      weights_file.load(tmp_path / name)
  with pytest.raises(FileNotFoundError):
    weights_file.load(tmp_path / 'none.safetensors')
  with pytest.raises(FileNotFoundError):
    weights_file.load(tmp_path / 'none.npz')
