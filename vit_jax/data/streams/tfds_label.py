"""How to read the feature `label` of a TFDS dataset."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from vit_jax.data import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Label:
  """How to read the feature `label`."""

  names: tuple[str, ...]  # of the classes; () for numbers
  kind: str  # type of the feature, for messages
  convert: Callable  # stored tensor -> label of an example
  several: bool = False  # whether an example can have several classes


# The value is not used; `examples.without_labels` removes it.
NO_LABEL = Label((), 'number', lambda _: tf.constant(0.0))


def read_label(feature: Any) -> Label | None:
  """Returns the `Label` of a TFDS feature; None if it cannot be used.

  A ClassLabel gives a class number, a Sequence of ClassLabels gives 0 or 1 for
  each class, and a scalar number gives a float.
  """
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.ClassLabel):
    return Label(tuple(feature.names), 'ClassLabel', lambda label: label)
  if isinstance(feature, tfds.features.Sequence) and isinstance(
    feature.feature, tfds.features.ClassLabel
  ):
    names = tuple(feature.feature.names)
    return Label(
      names,
      'Sequence of ClassLabels',
      lambda labels: tf.minimum(
        tf.reduce_sum(tf.one_hot(labels, len(names)), 0), 1.0
      ),
      several=True,
    )
  if type(feature) in (tfds.features.Scalar, tfds.features.Tensor) and (
    feature.shape == () and np.dtype(feature.np_dtype).kind in 'iuf'
  ):
    return Label((), 'number', lambda label: tf.cast(label, tf.float32))
  return None


def describe(item: tuple[str, Any]) -> str:
  """Returns 'label (a Text)' for the feature of this name, else its name."""
  name, feature = item
  return f'{name} (a {type(feature).__name__})' if name == 'label' else name
