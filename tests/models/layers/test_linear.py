"""Compares layers made of matrix products with the layers of Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.layers import linear
from vit_jax.models.layers import patches


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'ours, theirs, shape',
  [
    (linear.Dense(12), nn.Dense(12), (2, 5, 8)),
    (linear.DenseGeneral((3, 4)), nn.DenseGeneral((3, 4)), (2, 5, 8)),
    (
      linear.DenseGeneral(12, axis=(-2, -1)),
      nn.DenseGeneral(12, axis=(-2, -1)),
      (2, 5, 3, 4),
    ),
    (
      patches.PatchEmbedding(12, 4),
      nn.Conv(12, (4, 4), strides=4, padding='VALID'),
      (2, 8, 12, 3),
    ),
  ],
)
def test_parameters_outputs_and_gradients_equal_flax(
  ours, theirs, shape, dtype
):
  x = jax.random.uniform(jax.random.key(0), shape)
  params, outputs, grads = [], [], []
  for layer in (ours, theirs):
    layer = layer.clone(dtype=dtype)
    params.append(layer.init(jax.random.key(1), x))

    def loss(p, x, layer=layer):
      y = layer.apply(p, x)
      return jnp.sum(jnp.sin(3 * y.astype(jnp.float32))), y

    (_, y), grad = jax.value_and_grad(loss, (0, 1), has_aux=True)(params[0], x)
    outputs.append(y)
    grads.append(grad)
  jax.tree.map(np.testing.assert_array_equal, *params)
  assert outputs[0].dtype == outputs[1].dtype == dtype
  error = 1e-5 if dtype == jnp.float32 else 0.03
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float32).ravel(),
      np.asarray(b, np.float32).ravel(),
      rtol=error,
      atol=error * float(jnp.abs(b).max()),
    ),
    (outputs[0], grads[0]),
    (outputs[1].reshape(outputs[0].shape), grads[1]),
  )
