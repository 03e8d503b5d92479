"""Losses of classifiers, and the targets that training compares them with.

Targets are rows of class probabilities, one-hot or soft, for example from
mixup. Evaluation uses the same loss without smoothing.

Shapes:  B batch · K classes
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the loss of each example [B]. Labels are probabilities [B, K]."""
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the loss of each example [B]: the sum over the K classes.

  The sum is the negative log-likelihood of a row of labels, as `sigmoid_xent`
  of big_vision computes it. A mean would divide each gradient by K.
  """
  return optax.sigmoid_binary_cross_entropy(
    logits.astype(jnp.float32), labels
  ).sum(-1)


# {value of `config.loss`: (logits [B, K], labels [B, K]) -> loss [B]}
LOSSES = {'softmax': softmax_cross_entropy, 'sigmoid': sigmoid_cross_entropy}


def make_targets(config: ConfigDict) -> Callable | None:
  """Returns the function labels [B, K] -> targets [B, K] of the training loss.

  `config.label_smoothing` = ε makes (1 − ε)·y + ε/K of labels y (Szegedy et al.
  2016, arXiv 1512.00567, section 7). `config.hard_targets` makes 1 of every
  probability above 0, so that a mixed image has two classes (Touvron et al.
  2022, arXiv 2204.07118, section 3).

  Returns:
    The function; None if the labels are the targets.
  """
  smoothing = config.label_smoothing
  if config.hard_targets:
    return lambda labels: (labels > 0).astype(labels.dtype)
  if smoothing:
    return lambda labels: (
      (1 - smoothing) * labels + smoothing / labels.shape[-1]
    )
  return None


def check(config: ConfigDict, has_own_loss: bool = False) -> None:
  """Raises ValueError if the settings of the loss cannot be used together.

  Args:
    config: settings from `base_config`.
    has_own_loss: whether a function of the caller replaces the loss.
  """
  if config.loss not in LOSSES:
    raise ValueError(
      f'config.loss={config.loss!r} is not one of {", ".join(LOSSES)}'
    )
  _check_used(config, has_own_loss)
  if config.hard_targets and config.loss != 'sigmoid':
    raise ValueError(
      f'config.hard_targets=True needs config.loss=sigmoid, not config.loss='
      f'{config.loss}, because a row with two classes has no softmax. Use '
      'config.hard_targets=False'
    )
  if config.hard_targets and config.label_smoothing:
    raise ValueError(
      f'config.label_smoothing={config.label_smoothing} cannot be used with '
      'config.hard_targets=True: smoothed labels are above 0 for all classes, '
      'so all classes would become 1. Use config.label_smoothing=0.0'
    )
  if config.head_bias:
    _check_head_bias(config)


def _check_used(config, has_own_loss):
  """Raises ValueError if nothing would read a setting of the loss."""
  defaults = dict(loss='softmax', label_smoothing=0, hard_targets=False)
  for name, default in defaults.items():
    if config[name] == default:
      continue
    if config.task != 'classification':
      raise ValueError(
        f'config.{name}={config[name]!r} is only used with '
        f'config.task=classification, not with config.task={config.task}. '
        'Remove this setting'
      )
    if has_own_loss:
      raise ValueError(
        f'config.{name}={config[name]!r} cannot be used with loss_fn, which '
        'replaces the loss and its targets. Remove one of them'
      )


def _check_head_bias(config):
  """Raises ValueError if `config.head_bias` has no use."""
  bias = config.head_bias
  if config.task not in ('classification', 'multi_label'):
    raise ValueError(
      f'config.head_bias={bias} is only used with config.task=classification '
      f'and multi_label, not with config.task={config.task}. Remove this '
      'setting'
    )
  if config.task == 'classification' and config.loss == 'softmax':
    raise ValueError(
      f'config.head_bias={bias} does not change a softmax, in which a number '
      'that is added to all logits cancels. Use config.loss=sigmoid, or '
      'config.head_bias=0.0'
    )
  if config.pretrained_head == 'keep' and config.pretrained != 'scratch':
    raise ValueError(
      f'config.head_bias={bias} is the initial bias of a new head, but '
      'config.pretrained_head=keep keeps the head of the weights. Use '
      'config.head_bias=0.0, or config.pretrained_head=fresh'
    )
