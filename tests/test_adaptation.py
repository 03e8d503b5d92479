import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests import reference
from vit_jax import adaptation
from vit_jax import models
from vit_jax.models import resnet

initial_params = reference.initial_params
POSITIONS = ('Transformer', 'posembed_input', 'pos_embedding')


def weights(num_classes=7, size=(64, 64), **settings):
  """What a file of the testing model would hold."""
  model = models.get_model('testing', num_classes=num_classes, **settings)
  return reference.params_like(initial_params(model, size), 'ckpt/')


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
  with pytest.raises(ValueError, match='15 are no square'):
    adaptation.resample_positions(plane[:, :15], (3, 7))


def test_token_is_dropped_or_starts_afresh():
  loaded = weights()
  pooled = initial_params(
      models.get_model('testing', num_classes=3, classifier='gap'), (64, 64))
  without = adaptation.adapt(loaded, pooled, (4, 4))
  flat = traverse_util.flatten_dict
  np.testing.assert_array_equal(
      flat(without)[POSITIONS], flat(loaded)[POSITIONS][:, 1:])

  token = initial_params(models.get_model('testing', num_classes=3), (64, 64))
  back = adaptation.adapt(without, token, (4, 4))
  np.testing.assert_array_equal(back['cls'], token['cls'])
  np.testing.assert_array_equal(
      flat(back)[POSITIONS][:, :1], flat(token)[POSITIONS][:, :1])
  np.testing.assert_array_equal(
      flat(back)[POSITIONS][:, 1:], flat(loaded)[POSITIONS][:, 1:])


def test_representation_layer_is_kept_where_the_model_has_it():
  model = models.get_model('testing', num_classes=3, representation_size=6)
  initial = initial_params(model, (64, 64))
  loaded = weights()
  with pytest.raises(ValueError, match=r'missing.*pre_logits/kernel \(10, 6\)'):
    adaptation.adapt(loaded, initial, (4, 4))
  kernel = np.ones((10, 6), np.float32)
  loaded['pre_logits'] = {'kernel': kernel, 'bias': kernel[0]}
  adapted = adaptation.adapt(loaded, initial, (4, 4))
  np.testing.assert_array_equal(adapted['pre_logits']['kernel'], kernel)


def test_a_file_of_another_model_is_named():
  small = models.get_model('ti16', num_classes=1)
  other = models.get_model('testing', num_classes=1)
  with pytest.raises(ValueError) as error:
    adaptation.adapt(initial_params(small, (32, 32)),
                     initial_params(other, (32, 32)), (2, 2))
  message = str(error.value)
  assert 'embedding/kernel: (16, 16, 3, 192) in the file, (16, 16, 3, 10)' in (
      message)
  assert 'not in the model: Transformer/encoderblock_11/' in message
  assert message.endswith('The file fits config.model.name=ViT-Ti_16')


def test_a_mixer_at_another_size_is_told_its_own():
  small = dict(num_classes=2, hidden_size=4, num_layers=1, tokens_mlp_dim=4,
               mlp_dim=4)
  model = models.get_model('Mixer-B_16', **small)
  loaded = initial_params(model, (224, 224))
  with pytest.raises(ValueError, match='alone: config.pp.crop=224'):
    adaptation.adapt(loaded, initial_params(model, (384, 384)), (24, 24))
  wider = models.get_model('Mixer-B_16', **{**small, 'tokens_mlp_dim': 5})
  with pytest.raises(ValueError) as error:
    adaptation.adapt(loaded, initial_params(wider, (224, 224)), (14, 14))
  assert 'pp.crop' not in str(error.value)


def test_the_head_can_be_kept():
  params = weights()
  model = models.get_model('testing', num_classes=7)
  initial = initial_params(model, (64, 64))
  kept = adaptation.adapt(params, initial, (4, 4), keep_head=True)
  jax.tree.map(np.testing.assert_array_equal, kept, params)
  fresh = adaptation.adapt(params, initial, (4, 4))
  jax.tree.map(np.testing.assert_array_equal, fresh['head'], initial['head'])


def test_what_leads_to_a_kept_head_must_agree():
  """Nothing that the head was trained on is dropped or made up in silence."""
  token, pooled = weights(), weights(classifier='gap')
  with pytest.raises(ValueError, match=r'not in the model: cls.*\n.*'
                     'classifier=token'):
    adaptation.adapt(token, pooled, (4, 4), keep_head=True)
  with pytest.raises(ValueError, match=r'missing from the file: cls.*\n.*'
                     'classifier=gap'):
    adaptation.adapt(pooled, token, (4, 4), keep_head=True)
  deep = weights(representation_size=6)
  with pytest.raises(ValueError, match='representation_size=6'):
    adaptation.adapt(deep, token, (4, 4), keep_head=True)
  with pytest.raises(
      ValueError, match=r'head/bias: \(7,\) in the file, \(3,\)'):
    adaptation.adapt(token, weights(num_classes=3), (4, 4), keep_head=True)


def test_files_without_a_class_token_are_called_gap():
  """As GSAM's are."""
  shapes = jax.eval_shape(lambda: models.get_model(
      's16', num_classes=10, classifier='gap').init(
          jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))['params']
  other = models.get_model('testing', num_classes=10)
  with pytest.raises(ValueError) as error:
    adaptation.adapt(jax.tree.map(lambda x: np.zeros(x.shape), shapes),
                     initial_params(other, (32, 32)), (2, 2))
  assert str(error.value).endswith('config.model.name=ViT-S_16-gap-norep')


@pytest.mark.parametrize('given, wanted', [
    ((4, 4), (2, 6)), ((2, 6), (4, 4)), ((2, 6), (3, 9))])
def test_any_grid_to_any_grid(given, wanted):
  """A plane of positions stays a plane, whichever sides the grids have."""
  def plane(rows, columns):
    down, across = np.meshgrid(np.linspace(0, 1, rows),
                               np.linspace(0, 1, columns), indexing='ij')
    return np.stack([down, across], -1).reshape(1, -1, 2)

  np.testing.assert_allclose(
      adaptation.resample_positions(plane(*given), wanted, given),
      plane(*wanted), atol=1e-12)


def test_the_grid_of_a_file():
  loaded = weights(size=(32, 96))
  initial = weights(size=(64, 64))
  with pytest.raises(
      ValueError, match=r'12 are no square .* source_grid.*\(2, 6\)'):
    adaptation.adapt(loaded, initial, (4, 4))
  with pytest.raises(ValueError, match='source_grid .* 8 positions, .* 12'):
    adaptation.adapt(loaded, initial, (4, 4), source_grid=(2, 4))
  found = adaptation.adapt(loaded, initial, (4, 4), source_grid=(2, 6))
  positions = traverse_util.flatten_dict(loaded)[POSITIONS]
  np.testing.assert_array_equal(
      traverse_util.flatten_dict(found)[POSITIONS][0, [0, 1, 4, 13, 16]],
      positions[0, [0, 1, 6, 7, 12]])  # the class token and the corners
  same = adaptation.adapt(loaded, weights(size=(32, 96)), (2, 6))
  np.testing.assert_array_equal(
      traverse_util.flatten_dict(same)[POSITIONS], positions)


def test_positions_of_the_same_grid_are_left_as_they_are():
  """Also where their number is that of a square: 16 of 8 x 2."""
  loaded = weights(size=(128, 32))
  found = adaptation.adapt(loaded, weights(size=(128, 32)), (8, 2))
  np.testing.assert_array_equal(traverse_util.flatten_dict(found)[POSITIONS],
                                traverse_util.flatten_dict(loaded)[POSITIONS])
  table = np.arange(16.0).reshape(1, 16, 1)
  assert adaptation.resample_positions(table, (8, 2)) is table
  square = adaptation.resample_positions(table, (8, 2), (4, 4))
  np.testing.assert_allclose(square.reshape(8, 2)[[0, -1]], [[0, 3], [12, 15]])


def relative_table(rows, columns, vector):
  """[2N - 1, d], an offset's mean of `vector(down, across)` over all pairs."""
  place = np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2)
  found = {}
  for q, (a, b) in enumerate(place):
    for k, (c, d) in enumerate(place):
      found.setdefault(k - q, []).append(vector(
          (c - a) / max(rows - 1, 1), (d - b) / max(columns - 1, 1)))
  return np.array([np.mean(found[o], 0) for o in sorted(found)])


@pytest.mark.parametrize('given, wanted', [
    ((4, 1), (7, 1)), ((1, 3), (1, 5)), ((3, 3), (3, 3)), ((2, 8), (2, 8))])
def test_relative_positions_of_lines_stay_linear(given, wanted):
  def vector(down, across):
    return np.array([2 * down - across, 1])

  np.testing.assert_allclose(
      adaptation.resample_relative(relative_table(*given, vector), wanted,
                                   given),
      relative_table(*wanted, vector), atol=1e-12)


@pytest.mark.parametrize('given, wanted', [((3, 3), (2, 4)), ((2, 3), (4, 4))])
def test_relative_positions_are_means_over_pairs(given, wanted):
  """Each pair of patches looks up its displacement in the given table."""
  rng = np.random.default_rng(0)
  rows, columns = given
  table = rng.normal(size=(2 * rows * columns - 1, 3))

  def vector(down, across):  # from -1 to 1 over the image; between 4 entries
    y, x = down * (rows - 1), across * (columns - 1)
    found = 0
    for i in (int(np.floor(y)), int(np.floor(y)) + 1):
      for j in (int(np.floor(x)), int(np.floor(x)) + 1):
        weight = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
        if weight:
          found += weight * table[i * columns + j + rows * columns - 1]
    return found

  np.testing.assert_allclose(
      adaptation.resample_relative(table, wanted, given),
      relative_table(*wanted, vector), atol=1e-6)


def test_relative_positions_of_a_model_at_another_size():
  loaded = weights(size=(32, 48), positions='relative')
  initial = weights(size=(64, 32), positions='relative')
  found = adaptation.adapt(loaded, initial, (4, 2), source_grid=(2, 3))
  table = ('Transformer', 'encoderblock_0', 'MultiHeadDotProductAttention_0',
           'relative_positions', 'embedding')
  found, loaded = map(traverse_util.flatten_dict, (found, loaded))
  assert found[table].shape == (15, 5)
  # The middle, no displacement, stays; so does one corner to another.
  np.testing.assert_allclose(found[table][[0, 7, 14]],
                             loaded[table][[0, 5, 10]], atol=1e-6)


def test_positions_by_row_and_column():
  def table(length):
    return np.linspace(0, 1, length)[:, None] * np.ones(3)

  def params(rows, columns):
    return {'Transformer': {'posembed_input': {
        'rows': table(rows), 'columns': 2 * table(columns)}}}

  found = adaptation.adapt(params(3, 4), params(5, 2), (5, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
               found, params(5, 2))


def tokens_of(kernel, images):
  """[B, N, D] of images [B, H, W, C]."""
  size = kernel.shape[0]
  x = images.reshape(len(images), images.shape[1] // size, size,
                     images.shape[2] // size, size, -1)
  return np.einsum('bhpwqc,pqcd->bhwd', x, kernel)


@pytest.mark.parametrize('given, wanted', [(4, 8), (4, 5), (8, 16), (3, 4)])
def test_larger_patches_give_the_same_tokens(given, wanted):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(given, given, 3, 7))
  patch = rng.normal(size=(2, given, given, 3))
  larger = jax.image.resize(
      patch.astype(np.float32), (2, wanted, wanted, 3), 'linear')
  resized = adaptation.resize_patch_kernel(kernel, (wanted, wanted))
  np.testing.assert_allclose(tokens_of(resized, np.asarray(larger)),
                             tokens_of(kernel, patch), atol=1e-4)


def test_smaller_patches_are_the_nearest():
  """As least squares over many patches finds them."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(6, 6, 1, 2))
  # White noise is seen by w as by the best w' of the smaller patches.
  resize = np.asarray(jax.image.resize(
      np.eye(36, dtype=np.float32).reshape(36, 6, 6, 1), (36, 4, 4, 1),
      'linear')).reshape(36, 16)
  expected = np.linalg.lstsq(resize, kernel.reshape(36, 2), rcond=None)[0]
  np.testing.assert_allclose(
      adaptation.resize_patch_kernel(kernel, (4, 4)).reshape(16, 2), expected,
      atol=1e-4)


def test_patches_are_resized_when_asked():
  loaded, initial = weights(), weights(patch_size=32, size=(128, 128))
  with pytest.raises(ValueError, match=r'\(16, 16, 3, 10\) in the file, '
                     r'\(32, 32, 3, 10\)(.|\n)*resize_patches=True'):
    adaptation.adapt(loaded, initial, (4, 4))
  adapted = adaptation.adapt(loaded, initial, (4, 4), resize_patches=True)
  images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3))
  rows = images.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 16, 16, 3)
  larger = np.asarray(jax.image.resize(rows, (16, 32, 32, 3), 'linear'))
  np.testing.assert_allclose(
      tokens_of(adapted['embedding']['kernel'], larger),
      tokens_of(loaded['embedding']['kernel'], rows), atol=1e-5)


@pytest.mark.parametrize('given, wanted', [(3, 1), (3, 6), (3, 4), (1, 3),
                                           (4, 3), (3, 2)])
def test_input_channels(given, wanted):
  """Repeated channels are seen as the ones that they repeat."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(2, 2, given, 5))
  changed = adaptation.change_channels(kernel, wanted)
  few = rng.normal(size=(1, 4, 4, min(given, wanted)))
  images = {channels: few[..., np.arange(channels) % few.shape[-1]]
            for channels in (given, wanted)}
  np.testing.assert_allclose(tokens_of(changed, images[wanted]),
                             tokens_of(kernel, images[given]))


def test_a_standardised_kernel_takes_out_the_change_of_scale():
  """Grey images give a multiple of what they gave, another in each output."""
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 5))
  grey = resnet.standardize(adaptation.change_channels(kernel, 1))
  ratio = grey / resnet.standardize(kernel).sum(2, keepdims=True)
  np.testing.assert_allclose(ratio / ratio[0, 0, 0], np.ones_like(ratio),
                             rtol=1e-3)
  assert np.ptp(ratio[0, 0, 0]) > 0.05


@pytest.mark.parametrize('name, kernel', [
    ('ti16', 'embedding'), ('mixer-b16', 'stem'), ('r-ti16', 'conv_root')])
def test_grey_images(name, kernel):
  small = dict(num_layers=1, hidden_size=32)
  small |= {'mixer-b16': dict(tokens_mlp_dim=4, mlp_dim=8)}.get(
      name, dict(num_heads=2, mlp_dim=8))
  model = models.get_model({'r-ti16': 'R+ViT-Ti_16'}.get(name, name),
                           num_classes=2, **small)
  colour, grey = (reference.params_like(initial_params(model, (32, 32), c))
                  for c in (3, 1))
  adapted = adaptation.adapt(colour, grey, model.grid_size(32, 32))
  np.testing.assert_allclose(
      adapted[kernel]['kernel'], colour[kernel]['kernel'].sum(2, keepdims=True),
      rtol=1e-5, atol=1e-6)
