"""Tests that the constants match the paths of the modules."""

from flax import traverse_util
import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.models import param_paths


def paths_of(name, **settings):
  model = models.get_model(name, num_classes=3, **settings)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
    )
  )
  return set(traverse_util.flatten_dict(shapes['params'], sep='/'))


def test_every_constant_is_the_path_of_a_parameter():
  found = (
    paths_of(
      'testing',
      num_registers=1,
      representation_size=2,
      pre_norm=True,
      pixel_norm=True,
      patch_norm=True,
      head_norm=True,
    )
    | paths_of('testing', classifier='map', positions='relative')
    | paths_of('testing', positions='relative_mlp', rotary='mixed', head_dim=8)
    | paths_of('testing', positions='relative_table')
    | paths_of('R+ViT-Ti_16', num_layers=1)
    | paths_of('Mixer-B_16', num_layers=1)
    | paths_of('BiT-R50x1', num_units=(1,))
  )
  constants = {k: v for k, v in vars(param_paths).items() if k.isupper()}
  assert len(constants) > 15
  for name, path in constants.items():
    assert any(f'/{path}' in f'/{full}' for full in found), name
  assert any(path.startswith(param_paths.block(0)) for path in found)
  assert {param_paths.module(path) for path in found} >= {
    param_paths.HEAD,
    param_paths.PRE_LOGITS,
    param_paths.CLASS_TOKEN,
  }


def test_the_norm_before_the_blocks_has_the_depth_of_the_embeddings():
  assert param_paths.depth('Transformer/pre_norm/scale') == 0
  assert param_paths.depth('patch_norm/scale') == 0
  assert param_paths.depth('Transformer/encoder_norm/scale') is None
  assert param_paths.depth('head_norm/scale') is None
