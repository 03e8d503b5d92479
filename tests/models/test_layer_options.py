"""Options of a ViT, compared with their equations in NumPy.

Shapes:  B batch · T tokens · D width of a token · H heads · d width of a head
"""

import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.tiny_model import ATTENTION
from tests.tiny_model import BLOCK
from tests.tiny_model import close
from tests.tiny_model import IMAGES
from tests.tiny_model import make_vit
from tests.tiny_model import params_of
from tests.tiny_model import run
from vit_jax.models.layers import resnet

_erf = np.vectorize(math.erf)


def sigmoid(x):
  return (1 + np.tanh(x / 2)) / 2


GELU = {
  'exact': lambda x: x * (1 + _erf(x / 2**0.5)) / 2,
  'tanh': lambda x: x * sigmoid(2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)),
  'quick': lambda x: x * sigmoid(1.702 * x),
}


class Expected:
  """The equations of a model; arrays that do not exist count as absent."""

  def __init__(self, model, flat):
    self.model = model
    self.flat = {path: np.float64(array) for path, array in flat.items()}

  def dense(self, x, path, axes=1):
    y = np.tensordot(x, self.flat[f'{path}/kernel'], axes)
    return y + self.flat.get(f'{path}/bias', 0)

  def norm(self, x, path):
    if f'{path}/scale' not in self.flat:
      return x
    if self.model.norm == 'layer':
      x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.model.norm_epsilon)
    return x * self.flat[f'{path}/scale'] + self.flat.get(f'{path}/bias', 0)

  def attend(self, x, path, context=None):
    context = x if context is None else context
    query = x.reshape(*x.shape[:2], self.model.num_heads, -1)
    if f'{path}/query/kernel' in self.flat:
      query = self.norm(self.dense(x, f'{path}/query'), f'{path}/query_ln')
    keys = self.norm(self.dense(context, f'{path}/key'), f'{path}/key_ln')
    logits = np.einsum('bqhd,bkhd->bhqk', query, keys)
    weights = np.exp(logits / query.shape[-1] ** 0.5)
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum(
      'bhqk,bkhd->bqhd', weights, self.dense(context, f'{path}/value')
    )
    y = self.norm(y.reshape(*y.shape[:2], -1), f'{path}/norm').reshape(y.shape)
    if f'{path}/out/kernel' not in self.flat:
      return y.reshape(*y.shape[:2], -1)
    return self.dense(y, f'{path}/out', 2)

  def mlp(self, x, path):
    y = self.dense(x, f'{path}/Dense_0')
    if self.model.gated_mlp and 'MAPHead' not in path:
      gate = self.dense(x, f'{path}/gate')
      y = gate * sigmoid(gate) * y
    else:
      y = GELU[self.model.gelu](y)
    return self.dense(self.norm(y, f'{path}/norm'), f'{path}/Dense_1')

  def block(self, z, path):
    def scaled(y, number):
      return y * self.flat.get(f'{path}LayerScale_{number}/scale', 1)

    def branch(layer, name, number):
      norm = f'{path}LayerNorm_{number}'
      if self.model.norm_after:
        return scaled(self.norm(layer(z, path + name), norm), number)
      return scaled(layer(self.norm(z, norm), path + name), number)

    if self.model.block == 'parallel':
      x = self.norm(z, f'{path}LayerNorm_0')
      y = self.attend(x, path + ATTENTION) + self.mlp(x, f'{path}MlpBlock_0')
      return z + scaled(y, 0)
    numbers = range(0, 10 * self.model.num_parallel, 10)
    attention = ATTENTION.removesuffix('0')
    z = z + sum(branch(self.attend, f'{attention}{i}', i) for i in numbers)
    return z + sum(branch(self.mlp, f'MlpBlock_{i}', i + 1) for i in numbers)

  def tokens(self, images):
    side = self.model.patch_size
    down, across = (length // side for length in images.shape[1:3])
    pixels = images[:, : down * side, : across * side]
    pixels = pixels.reshape(len(images), down, side, across, side, -1)
    pixels = pixels.swapaxes(2, 3)
    flat = self.norm(pixels.reshape(*pixels.shape[:3], -1), 'pixel_norm')
    pixels = flat.reshape(pixels.shape)
    x = np.einsum('bhwijc,ijcd->bhwd', pixels, self.flat['embedding/kernel'])
    x = x.reshape(len(images), down * across, -1)
    x = x + self.flat.get('embedding/bias', 0)
    x = self.norm(x, 'patch_norm')
    first = self.flat.get('cls', np.zeros((1, 0, x.shape[-1])))
    x = np.concatenate([np.repeat(first, len(images), axis=0), x], axis=1)
    x = x + self.flat['Transformer/posembed_input/pos_embedding']
    x = self.norm(x, 'Transformer/pre_norm')
    for i in range(self.model.num_layers):
      x = self.block(x, f'{BLOCK}{i}/')
    return self.norm(x, 'Transformer/encoder_norm')

  def logits(self, images):
    x, first = self.tokens(images), self.flat.get('cls', np.zeros((1, 0, 0)))
    if self.model.classifier == 'token':
      x = x[:, : first.shape[1]].reshape(len(x), -1)
    elif self.model.classifier == 'token_gap':
      x = np.concatenate([x[:, 0], x[:, 1:].mean(1)], axis=1)
    else:
      x = x if self.model.pool_all_tokens else x[:, first.shape[1] :]
      x = x.mean(1) if self.model.classifier == 'gap' else self.pool(x)
    return self.dense(self.norm(x, 'head_norm'), 'head')

  def pool(self, x):
    probe = np.repeat(self.flat['MAPHead_0/probe'], len(x), axis=0)
    y = self.attend(probe, f'MAPHead_0/{ATTENTION}', x)
    if self.model.classifier == 'probe':
      return y[:, 0]
    z = self.norm(y, 'MAPHead_0/LayerNorm_0')
    return (y + self.mlp(z, 'MAPHead_0/MlpBlock_0'))[:, 0]


# The options of the architectures in brackets.
OPTIONS = {
  'quick': dict(gelu='quick', pre_norm=True, patch_bias=False),  # CLIP
  'inner norms': dict(  # EVA-02
    gated_mlp=True,
    mlp_norm=True,
    attention_norm=True,
    key_bias=False,
    qk_norm=True,
    qk_norm_bias=True,
    classifier='gap',
    class_token=True,
    encoder_norm=False,
    head_norm=True,
  ),
  'side by side': dict(num_parallel=2, layer_scale=0.5, gelu='exact'),
  'parallel': dict(  # vit_base_patch16_xp
    block='parallel', norm='rms', qkv_bias=False, qk_norm=True, layer_scale=0.5
  ),
  'distilled': dict(distilled=True, norm_after=True, patch_size=10),  # DeiT
  'pooled': dict(  # Perception Encoder
    classifier='map',
    class_token=True,
    pool_heads=4,
    pool_mlp_dim=12,
    pool_all_tokens=True,
  ),
  'no biases': dict(  # AIMv2
    classifier='probe',
    norm='rms',
    patch_norm=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    gated_mlp=True,
  ),
  'token and mean': dict(classifier='token_gap'),  # DINOv2
  'tutorial': dict(  # vit-pytorch
    classifier='gap',
    class_token=True,
    pool_all_tokens=True,
    pixel_norm=True,
    patch_norm=True,
    qkv_bias=False,
    attention_out=False,
    num_heads=1,
  ),
}


_LAYER = f'{BLOCK}0/'
# {options: {path: shape; None if the array is absent}}
ARRAYS = {
  'quick': {'embedding/bias': None, 'Transformer/pre_norm/bias': (16,)},
  'inner norms': {
    f'{_LAYER}{ATTENTION}/norm/bias': (16,),
    f'{_LAYER}{ATTENTION}/key_ln/bias': (8,),
    f'{_LAYER}{ATTENTION}/key/bias': None,
    f'{_LAYER}{ATTENTION}/value/bias': (2, 8),
    f'{_LAYER}MlpBlock_0/norm/bias': (24,),
    'Transformer/encoder_norm/bias': None,
    'head_norm/bias': (16,),
  },
  'parallel': {
    f'{_LAYER}{ATTENTION}/query_ln/bias': None,
    f'{_LAYER}{ATTENTION}/query/bias': None,
    f'{_LAYER}LayerNorm_0/bias': None,
  },
  'distilled': {'cls': (1, 2, 16), 'head/kernel': (32, 5)},
  'pooled': {
    f'MAPHead_0/{ATTENTION}/query/kernel': (16, 4, 4),
    'MAPHead_0/MlpBlock_0/Dense_0/kernel': (16, 12),
  },
  'no biases': {
    'patch_norm/scale': (16,),
    f'{_LAYER}{ATTENTION}/out/bias': None,
    f'{_LAYER}MlpBlock_0/gate/bias': None,
    f'{_LAYER}MlpBlock_0/Dense_1/bias': None,
    f'MAPHead_0/{ATTENTION}/query/kernel': None,
    f'MAPHead_0/{ATTENTION}/key/bias': None,
    f'MAPHead_0/{ATTENTION}/out/bias': (16,),
  },
  'token and mean': {'head/kernel': (32, 5)},
  'tutorial': {
    'pixel_norm/scale': (192,),
    f'{_LAYER}{ATTENTION}/query/bias': None,
    f'{_LAYER}{ATTENTION}/out/kernel': None,
  },
}


@pytest.mark.parametrize('name', OPTIONS)
def test_logits_are_those_of_the_equations(name):
  settings = dict(num_classes=5, num_layers=1, norm_epsilon=0.01)
  settings |= OPTIONS[name]
  model = make_vit(**settings, drop_remainder='patch_size' in settings)
  flat = params_of(model)
  for path, shape in ARRAYS.get(name, {}).items():
    assert getattr(flat.get(path), 'shape', None) == shape, path
  with jax.default_matmul_precision('highest'):
    logits = run(model, flat)
  close(logits, Expected(model, flat).logits(np.float64(IMAGES)), 2e-5)


def test_epsilons_of_the_stem():
  kernel = 1e-4 * np.random.default_rng(0).standard_normal((3, 3, 2, 5))
  kernel = kernel.astype(np.float32)
  centered = kernel - kernel.mean((0, 1, 2))
  expected = centered / np.sqrt((centered**2).mean((0, 1, 2)) + 1e-8)
  close(resnet.standardize(kernel, 'timm'), expected, 1e-5)
  used = []

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.GroupNorm):
      used.append(context.module.epsilon)
    return call(*args, **kwargs)

  for epsilons in resnet.EPSILONS:
    model = make_vit(stem_units=(1,), patch_size=1, stem_epsilons=epsilons)
    with nn.intercept_methods(record):
      jax.eval_shape(
        lambda model=model: model.init(jax.random.key(0), IMAGES, train=False)
      )
  assert used == [1e-6] * 5 + [1e-5] * 5


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(block='serial'), "block='serial' .*sequential, parallel"),
    (dict(norm='batch'), "norm='batch' .*layer, rms"),
    (dict(stem_epsilons='tf'), "stem_epsilons='tf' .*original, timm"),
    (dict(num_parallel=0), 'num_parallel=0 must be 1 or more'),
    (dict(pool_heads=0), 'pool_heads=0 must be'),
    (dict(distilled=True, classifier='gap'), "distilled.*'gap'.*'token'"),
    (dict(drop_remainder=True, stem_units=()), r'stem_units=\(\).*=False'),
    (dict(block='parallel', norm_after=True), "'parallel'.*norm_after=False"),
    (dict(block='parallel', num_parallel=2), "'parallel'.*num_parallel=1"),
    (dict(qkv_bias=False, key_bias=False), 'key_bias=False.*qkv_bias=False'),
    (dict(attention_out=False, head_dim=4), 'times head_dim=4 is not hidden'),
    (dict(embedding_std=-1.0), 'embedding_std=-1.0 must be'),
    (dict(qk_norm_bias=True), 'qk_norm_bias=True needs qk_norm=True'),
    (dict(qk_norm_bias=True, qk_norm=True, norm='rms'), "norm='rms'"),
  ],
)
def test_options_that_exclude_each_other(settings, message):
  with pytest.raises(ValueError, match=message):
    make_vit(**settings)
