from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from vit_jax import models
from vit_jax.checkpoint import adaptation
from vit_jax.models.layers import resnet

initial_params = reference.initial_params
POSITIONS = ('Transformer', 'posembed_input', 'pos_embedding')


def weights(num_classes=7, size=(64, 64), **settings):
  """Returns parameters like those in a file of the testing model."""
  model = models.get_model('testing', num_classes=num_classes, **settings)
  return reference.params_like(initial_params(model, size), 'ckpt/')


def test_the_class_token_is_dropped_or_initialized():
  loaded = weights()
  pooled = initial_params(
    models.get_model('testing', num_classes=3, classifier='gap'), (64, 64)
  )
  without = adaptation.adapt(loaded, pooled, (4, 4))
  flat = traverse_util.flatten_dict
  np.testing.assert_array_equal(
    flat(without)[POSITIONS], flat(loaded)[POSITIONS][:, 1:]
  )

  token = initial_params(models.get_model('testing', num_classes=3), (64, 64))
  back = adaptation.adapt(without, token, (4, 4))
  np.testing.assert_array_equal(back['cls'], token['cls'])
  np.testing.assert_array_equal(
    flat(back)[POSITIONS][:, :1], flat(token)[POSITIONS][:, :1]
  )
  np.testing.assert_array_equal(
    flat(back)[POSITIONS][:, 1:], flat(loaded)[POSITIONS][:, 1:]
  )


def test_the_representation_layer_is_kept_if_the_model_has_one():
  model = models.get_model('testing', num_classes=3, representation_size=6)
  initial = initial_params(model, (64, 64))
  loaded = weights()
  with pytest.raises(ValueError, match=r'missing.*pre_logits/kernel \(10, 6\)'):
    adaptation.adapt(loaded, initial, (4, 4))
  kernel = np.ones((10, 6), np.float32)
  loaded['pre_logits'] = {'kernel': kernel, 'bias': kernel[0]}
  adapted = adaptation.adapt(loaded, initial, (4, 4))
  np.testing.assert_array_equal(adapted['pre_logits']['kernel'], kernel)


def test_a_norm_before_the_head_can_replace_the_norm_of_the_encoder():
  def initial(**settings):
    model = models.get_model('testing', num_classes=3, **settings)
    return initial_params(model, (64, 64))

  loaded, norms = weights(), dict(head_norm=True, encoder_norm=False)
  fresh = initial(**norms)
  adapted = adaptation.adapt(loaded, fresh, (4, 4))
  for name, x in fresh['head_norm'].items():
    np.testing.assert_array_equal(adapted['head_norm'][name], x)
  assert 'encoder_norm' not in adapted['Transformer']
  for settings in (dict(encoder_norm=False), norms):
    with pytest.raises(ValueError, match='not in the model: .*encoder_norm'):
      adaptation.adapt(
        *(loaded, initial(**settings), (4, 4), 'head_norm' in settings)
      )
  both = adaptation.adapt(loaded, initial(head_norm=True), (4, 4))
  for name, x in loaded['Transformer']['encoder_norm'].items():
    found = both['Transformer']['encoder_norm'][name]
    np.testing.assert_array_equal(found, x)
  with pytest.raises(ValueError, match='missing from the file: .*encoder_norm'):
    adaptation.adapt(weights(**norms), initial(), (4, 4))


def test_the_error_names_the_model_of_the_file():
  small = models.get_model('ti16', num_classes=1)
  other = models.get_model('testing', num_classes=1)
  with pytest.raises(ValueError) as error:
    adaptation.adapt(
      initial_params(small, (32, 32)), initial_params(other, (32, 32)), (2, 2)
    )
  message = str(error.value)
  assert 'embedding/kernel: (16, 16, 3, 192) in the file, (16, 16, 3, 10)' in (
    message
  )
  assert 'not in the model: Transformer/encoderblock_11/' in message
  assert (
    'config.model.name=ViT-Ti_16. Remove other settings of config.model'
    in (message.splitlines()[-1])
  )


def test_the_error_for_a_mixer_contains_its_image_size():
  small = dict(
    num_classes=2, hidden_size=4, num_layers=1, tokens_mlp_dim=4, mlp_dim=4
  )
  model = models.get_model('Mixer-B_16', **small)
  loaded = initial_params(model, (224, 224))
  with pytest.raises(ValueError, match='Mixer.*config.pp.crop=224'):
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


@pytest.mark.parametrize('keep_head', [False, True])
def test_weights_get_the_dtype_of_the_model(keep_head):
  loaded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights())
  initial = initial_params(models.get_model('testing', num_classes=7), (64, 64))
  adapted = adaptation.adapt(loaded, initial, (4, 4), keep_head)
  assert {x.dtype for x in jax.tree.leaves(adapted)} == {np.dtype('float32')}
  np.testing.assert_array_equal(
    adapted['embedding']['kernel'],
    loaded['embedding']['kernel'].astype(np.float32),
  )


def test_a_kept_head_needs_the_same_inputs():
  """An input of the head is never dropped or initialized without an error."""
  token, pooled = weights(), weights(classifier='gap')
  with pytest.raises(
    ValueError,
    match=r'not in the model: cls.*\n.*'
    'classifier=token',
  ):
    adaptation.adapt(token, pooled, (4, 4), keep_head=True)
  with pytest.raises(
    ValueError,
    match=r'missing from the file: cls.*\n.*'
    'classifier=gap',
  ):
    adaptation.adapt(pooled, token, (4, 4), keep_head=True)
  deep = weights(representation_size=6)
  with pytest.raises(ValueError, match='representation_size=6'):
    adaptation.adapt(deep, token, (4, 4), keep_head=True)
  with pytest.raises(
    ValueError, match=r'head/bias: \(7,\) in the file, \(3,\)'
  ):
    adaptation.adapt(token, weights(num_classes=3), (4, 4), keep_head=True)


def test_files_without_a_class_token_are_gap_models():
  """Files of GSAM have no class token."""
  shapes = jax.eval_shape(
    lambda: models.get_model('s16', num_classes=10, classifier='gap').init(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
    )
  )['params']
  other = models.get_model('testing', num_classes=10)
  with pytest.raises(ValueError) as error:
    adaptation.adapt(
      jax.tree.map(lambda x: np.zeros(x.shape), shapes),
      initial_params(other, (32, 32)),
      (2, 2),
    )
  assert 'config.model.name=ViT-S_16-gap-norep.' in str(error.value)


def tokens_of(kernel, images):
  """Returns the tokens [B, h, w, D] of images [B, H, W, C]."""
  size = kernel.shape[0]
  x = images.reshape(
    len(images),
    images.shape[1] // size,
    size,
    images.shape[2] // size,
    size,
    -1,
  )
  return np.einsum('bhpwqc,pqcd->bhwd', x, kernel)


@pytest.mark.parametrize('given, wanted', [(4, 8), (4, 5), (8, 16), (3, 4)])
def test_larger_patches_give_the_same_tokens(given, wanted):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(given, given, 3, 7))
  patch = rng.normal(size=(2, given, given, 3))
  larger = jax.image.resize(
    patch.astype(np.float32), (2, wanted, wanted, 3), 'linear'
  )
  resized = adaptation.resize_patch_kernel(kernel, (wanted, wanted))
  np.testing.assert_allclose(
    tokens_of(resized, np.asarray(larger)), tokens_of(kernel, patch), atol=1e-4
  )


def test_smaller_patches_equal_least_squares():
  """Compares with least squares over all pixels of a patch."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(6, 6, 1, 2))
  # The patches are the unit vectors: this is optimal for white noise.
  resize = np.asarray(
    jax.image.resize(
      np.eye(36, dtype=np.float32).reshape(36, 6, 6, 1), (36, 4, 4, 1), 'linear'
    )
  ).reshape(36, 16)
  expected = np.linalg.lstsq(resize, kernel.reshape(36, 2), rcond=None)[0]
  np.testing.assert_allclose(
    adaptation.resize_patch_kernel(kernel, (4, 4)).reshape(16, 2),
    expected,
    atol=1e-4,
  )


def test_patches_are_resized_if_requested():
  loaded, initial = weights(), weights(patch_size=32, size=(128, 128))
  with pytest.raises(
    ValueError,
    match=r'\(16, 16, 3, 10\) in the file, '
    r'\(32, 32, 3, 10\)(.|\n)*resize_patches=True',
  ):
    adaptation.adapt(loaded, initial, (4, 4))
  adapted = adaptation.adapt(loaded, initial, (4, 4), resize_patches=True)
  images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3))
  rows = images.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 16, 16, 3)
  larger = np.asarray(jax.image.resize(rows, (16, 32, 32, 3), 'linear'))
  np.testing.assert_allclose(
    tokens_of(adapted['embedding']['kernel'], larger),
    tokens_of(loaded['embedding']['kernel'], rows),
    atol=1e-5,
  )


@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16])
@pytest.mark.parametrize(
  'positions', ['learned', 'relative_table', 'learned_2d']
)
def test_weights_of_16_bits_are_resized_in_32_bits(dtype, positions):
  loaded = weights(positions=positions)
  half = jax.tree.map(lambda x: x.astype(dtype), loaded)
  same = jax.tree.map(lambda x: x.astype(np.float32), half)
  initial = weights(positions=positions, patch_size=8, size=(56, 40))
  adapted = [
    adaptation.adapt(
      x, initial, (7, 5), source_grid=(4, 4), resize_patches=True
    )
    for x in (half, same)
  ]
  jax.tree.map(np.testing.assert_array_equal, *adapted)
  assert {x.dtype for x in jax.tree.leaves(adapted)} == {np.dtype('float32')}


@pytest.mark.parametrize(
  'given, wanted', [(3, 1), (3, 6), (3, 4), (1, 3), (4, 3), (3, 2)]
)
def test_input_channels(given, wanted):
  """Images with repeated channels give the tokens of the original images."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(2, 2, given, 5))
  changed = adaptation.change_channels(kernel, wanted)
  few = rng.normal(size=(1, 4, 4, min(given, wanted)))
  images = {
    channels: few[..., np.arange(channels) % few.shape[-1]]
    for channels in (given, wanted)
  }
  np.testing.assert_allclose(
    tokens_of(changed, images[wanted]), tokens_of(kernel, images[given])
  )


def test_gray_images_scale_the_outputs_of_standardized_kernels():
  """For gray images, each output channel is scaled by its own factor."""
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 5))
  grey = resnet.standardize(adaptation.change_channels(kernel, 1))
  ratio = grey / resnet.standardize(kernel).sum(2, keepdims=True)
  np.testing.assert_allclose(
    ratio / ratio[0, 0, 0], np.ones_like(ratio), rtol=1e-3
  )
  assert np.ptp(ratio[0, 0, 0]) > 0.05


@pytest.mark.parametrize(
  'name, kernel',
  [('ti16', 'embedding'), ('mixer-b16', 'stem'), ('r-ti16', 'conv_root')],
)
def test_gray_images(name, kernel):
  small = dict(num_layers=1, hidden_size=32)
  small |= {'mixer-b16': dict(tokens_mlp_dim=4, mlp_dim=8)}.get(
    name, dict(num_heads=2, mlp_dim=8)
  )
  model = models.get_model(
    {'r-ti16': 'R+ViT-Ti_16'}.get(name, name), num_classes=2, **small
  )
  color, grey = (
    reference.params_like(initial_params(model, (32, 32), c)) for c in (3, 1)
  )
  adapted = adaptation.adapt(color, grey, model.grid_size(32, 32))
  np.testing.assert_allclose(
    adapted[kernel]['kernel'],
    color[kernel]['kernel'].sum(2, keepdims=True),
    rtol=1e-5,
    atol=1e-6,
  )
