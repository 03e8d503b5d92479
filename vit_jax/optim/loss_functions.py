"""Losses of each example."""

import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits, labels):
  """Loss of each example [B], from logits and one-hot labels [B, K]."""
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels)


def loss_per_example(loss_fn, logits, labels):
  """What `loss_fn` returns for B examples, [B].

  Raises:
    ValueError: it has another shape, and its mean would be wrong.
  """
  losses = loss_fn(logits, labels)
  if jnp.shape(losses) != logits.shape[:1]:
    raise ValueError(
      f'loss_fn returns the shape {list(jnp.shape(losses))} for '
      f'{len(logits)} examples: it must return one loss for each example, '
      f'[{len(logits)}]. Take the mean over other axes within loss_fn'
    )
  return losses
