"""From the logits of a model to its predictions, as its metadata says.

Shapes:  B batch · K outputs of the head
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checkpoint import trained_model

DEFAULT_THRESHOLD = 0.5


def check_classes(trained: trained_model.TrainedModel) -> None:
  """Raises ValueError if a model does not predict classes."""
  if trained.output == 'identity':
    raise ValueError(
      f"{trained.source}: the model's output is 'identity', so it does not "
      'predict classes. Use `predict`, which returns its values.'
    )


def probabilities(logits: jax.Array, output: str) -> jax.Array:
  """Returns class probabilities [B, K] from logits [B, K].

  Args:
    logits: logits of a model.
    output: 'softmax' or 'sigmoid'.
  """
  return {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[output](logits)


def strongest(
  logits: jax.Array, output: str, top: int
) -> tuple[jax.Array, jax.Array]:
  """Returns (indices, values) of the outputs to show for each image.

  Args:
    logits: logits [B, K] of a model.
    output: see `metadata.Description`.
    top: number of the most likely classes, at most K. With the output
      'identity', it is not used: all outputs are returned in their order.
  """
  if output == 'identity':
    return jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape), logits
  _, classes = jax.lax.top_k(logits, top)  # for ties, the lower index first
  return classes, jnp.take_along_axis(
    probabilities(logits, output), classes, axis=-1
  )


def is_predicted(
  probabilities: np.ndarray, thresholds: Sequence[float] | None
) -> np.ndarray:
  """Returns which classes are predicted, bool [N, K] or [K].

  Args:
    probabilities: [N, K] or [K].
    thresholds: [K]; None: `DEFAULT_THRESHOLD` for each class.
  """
  limits = (
    DEFAULT_THRESHOLD
    if thresholds is None
    else np.asarray(thresholds, np.float64)
  )
  return np.asarray(probabilities, np.float64) > limits


def above_thresholds(
  trained: trained_model.TrainedModel, classes: np.ndarray, values: np.ndarray
) -> list[tuple[int, float]] | None:
  """Returns (class, probability) of the predicted classes, in the given order.

  Args:
    trained: a model; the result is None unless its output is 'sigmoid'.
    classes: indices of classes of one image [k].
    values: their probabilities [k].
  """
  if trained.output != 'sigmoid':
    return None
  limits = trained.thresholds
  if limits is not None:
    limits = np.asarray(limits)[classes]
  found = is_predicted(values, limits)
  return list(zip(classes[found].tolist(), values[found].tolist(), strict=True))


def predictions(trained: trained_model.TrainedModel, logits: Any) -> np.ndarray:
  """Returns the predictions of a model for logits [B, K] or [K].

  For a regression, they are values in the units of the targets, float64. For
  other models, they are class probabilities, or the logits themselves if the
  output is 'identity'.
  """
  if trained.targets:
    return trained.targets.in_units(logits)
  if trained.output == 'identity':
    return np.asarray(logits)
  return np.asarray(probabilities(logits, trained.output))
