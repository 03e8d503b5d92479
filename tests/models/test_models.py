import functools
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from vit_jax import models
from vit_jax.models import architecture
from vit_jax.models import variants

IMAGE_MODELS = tuple(variants.VARIANTS)
TWO_TOWERS = tuple(variants.TWO_TOWERS)
# Models of the original implementation. BiT has its own tests.
PUBLISHED = [
  name for name in models.model_names() if not name.startswith('BiT')
]


def flat_shapes(params):
  return {
    path: tuple(x.shape)
    for path, x in traverse_util.flatten_dict(params, sep='/').items()
  }


def abstract_params(name, num_classes):
  """Returns the model and its parameter shapes at 224 × 224 pixels."""
  inputs = {'tokens': jnp.zeros((1, 16), jnp.int32)}
  images = jnp.zeros((1, 224, 224, 3))
  if name in TWO_TOWERS:
    model = models.get_model(name)
    init = functools.partial(model.init, images=images, **inputs)
  else:
    model = models.get_model(name, num_classes=num_classes)
    init = functools.partial(model.init, images=images, train=False)
  return model, jax.eval_shape(init, jax.random.key(0))['params']


def test_all_published_models_exist():
  assert set(PUBLISHED) == set(reference.param_trees())


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameters_are_the_published_ones(name):
  """The reference has counts for 1000 classes, and shapes for 10 classes."""
  _, params = abstract_params(name, num_classes=1000)
  shapes = flat_shapes(params)
  assert (
    sum(map(math.prod, shapes.values()))
    == (reference.facts()['num_params'][name])
  )
  if name in IMAGE_MODELS:
    assert architecture.fitting(shapes) == [name]
    for path in ('head/kernel', 'head/bias'):
      assert shapes[path][-1] == 1000
      shapes[path] = (*shapes[path][:-1], 10)
  published = reference.param_trees()[name]
  assert {p: list(s) for p, s in shapes.items()} == published


def check_sum(params, name):
  """Checks that the sum of absolute parameters equals the reference."""
  total = sum(np.abs(x).sum(dtype=np.float64) for x in jax.tree.leaves(params))
  np.testing.assert_allclose(
    total, reference.arrays()[f'models/{name}/param_abs_sum'], rtol=1e-9
  )


@pytest.mark.parametrize(
  'name',
  [
    'testing',
    'testing-unpooled',
    'ViT-Ti_16',
    'ViT-S_32-gap-norep',
    'R+ViT-Ti_16',
    'R26+ViT-S_32',
    'Mixer-B_32',
  ],
)
def test_logits_equal_the_reference(name):
  model, shapes = abstract_params(name, num_classes=10)
  params = reference.params_like(shapes)
  check_sum(params, name)
  # A stem has many operations. Without jit, each is compiled separately.
  compiled = jax.jit if name.startswith('R') else lambda function: function
  with jax.default_matmul_precision('highest'):
    logits = compiled(functools.partial(model.apply, train=False))(
      {'params': params}, reference.images()
    )
  np.testing.assert_allclose(
    logits,
    reference.arrays()[f'models/{name}/logits'],
    atol=5e-5 if name.startswith('R26') else 2e-5,
    rtol=0,
  )


def check_embeddings(name, zimg, ztxt, out):
  """Compares embeddings and intermediate values with the reference."""
  found = {
    'zimg': zimg,
    'ztxt': ztxt,
    **{f'out/{key}': value for key, value in out.items()},
  }
  arrays = reference.arrays()
  expected = {
    key.removeprefix(f'models/{name}/'): arrays[key]
    for key in arrays.files
    if key.startswith(f'models/{name}/')
    and not key.endswith(('param_abs_sum', '/t'))
    or key == f'models/{name}/out/t'
  }
  if zimg is None:
    expected = {
      key: value
      for key, value in expected.items()
      if not key.startswith(('zimg', 'out/img'))
    }
  assert len(expected) >= (6 if zimg is None else 8)
  for key, value in expected.items():
    np.testing.assert_allclose(
      found[key], value, atol=2e-5, rtol=1e-6, err_msg=key
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['LiT-B16B_2', 'LiT-L16Ti'])
def test_embeddings_equal_the_reference(name):
  model, shapes = abstract_params(name, None)
  params = reference.params_like(shapes)
  check_sum(params, name)
  images, tokens = reference.images(), reference.tokens()
  with jax.default_matmul_precision('highest'):
    zimg, ztxt, out = jax.jit(model.apply)(
      {'params': params}, images=images, tokens=tokens
    )
    np.testing.assert_allclose(
      model.apply({'params': params}, tokens=tokens)[1], ztxt, atol=1e-6
    )
  check_embeddings(name, zimg, ztxt, out)


@pytest.mark.parametrize(
  'name', [pytest.param('LiT-B16B_2', marks=pytest.mark.slow), 'LiT-L16Ti']
)
def test_text_embeddings_equal_the_reference(name):
  """Tests BERT and the other text tower; a slow test adds the image towers."""
  model, shapes = abstract_params(name, None)
  params = reference.params_like({key: shapes[key] for key in ('txt', 't')})
  with jax.default_matmul_precision('highest'):
    check_embeddings(
      name, *jax.jit(model.apply)({'params': params}, tokens=reference.tokens())
    )


def with_values(model, *args, **kwargs):
  """Returns variables of a model, with values made as in the reference."""
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), *args, **kwargs)
  )
  return {'params': reference.params_like(shapes['params'])}


def test_lit_accepts_only_images_or_only_tokens():
  model = models.TwoTowers(
    models.get_model('testing', num_classes=0),
    models.TextTransformer(10, 50, 8, 8, 2, 1),
  )
  images, tokens = jnp.ones((2, 32, 32, 3)), jnp.arange(12).reshape(2, 6)
  variables = with_values(model, images=images, tokens=tokens)
  zimg, ztxt, _ = model.apply(variables, images=images, tokens=tokens)
  np.testing.assert_allclose(jnp.linalg.norm(zimg, axis=-1), 1, rtol=1e-5)
  only_image, none, _ = model.apply(variables, images=images)
  assert none is None and (only_image == zimg).all()
  none, only_text, out = model.apply(variables, tokens=tokens)
  assert none is None and (only_text == ztxt).all()
  np.testing.assert_allclose(
    out['t'], np.exp(variables['params']['t']), rtol=1e-6
  )


def test_the_initial_temperature_of_lit_is_10():
  towers = models.TwoTowers(None, None)
  np.testing.assert_allclose(
    towers.init_with_output(jax.random.key(0))[0][2]['t'], 10, rtol=1e-6
  )


def test_bert_ignores_padding():
  tower = models.BertTower(5, 50, 8, 8, 2, 1)
  tokens = jnp.array([[3, 4, 5, 0, 0]])
  variables = jax.tree.map(lambda x: 3 * x, with_values(tower, tokens))
  embed = jax.jit(tower.apply)
  longer = embed(variables, tokens)[0]
  np.testing.assert_allclose(
    embed(variables, tokens[:, :3])[0], longer, atol=2e-6
  )
  assert abs(embed(variables, tokens[:, :2])[0] - longer).max() > 1e-4


def test_the_grid_of_a_hybrid():
  model = models.get_model('R50+ViT-B_16', num_classes=2)
  assert model.grid_size(224, 384) == (14, 24)
  with pytest.raises(ValueError, match='patch size 16.* 96 or 112'):
    model.grid_size(100, 224)
  root_alone = models.get_model('R+Ti_16', num_classes=2)
  assert root_alone.grid_size(224, 224) == (7, 7)


def test_standardized_kernels():
  from vit_jax.models.layers import resnet

  kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 6)) * 7 + 3
  found = resnet.standardize(kernel)
  np.testing.assert_allclose(found.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(found.std((0, 1, 2)), 1, rtol=1e-4)
  assert abs(found.mean((0, 1))).max() > 0.1  # statistics are over all channels


@pytest.mark.parametrize(
  'classifier, shape',
  [
    ('token', (2, 5)),
    ('gap', (2, 5)),
    ('unpooled', (2, 6, 5)),
    ('token_unpooled', (2, 7, 5)),
  ],
)
def test_classifiers_on_a_wide_image(classifier, shape):
  model = models.get_model(
    'testing', num_classes=5, classifier=classifier, representation_size=3
  )
  images = jnp.ones((2, 32, 48, 3))
  logits, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), images, train=False)
  )
  assert logits.shape == shape
  assert ('cls' in variables['params']) == ('token' in classifier)
  assert variables['params']['pre_logits']['kernel'].shape == (10, 3)


def test_a_new_head_returns_zeros_and_no_head_returns_features():
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  model = models.get_model('testing', num_classes=5)
  logits, _ = model.init_with_output(jax.random.key(0), images, train=False)
  assert not logits.any()
  headless = models.get_model('testing', num_classes=0)
  features, _ = headless.init_with_output(
    jax.random.key(0), images, train=False
  )
  assert features.shape == (2, 10) and features.any()


def test_initializers():
  model = models.get_model('ViT-Ti_16', num_classes=5, num_layers=1)
  params = jax.jit(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False
    )
  )()['params']
  block = params['Transformer']['encoderblock_0']
  positions = params['Transformer']['posembed_input']['pos_embedding']
  assert abs(positions.std() - 0.02) < 1e-3
  assert not params['cls'].any()
  limit = (6 / (192 + 768)) ** 0.5  # Xavier uniform
  kernel = block['MlpBlock_0']['Dense_0']['kernel']
  assert 0.99 * limit < abs(kernel).max() <= limit
  assert 0 < abs(block['MlpBlock_0']['Dense_0']['bias']).max() < 1e-5
  query = block['MultiHeadDotProductAttention_0']['query']['kernel']
  limit = (6 / (192 + 192)) ** 0.5
  assert 0.99 * limit < abs(query).max() <= limit


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  images = jnp.asarray(reference.images()[:, :64, :64])
  plain = models.get_model('ViT-Ti_16', num_classes=10, num_layers=2)
  half = models.get_model(
    'ViT-Ti_16', num_classes=10, num_layers=2, dtype='bfloat16'
  )
  shapes = jax.eval_shape(
    lambda: half.init(jax.random.key(0), images, train=False)
  )['params']
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  params = reference.params_like(shapes)
  expected, logits = (
    jax.jit(functools.partial(model.apply, train=False))(
      {'params': params}, images
    )
    for model in (plain, half)
  )
  assert logits.dtype == jnp.float32
  assert 0 < abs(logits - expected).max() < 0.03 * abs(expected).max()


def test_dropout_only_in_training():
  model = models.get_model('testing', num_classes=0, dropout_rate=0.5)
  images = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
  variables = with_values(model, images, train=False)

  def run(train, seed):
    return jax.jit(functools.partial(model.apply, train=train))(
      variables, images, rngs={'dropout': jax.random.key(seed)}
    )

  assert (run(False, 0) == run(False, 1)).all()
  assert (run(True, 0) != run(True, 1)).any()
  assert (run(True, 0) == run(True, 0)).all()


@pytest.mark.parametrize(
  'name, full',
  [
    ('b16', 'ViT-B_16'),
    ('vit-b_16', 'ViT-B_16'),
    ('ti16', 'ViT-Ti_16'),
    ('s16-gap-norep', 'ViT-S_16-gap-norep'),
    ('H_14', 'ViT-H_14'),
    ('r50+b16', 'R50+ViT-B_16'),
    ('R+Ti_16', 'R+ViT-Ti_16'),
    ('lit-b16b_2', 'LiT-B16B_2'),
    ('mixer-b16', 'Mixer-B_16'),
  ],
)
def test_short_names(name, full):
  assert variants.resolve(name) == full


def test_errors_contain_the_fix():
  with pytest.raises(ValueError, match="'ViT-B_61'.*ViT-B_16"):
    models.get_model('ViT-B_61', num_classes=1)
  with pytest.raises(ValueError, match="classifier='tokens'.*token, gap"):
    models.get_model('b16', num_classes=1, classifier='tokens')
  with pytest.raises(
    ValueError, match='hidden_size=100 .*num_heads=12.*head_dim'
  ):
    models.get_model('b16', num_classes=1, hidden_size=100)
  with pytest.raises(ValueError, match="'drop_rate'.*VisionTransformer"):
    models.get_model('b16', num_classes=1, drop_rate=0.1)
  with pytest.raises(ValueError, match="Mixer-B_16 .*'classifier'.*MlpMixer"):
    models.get_model('mixer-b16', num_classes=1, classifier='gap')
  with pytest.raises(TypeError, match='ViT-B_16 .*num_classes.* 0 '):
    models.get_model('b16')
  with pytest.raises(TypeError, match='LiT-L16L .*num_classes'):
    models.get_model('LiT-L16L', num_classes=1)
  model = models.get_model('b16', num_classes=1)
  with pytest.raises(ValueError, match='width 225 .*16.* 224 or 240'):
    jax.eval_shape(
      lambda: model.init(
        jax.random.key(0), jnp.zeros((1, 224, 225, 3)), train=False
      )
    )
