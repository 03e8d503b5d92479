"""BiT models. `test_torch_convert` compares their logits with timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from vit_jax import models
from vit_jax.checkpoint import weights_file
from vit_jax.models import architecture
from vit_jax.models import bit


# Numbers of parameters of timm's resnetv2_*_bit with 1000 classes.
@pytest.mark.parametrize(
  'name, count',
  [
    ('R50x1', 25_549_352),
    ('R50x3', 217_319_080),
    ('R101x1', 44_541_480),
    ('R101x3', 387_934_888),
    ('R152x2', 236_335_208),
    ('R152x4', 936_533_224),
  ],
)
def test_parameter_count(name, count):
  model = models.get_model(f'BiT-{name}', num_classes=1000)
  params = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
    )
  )['params']
  shapes = {path: x.shape for path, x in weights_file.flatten(params).items()}
  assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
  assert architecture.fitting(shapes) == [f'BiT-{name}']


@pytest.mark.parametrize('size', [(64, 64), (33, 100)])
def test_grid_is_that_of_the_last_stage(size):
  model = models.get_model('BiT-R50x1', num_classes=2, num_units=(1, 1, 1))
  _, state = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0),
      jnp.zeros((1, *size, 3)),
      train=False,
      capture_intermediates=True,
      mutable=['params', 'intermediates'],
    )
  )
  shape = state['intermediates']['block3']['__call__'][0].shape
  assert shape[1:3] == model.grid_size(*size)


def test_kernels_are_standardized():
  """Scale and shift of a kernel do not change the output."""
  conv = bit.StdConv(4, (3, 3))
  x = reference.random_images((8, 8))
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4))
  outputs = [
    conv.apply({'params': {'kernel': k}}, x) for k in (kernel, 3 * kernel + 1)
  ]
  np.testing.assert_allclose(*outputs, atol=1e-4)
