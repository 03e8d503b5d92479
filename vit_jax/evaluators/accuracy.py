"""Exact numbers over a whole data set: sum, count, divide once."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.optim import loss_functions
from vit_jax.parallel import sharding


def make_eval_fn(model, mesh, loss_fn):
  """Returns the compiled `(params, batch) -> sums over the unmasked examples`.

  Args:
    model: linen module, `apply({'params': p}, images, train=False) -> logits`.
    mesh: of the devices that share the batch's rows.
    loss_fn: (logits, labels) -> loss of each example [B].
  """

  def sums(params, batch):
    logits = model.apply({'params': params}, batch['image'], train=False)
    mask = batch['mask'] > 0
    hits = logits.argmax(-1) == batch['label'].argmax(-1)
    losses = loss_functions.loss_per_example(loss_fn, logits, batch['label'])
    losses = jnp.where(mask, losses, 0.0)
    return {
      'correct': jnp.sum(hits & mask),
      'loss': jnp.sum(losses),
      'count': jnp.sum(mask),
    }

  return jax.jit(
    sums,
    in_shardings=(None, sharding.by_rows(mesh)),  # None: as they lie
    out_shardings=sharding.replicated(mesh),
  )


def evaluate(eval_fn, params, batches, mesh, num_examples):
  """Accuracy and mean loss over every example of `batches`, each counted once.

  Args:
    eval_fn: from `make_eval_fn`.
    params: of the model.
    batches: `image`, `label` and `mask` [B], 0 where a row is padding.
    mesh: of `eval_fn`.
    num_examples: that the batches must hold.

  Returns:
    {'accuracy', 'loss', 'count'} as Python numbers.

  Raises:
    ValueError: there is no example, or another number than expected.
  """
  sums = []
  for batch in batches:
    sums.append(eval_fn(params, sharding.put_batch(batch, mesh)))
    if len(sums) > 1:
      jax.block_until_ready(sums[-2])  # at most two batches on the device
  sums = jax.device_get(sums)
  total = {
    name: np.sum([s[name] for s in sums], dtype=np.float64)
    for name in ('correct', 'loss', 'count')
  }
  if not total['count']:
    raise ValueError('the test split holds no example')
  if total['count'] != num_examples:
    raise ValueError(
      f'the test split has {total["count"]:.0f} examples, and its data set '
      f'lists {num_examples}: prepare the data set again'
    )
  return {
    'accuracy': float(total['correct'] / total['count']),
    'loss': float(total['loss'] / total['count']),
    'count': int(total['count']),
  }
