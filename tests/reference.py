"""Reference outputs, and the parameters and inputs that they belong to."""

import gzip
import json
import pathlib
import zlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

DATA = pathlib.Path(__file__).parent / 'reference_data'
JPEGS = DATA / 'jpeg'


def arrays():
  """Returns all reference arrays; each is read when it is indexed by name."""
  return np.load(DATA / 'reference.npz')


def facts():
  with open(DATA / 'reference.json', encoding='utf-8') as file:
    return json.load(file)


def param_trees():
  with gzip.open(DATA / 'param_trees.json.gz') as file:
    return json.load(file)


def value_at(path, shape):
  """Returns the parameter at `path`; its values depend on the path only."""
  rng = np.random.default_rng(zlib.crc32(path.encode()))
  value = (rng.standard_normal(shape) * 0.02).astype(np.float32)
  return value + np.float32(1) if path.endswith('scale') else value


def params_like(params, prefix=''):
  """Returns reference parameters with the structure and shapes of `params`."""
  flat = traverse_util.flatten_dict(params, sep='/')
  return traverse_util.unflatten_dict(
    {path: value_at(prefix + path, tuple(x.shape)) for path, x in flat.items()},
    sep='/',
  )


def initial_params(model, image_size, channels=3):
  """Returns random initial parameters of a model."""
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, *image_size, channels)), train=False
    )
  )
  return params_like(shapes['params'], 'init/')


def torch_value_at(name, shape):
  """Returns a parameter of another library, from its name in that library.

  Weight standardization adds a constant to the standard deviation of a kernel.
  The constant differs between implementations. Stem kernels have
  large values here, so the constant does not matter.
  """
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  value = rng.standard_normal(shape).astype(np.float32)
  if name.endswith(('q_norm.bias', 'k_norm.bias')):
    return np.zeros(shape, np.float32)  # our models do not have this bias
  if len(shape) == 4 and '.conv' in name or 'standardized' in name:
    return value
  is_norm = len(shape) == 1 and name.endswith(('weight', 'gamma'))
  return np.float32(0.1) * value + np.float32(is_norm)


def random_images(size):
  """Returns random images [2, height, width, 3] in [−1, 1]."""
  rng = np.random.default_rng(7)
  return rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def images():
  """Returns random images [2, 224, 224, 3] in [−1, 1]."""
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)


def tokens():
  """Returns random token ids [2, 16]; the first text is shorter."""
  ids = np.random.default_rng(1).integers(1, 1000, (2, 16)).astype(np.int32)
  ids[0, -4:] = 0
  return ids
