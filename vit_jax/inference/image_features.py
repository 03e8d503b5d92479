"""Features of an image: one row, or one for each patch.

  encode = image_features.make(model, 'mean')
  features = encode(params, images)  # [B, D]

Shapes:  B batch · D width of a token · h, w rows, columns of the grid
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import bit
from vit_jax.models import mixer
from vit_jax.models import param_paths

# Kinds of features. All but 'head' are read after the final norm.
KINDS = {
  'head': 'the input of the head',
  'token': 'the class token',
  'mean': 'the mean of the patches',
  'grid': 'all patches, as a grid',
}


def make(model: nn.Module, kind: str = 'head') -> Callable:
  """Returns `(params, images [B, H, W, C]) -> features`, float32.

  The features of 'grid' are [B, h, w, D], those of other kinds [B, D].

  Args:
    model: a classifier, with or without a head. The parameters may contain a
      head, which is not used.
    kind: one of `KINDS`.

  Raises:
    ValueError: the model has no such features.
  """
  if kind not in KINDS:
    raise ValueError(f'features={kind!r} is not one of {", ".join(KINDS)}')
  if kind == 'token' and not getattr(model, 'has_token', False):
    raise ValueError(
      "features='token' cannot be used: the model has no class token. Use "
      'features=head, mean or grid'
    )
  headless = model.clone(num_classes=0)

  def encode(params, images):
    params = {k: x for k, x in params.items() if k != param_paths.HEAD}
    if kind == 'head':
      return headless.apply({'params': params}, images, train=False)
    return _of_tokens(headless, params, images, kind)

  return encode


def row_width(
  encode: Callable, params: Any, image_size: tuple[int, int], model: str
) -> int:
  """Returns D, the width of the features of an image.

  Args:
    encode: from `make`.
    params: parameters of the model, arrays or their shapes.
    image_size: (height, width) of the images, in pixels.
    model: description of the model, the start of the message.

  Raises:
    ValueError: an image has more than one row of features.
  """
  image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
  features = jax.eval_shape(encode, params, image)
  if features.ndim != 2:
    raise ValueError(
      f'{model} gives features of the shape {list(features.shape)} for one '
      'image, not one row. Use config.model.classifier=token, gap or map'
    )
  return features.shape[1]


def _of_tokens(model, params, images, kind):
  """Returns features of the tokens after the final norm."""
  last = _last_module(model)
  _, state = model.apply(
    {'params': params},
    images,
    train=False,
    mutable='intermediates',
    capture_intermediates=lambda module, method: (
      method == '__call__' and module.path == (last,)
    ),
  )
  (x,) = state['intermediates'][last]['__call__']
  x = x.astype(jnp.float32)
  if isinstance(model, bit.BitResNet):
    grid = nn.relu(x)
  else:
    if kind == 'token':
      return x[:, 0]
    layout = model.layout(*images.shape[1:3])
    x = layout.patches(x)  # [B, N, D]
    grid = x.reshape(len(x), *layout.grid, x.shape[-1])
  return grid if kind == 'grid' else grid.mean((1, 2))


def _last_module(model):
  """Returns the name of the module whose outputs are the final tokens."""
  if isinstance(model, bit.BitResNet):
    return 'gn_head'
  if isinstance(model, mixer.MlpMixer):
    return 'pre_head_layer_norm'
  return 'Transformer'
