"""Attention weights of a model, and their gradients, reduced on the device.

  maps = attention_weights.reduce(model, params, images, attention_maps.rollout)

All weights of a large model need much memory: 511 MB for one image of ViT-L/16
at 384 pixels. So they are reduced to what a figure needs within the compiled
program.

Shapes:  B batch · H heads · T tokens · S tokens that the probe reads
         K classes
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import param_paths
from vit_jax.models import vit
from vit_jax.models.layers import attention
from vit_jax.models.layers import patches

# Largest difference of the logits, as a fraction of the largest logit.
_TOLERANCES = {'float32': 1e-5, 'bfloat16': 0.1, 'float16': 0.02}


class Attention(NamedTuple):
  """Attention weights of one forward pass, or their gradients.

  Layers of attention side by side (`num_parallel`) count as one layer with the
  heads of all.
  """

  blocks: tuple[jax.Array, ...]  # [B, H, T, T] of each block
  probe: jax.Array | None  # [B, H, S] of the pooling, if there is one


class Tokens(NamedTuple):
  """What the tokens of a model mean."""

  layout: patches.Layout
  stride: int  # pixels between two neighboring patches
  classifier: str
  reads_all: bool = False  # `pool_all_tokens` of the model


def tokens_of(model: nn.Module, image_size: tuple[int, int]) -> Tokens:
  """Returns the `Tokens` of a model for images of a size."""
  return Tokens(
    model.layout(*image_size),
    model.stride,
    model.classifier,
    model.pool_all_tokens,
  )


def check(model: nn.Module) -> None:
  """Raises ValueError if a model has no single sequence of attention layers."""
  if not isinstance(model, vit.VisionTransformer):
    raise ValueError(
      f'{type(model).__name__} has no attention weights. Only models of the '
      'type VisionTransformer have them.'
    )
  if model.fractal_columns is not None:
    raise ValueError(
      f'fractal_columns={model.fractal_columns}: the blocks of a fractal are '
      'not one sequence, so its attention has no single order. Use a model '
      'without fractal_columns.'
    )


def reduce(
  model: nn.Module,
  params: Any,
  images: jax.Array,
  reduction: Callable,
  classes: Any = None,
) -> Any:
  """Returns a reduction of the attention weights in evaluation, in float32.

  The weights are those of a copy of the model with the same parameters, with
  plain attention, without scan and rematerialization, and in float32. The
  outputs of the copy are compared with those of the model.

  Args:
    model: a VisionTransformer.
    params: parameters of the model.
    images: [B, H, W, C] in [−1, 1].
    reduction: `(attention, tokens) -> arrays`, such as
      `attention_maps.rollout`. With `classes`, `(attention, gradients, tokens)
      -> arrays`. It must be a function of a module, so that it is compiled
      once.
    classes: class of each image [B]; the gradients are those of its logit.

  Raises:
    ValueError: the model has no attention, no logit for each class and image,
      or an output that differs from that of the copy.
  """
  check(model)
  if classes is not None:
    check_logits(model)
    classes = jnp.asarray(classes)
  plain = model.clone(
    attention='plain', scan=False, remat='none', dtype=jnp.float32
  )
  with jax.default_matmul_precision('float32'):
    found, copied = _run(plain, params, images, classes, reduction)
    _compare(copied, outputs(model, params, images), model.dtype)
  return found


def check_logits(model: nn.Module) -> None:
  """Raises ValueError if a model does not have one logit for each class."""
  if not model.num_classes:
    raise ValueError(
      'the weights have no head, so there is no class with gradients. Use '
      'weights with a head.'
    )
  if 'unpooled' in model.classifier:
    raise ValueError(
      f'classifier={model.classifier!r} has logits for every patch, not for '
      "the image. Use a model with classifier='token', 'gap' or 'map'."
    )


def _compare(copy, original, dtype):
  """Raises ValueError if the outputs of a model and its copy differ."""
  copy, original = jax.device_get((copy, original))
  tolerance = _TOLERANCES[jnp.dtype(dtype).name]
  difference = np.abs(copy - original).max()
  if not difference <= tolerance * max(1, np.abs(original).max()):
    raise ValueError(
      f'the outputs of the model (dtype {jnp.dtype(dtype).name}) and of its '
      f'copy with plain attention differ by {difference:.3g}, so its attention '
      'cannot be shown. Set dtype to float32 and attention to plain, and check '
      'that the parameters are finite.'
    )


@functools.partial(jax.jit, static_argnums=0)
def outputs(model: nn.Module, params: Any, images: jax.Array) -> jax.Array:
  """Returns the outputs of a model in evaluation."""
  return model.apply({'params': params}, images, train=False)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(model, params, images, classes, reduction):
  """Returns (reduction of the attention, outputs of the model)."""
  tokens = tokens_of(model, images.shape[1:3])

  def forward(offsets):
    logits, state = model.apply(
      {'params': params, attention.OFFSETS: offsets},
      images,
      train=False,
      mutable='intermediates',
    )
    weights = jax.tree.map(
      lambda sown: sown[0],
      state['intermediates'],
      is_leaf=lambda x: isinstance(x, tuple),
    )
    chosen = 0.0
    if classes is not None:
      chosen = jnp.take_along_axis(logits, classes[:, None], axis=1).sum()
    return chosen, (logits, weights)

  if classes is None:
    _, (logits, weights) = forward({})
    return reduction(_in_order(weights, model), tokens), logits
  shapes = jax.eval_shape(lambda: forward({})[1][1])
  offsets = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  gradients, (logits, weights) = jax.grad(forward, has_aux=True)(offsets)
  both = (_in_order(x, model) for x in (weights, gradients))
  return reduction(*both, tokens), logits


def _in_order(sown, model):
  """Returns the `Attention` of sown weights."""
  found = traverse_util.flatten_dict(sown, sep='/')

  def of(module):
    paths = [path for path in found if path.startswith(f'{module}/')]
    return [found[path] for path in sorted(paths)]

  probe = of(param_paths.POOLING)
  return Attention(
    tuple(
      jnp.concatenate(of(f'{param_paths.ENCODER}/{name}'), axis=1)
      for name in model.block_names
    ),
    probe[0][:, :, 0] if probe else None,
  )
