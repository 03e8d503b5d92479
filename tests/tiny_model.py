"""Small models, random parameters, and small images to run them on."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models

# A grid of 4 × 3 patches.
IMAGES = (
  np.random.default_rng(0).standard_normal((3, 32, 24, 3)).astype(np.float32)
)
GRID = (4, 3)
BLOCK = 'Transformer/encoderblock_'
ATTENTION = 'MultiHeadDotProductAttention_0'


def make_vit(**settings):
  return models.VisionTransformer(
    **{
      **dict(
        num_classes=0,
        patch_size=8,
        hidden_size=16,
        mlp_dim=24,
        num_heads=2,
        num_layers=2,
      ),
      **settings,
    }
  )


def make_mixer(**settings):
  return models.MlpMixer(
    **{
      **dict(
        num_classes=0,
        patch_size=8,
        hidden_size=16,
        num_layers=3,
        tokens_mlp_dim=8,
        mlp_dim=24,
      ),
      **settings,
    }
  )


def like(shapes, seed=0, scale=0.3):
  """Returns random values: zeros of an initializer could hide mistakes."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), shapes
  )


@functools.cache
def shapes_of(model, image_shape):
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(image_shape), train=False)
  )


def params_of(model, images=IMAGES):
  """Returns random parameters as a flat dict; scales are near 1."""
  flat = traverse_util.flatten_dict(
    like(shapes_of(model, images.shape)['params']), sep='/'
  )
  return {path: x + path.endswith('scale') for path, x in flat.items()}


def run(model, flat, images=IMAGES, seed=None):
  """Returns the outputs of a model, in training mode if there is a seed.

  The model is not compiled: most other tests have compiled its operations.
  """
  params = traverse_util.unflatten_dict(flat, sep='/')
  rngs = None if seed is None else {'dropout': jax.random.key(seed)}
  return model.apply(
    {'params': params}, images, train=seed is not None, rngs=rngs
  )


def close(a, b, atol=2e-5):
  np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5)


def differ(a, b):
  assert abs(np.asarray(a) - np.asarray(b)).max() > 1e-3
