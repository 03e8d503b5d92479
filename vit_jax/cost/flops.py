"""How much work an image is, by the compiler's own count."""

import jax
import jax.numpy as jnp

from vit_jax.optim import loss_functions


def count(model, params, image_size, num_classes):
  """(forward, training) floating-point operations for an image.

  By the compiler's count before it optimises, in which layers that are looped
  over would count once.
  """
  plain = {'scan': False, 'remat': 'none', 'attention': 'plain'}
  model = model.clone(
    **{name: value for name, value in plain.items() if hasattr(model, name)}
  )
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  )
  image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
  label = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)

  def loss(params, image, label):
    logits = model.apply(
      {'params': params}, image, train=True, rngs={'dropout': jax.random.key(0)}
    )
    return loss_functions.softmax_cross_entropy(logits, label).mean()

  def forward(params, image):
    return model.apply({'params': params}, image, train=False)

  return tuple(
    jax.jit(function).lower(*arguments).cost_analysis()['flops']
    for function, arguments in (
      (forward, (shapes, image)),
      (jax.value_and_grad(loss), (shapes, image, label)),
    )
  )
