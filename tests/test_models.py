import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests import reference
from vit_jax import models
from vit_jax.models import variants


def shapes_of(model, image_size=(224, 224)):
  images = jnp.zeros((1, *image_size, 3))
  params = jax.eval_shape(
      lambda key: model.init(key, images, train=False),
      jax.random.key(0))['params']
  return {path: tuple(x.shape) for path, x in
          traverse_util.flatten_dict(params, sep='/').items()}


@pytest.mark.parametrize('name', models.model_names())
def test_parameter_tree_is_the_published_one(name):
  shapes = shapes_of(models.get_model(name, num_classes=10))
  published = reference.param_trees()[name]
  assert {p: list(s) for p, s in shapes.items()} == published
  assert variants.fitting(shapes) == [name]


@pytest.mark.parametrize('name', models.model_names())
def test_parameter_count(name):
  shapes = shapes_of(models.get_model(name, num_classes=1000))
  count = sum(int(np.prod(shape)) for shape in shapes.values())
  assert count == reference.facts()['num_params'][name]


@pytest.mark.parametrize('name', [
    'testing', 'testing-unpooled', 'ViT-Ti_16', 'ViT-S_32-gap-norep'])
def test_logits_equal_the_reference(name):
  model = models.get_model(name, num_classes=10)
  images = reference.images()
  params = reference.params_like(jax.eval_shape(
      lambda: model.init(jax.random.key(0), images, train=False))['params'])
  arrays = reference.arrays()
  total = sum(np.abs(x).sum(dtype=np.float64) for x in jax.tree.leaves(params))
  np.testing.assert_allclose(
      total, arrays[f'models/{name}/param_abs_sum'], rtol=1e-9)
  with jax.default_matmul_precision('highest'):
    logits = model.apply({'params': params}, images, train=False)
  np.testing.assert_allclose(
      logits, arrays[f'models/{name}/logits'], atol=2e-5, rtol=0)


@pytest.mark.parametrize('classifier, shape', [
    ('token', (2, 5)), ('gap', (2, 5)), ('unpooled', (2, 6, 5)),
    ('token_unpooled', (2, 7, 5))])
def test_classifiers_on_a_wide_image(classifier, shape):
  model = models.get_model('testing', num_classes=5, classifier=classifier,
                           representation_size=3)
  images = jnp.ones((2, 32, 48, 3))
  variables = model.init(jax.random.key(0), images, train=False)
  assert model.apply(variables, images, train=False).shape == shape
  assert ('cls' in variables['params']) == ('token' in classifier)
  assert variables['params']['pre_logits']['kernel'].shape == (10, 3)


def test_fresh_head_answers_zero_and_no_head_gives_features():
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  model = models.get_model('testing', num_classes=5)
  logits, _ = model.init_with_output(jax.random.key(0), images, train=False)
  assert not logits.any()
  headless = models.get_model('testing', num_classes=0)
  features, _ = headless.init_with_output(
      jax.random.key(0), images, train=False)
  assert features.shape == (2, 10) and features.any()


def test_initialisers():
  model = models.get_model('ViT-Ti_16', num_classes=5, num_layers=1)
  params = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)),
                      train=False)['params']
  block = params['Transformer']['encoderblock_0']
  positions = params['Transformer']['posembed_input']['pos_embedding']
  assert abs(positions.std() - 0.02) < 1e-3
  assert not params['cls'].any()
  limit = (6 / (192 + 768))**0.5  # Xavier uniform
  kernel = block['MlpBlock_0']['Dense_0']['kernel']
  assert 0.99 * limit < abs(kernel).max() <= limit
  assert 0 < abs(block['MlpBlock_0']['Dense_0']['bias']).max() < 1e-5
  query = block['MultiHeadDotProductAttention_0']['query']['kernel']
  limit = (6 / (192 + 192))**0.5
  assert 0.99 * limit < abs(query).max() <= limit


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  images = jnp.asarray(reference.images()[:, :64, :64])
  plain = models.get_model('ViT-Ti_16', num_classes=10, num_layers=2)
  half = models.get_model('ViT-Ti_16', num_classes=10, num_layers=2,
                          dtype='bfloat16')
  shapes = jax.eval_shape(
      lambda: half.init(jax.random.key(0), images, train=False))['params']
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  params = reference.params_like(shapes)
  expected = plain.apply({'params': params}, images, train=False)
  logits = half.apply({'params': params}, images, train=False)
  assert logits.dtype == jnp.float32
  assert 0 < abs(logits - expected).max() < 0.03 * abs(expected).max()


def test_dropout_only_in_training():
  model = models.get_model('testing', num_classes=0, dropout_rate=0.5)
  images = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
  variables = model.init(jax.random.key(0), images, train=False)

  def run(train, seed):
    return model.apply(variables, images, train=train,
                       rngs={'dropout': jax.random.key(seed)})

  assert (run(False, 0) == run(False, 1)).all()
  assert (run(True, 0) != run(True, 1)).any()
  assert (run(True, 0) == run(True, 0)).all()


@pytest.mark.parametrize('name, full', [
    ('b16', 'ViT-B_16'), ('vit-b_16', 'ViT-B_16'), ('ti16', 'ViT-Ti_16'),
    ('s16-gap-norep', 'ViT-S_16-gap-norep'), ('H_14', 'ViT-H_14')])
def test_short_names(name, full):
  assert variants.resolve(name) == full


def test_mistakes_name_the_mend():
  with pytest.raises(ValueError, match="'ViT-B_61'.*ViT-B_16"):
    models.get_model('ViT-B_61', num_classes=1)
  with pytest.raises(ValueError, match="classifier 'tokens'.*token, gap"):
    models.get_model('b16', num_classes=1, classifier='tokens')
  with pytest.raises(ValueError, match='hidden_size 100 .* num_heads 12'):
    models.get_model('b16', num_classes=1, hidden_size=100)
  with pytest.raises(TypeError, match='drop_rate'):
    models.get_model('b16', num_classes=1, drop_rate=0.1)
  model = models.get_model('b16', num_classes=1)
  with pytest.raises(ValueError, match='width 225 .*16: use 224 or 240'):
    jax.eval_shape(lambda: model.init(
        jax.random.key(0), jnp.zeros((1, 224, 225, 3)), train=False))
