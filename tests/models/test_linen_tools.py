"""The tools of Flax work with every model family."""

import copy
import functools
import pickle

import flax.linen as nn
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from vit_jax import models

_VIT = functools.partial(
  tiny_model.make_vit, num_classes=3, dropout_rate=0.1, drop_path_rate=0.1
)
_TEXT = dict(
  out_dim=3,
  vocab_size=11,
  hidden_size=16,
  mlp_dim=24,
  num_heads=2,
  num_layers=1,
)
_IMAGES = {'images': jnp.ones((2, 32, 24, 3)), 'train': False}
_TOKENS = {'tokens': jnp.ones((2, 5), jnp.int32)}
FAMILIES = {
  **{
    classifier: (_VIT(classifier=classifier), _IMAGES)
    for classifier in models.vit_checks.CLASSIFIERS
  },
  'hybrid': (_VIT(patch_size=1, stem_units=(1,)), _IMAGES),
  'fractal': (_VIT(fractal_columns=2), _IMAGES),
  'scan': (_VIT(scan=True), _IMAGES),
  'remat': (_VIT(remat='full'), _IMAGES),
  'relative': (
    _VIT(positions='relative', num_registers=2, layer_scale=0.1),
    _IMAGES,
  ),
  'mixer': (tiny_model.make_mixer(num_classes=3, drop_path_rate=0.1), _IMAGES),
  'mixer scan': (tiny_model.make_mixer(num_classes=3, scan=True), _IMAGES),
  'bit': (models.BitResNet(3, (1,), 1), _IMAGES),
  'bert': (models.BertTower(**_TEXT), _TOKENS),
  'text': (models.TextTransformer(**_TEXT), _TOKENS),
  'two towers': (
    models.TwoTowers(_VIT(), models.BertTower(**_TEXT)),
    {**_IMAGES, **_TOKENS},
  ),
}
every_family = pytest.mark.parametrize(
  'model, inputs', FAMILIES.values(), ids=FAMILIES
)


@functools.cache
def shapes_of(model, names):
  """Returns the shapes of the variables. `eval_shape` traces every input."""
  inputs = {**_IMAGES, **_TOKENS}
  return jax.eval_shape(
    model.init, jax.random.key(0), **{name: inputs[name] for name in names}
  )


@every_family
def test_all_ways_to_initialize_give_the_same_shapes(model, inputs):
  shapes = shapes_of(model, tuple(inputs))
  key = jax.random.key(0)
  assert jax.tree.leaves(shapes)
  arrays = {name: x for name, x in inputs.items() if name != 'train'}
  options = {name: x for name, x in inputs.items() if name == 'train'}
  lazy = jax.eval_shape(
    lambda: model.lazy_init(
      key,
      **jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays),
      **options,
    )
  )
  assert lazy == shapes
  if 'train' in inputs:  # initialization needs no key for dropout
    assert (
      jax.eval_shape(lambda: model.init(key, **{**inputs, 'train': True}))
      == shapes
    )


@every_family
def test_parameters_are_float32_if_jax_uses_64_bits(model, inputs):
  with jax.enable_x64(True):
    wide = jax.eval_shape(model.init, jax.random.key(0), **inputs)
  assert wide == shapes_of(model, tuple(inputs))


@pytest.mark.filterwarnings('error::DeprecationWarning')
@every_family
def test_tables_list_every_layer_and_count_the_parameters(model, inputs):
  count = sum(x.size for x in jax.tree.leaves(shapes_of(model, tuple(inputs))))
  options = {'console_kwargs': {'width': 200}}
  method = model.tabulate(jax.random.key(0), **inputs, **options)
  assert f'Total Parameters: {count:,} ' in method
  assert nn.tabulate(model, jax.random.key(0), **options)(**inputs) == method
  assert 'head' in method


@every_family
def test_copies_equal_the_model(model, inputs):
  del inputs
  for made in (
    copy.copy(model),
    copy.deepcopy(model),
    model.clone(),
    pickle.loads(pickle.dumps(model)),
  ):
    assert made == model and hash(made) == hash(model)
    assert repr(made) == repr(model)
  changed = (
    model.clone(dtype=jnp.bfloat16)
    if hasattr(model, 'dtype')
    else (model.clone(img=None))
  )
  assert changed != model


def exported(model, inputs):
  """Returns (function of params and arrays, its export for any batch size)."""
  arrays = {name: x for name, x in inputs.items() if name != 'train'}
  options = {name: x for name, x in inputs.items() if name == 'train'}

  def apply(params, arrays):
    return model.apply({'params': params}, **arrays, **options)

  (batch,) = export.symbolic_shape('b')
  params = shapes_of(model, tuple(inputs))['params']
  return apply, export.export(jax.jit(apply))(
    params,
    {
      name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
      for name, x in arrays.items()
    },
  )


@every_family
def test_a_model_can_be_exported_for_every_batch_size(model, inputs):
  _, made = exported(model, inputs)
  assert str(made.out_avals[0].shape[0]) == 'b'


@pytest.mark.slow
@every_family
def test_an_exported_model_equals_apply(model, inputs):
  apply, made = exported(model, inputs)
  params = tiny_model.like(shapes_of(model, tuple(inputs))['params'])
  rng = np.random.default_rng(0)
  for size in (1, 3, 7):
    arrays = {
      name: np.asarray(rng.uniform(0, 3, (size, *x.shape[1:])), x.dtype)
      for name, x in inputs.items()
      if name != 'train'
    }
    expected = jax.tree.leaves(apply(params, arrays))
    for value, output in zip(
      expected, jax.tree.leaves(made.call(params, arrays)), strict=True
    ):
      tolerance = 1e-5 * np.abs(value).max()
      np.testing.assert_allclose(output, value, atol=tolerance, rtol=0)


@pytest.mark.parametrize('name', ['token', 'mixer', 'two towers'])
def test_a_bound_model_equals_apply(name):
  model, inputs = FAMILIES[name]
  variables = {
    'params': tiny_model.like(shapes_of(model, tuple(inputs))['params'])
  }
  bound = model.bind(variables)
  first, applied = (
    jax.tree.leaves(x)[0]
    for x in (bound(**inputs), model.apply(variables, **inputs))
  )
  assert np.isfinite(first).all()
  np.testing.assert_array_equal(first, applied)
  unbound, found = bound.unbind()
  assert unbound == model and found == variables


def test_clone_rejects_wrong_settings():
  model = _VIT()
  for settings, message in (
    ({'num_heads': 3}, 'hidden_size=16 .*num_heads=3'),
    ({'dropout_rate': 1.0}, 'dropout_rate=1.0 must'),
  ):
    with pytest.raises(ValueError, match=message):
      model.clone(**settings)
