"""Image classification with several labels per image.

Labels are 0 or 1 for each class [B, K]; in training, also probabilities. Each
class is predicted independently, with a sigmoid.

Shapes:  B batch · K classes · N examples of a split
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vit_jax.checkpoint import metadata
from vit_jax.data import input_pipeline
from vit_jax.evaluators import by_class
from vit_jax.evaluators import thresholds as class_thresholds
from vit_jax.evaluators.metrics import average_precision
from vit_jax.tasks import classification
from vit_jax.tasks import losses as class_losses
from vit_jax.tasks import task

check = classification.check


def make_loss(
  model: nn.Module, loss_fn: Callable = class_losses.sigmoid_cross_entropy
) -> Callable:
  """Returns the `Task.loss` of a model with several labels.

  Args:
    model: `apply({'params': p}, images, train=…) -> logits` [B, K].
    loss_fn: (logits [B, K], labels [B, K] from 0 to 1) -> loss of each example
      [B].
  """

  def loss(params, batch, context):
    logits = task.apply_to_images(model, params, batch, context)
    labels = batch['label'].astype(jnp.float32)
    losses = loss_fn(logits, labels)
    if context.train:
      return losses, {}, None
    return losses, {}, {'labels': labels, 'scores': logits}

  return loss


def measure(
  labels: np.ndarray, scores: np.ndarray, thresholds: Any = None
) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    labels: 0 or 1 [N, K].
    scores: logits [N, K].
    thresholds: see `thresholds.predicted` [K].

  Returns:
    'average_precision': mean over the classes with positive examples.
    'exact_match': fraction of the examples without a wrong class, if a class
      with a probability above its threshold counts as predicted.
    'skipped_classes': number of classes without positive examples, if any.

  Raises:
    ValueError: a label is not 0 or 1, or there are no positive examples.
  """
  check_labels(labels, 'the evaluation split', exact=True)
  by_class = average_precision.by_class(labels, scores)
  skipped = int(np.isnan(by_class).sum())
  predicted = class_thresholds.predicted(
    class_thresholds.probabilities(scores), thresholds
  )
  return {
    'average_precision': float(np.nanmean(by_class)),
    'exact_match': float((predicted == labels).all(-1).mean()),
    **({'skipped_classes': skipped} if skipped else {}),
  }


def check_labels(labels: np.ndarray, where: str, exact: bool = False) -> None:
  """Raises ValueError unless labels can be used.

  Args:
    labels: array [N, K].
    where: description of the examples, for the message.
    exact: whether labels must be 0 or 1, with at least one 1, as average
      precision needs.
  """
  wrong = labels[~((labels >= 0) & (labels <= 1))]  # also NaN
  if exact and not wrong.size:
    wrong = labels[(labels != 0) & (labels != 1)]
  if wrong.size:
    raise ValueError(
      f'{wrong.size} label(s) of {where} are not '
      + ('0 or 1' if exact else 'between 0 and 1')
      + f', for example {wrong.flat[0]}. The task multi_label needs a row of 0 '
      'and 1 for each image, with 1 for the classes in the image'
    )
  if exact and not labels.any():
    raise ValueError(
      f'{where} has no example of any class: all labels are 0. The average '
      'precision is not defined. Use another split'
    )


def _choose(labels, scores):
  """Returns the `means.Evaluation.chosen` of the validation split."""
  return {'thresholds': class_thresholds.choose(labels, scores)}


def _summarize(numbers, num_examples, from_validation):
  """Returns 'average precision 87.65 % (mean over classes) on 377 …'."""
  skipped = int(numbers.get('skipped_classes', 0))
  classes = 'mean over classes' + (
    f'; {skipped} without examples skipped' if skipped else ''
  )
  rest = [
    f'{name.replace("_", " ")} {value:.4f}'
    for name, value in numbers.items()
    if name not in ('average_precision', 'skipped_classes')
  ]
  rest.append(
    'with the thresholds of the validation split'
    if from_validation
    else 'with thresholds of 0.5, because none were chosen on validation'
  )
  precision = 100 * numbers['average_precision']
  return ', '.join(
    [
      f'average precision {precision:.2f} % ({classes}) on {num_examples} '
      'test images',
      *rest,
    ]
  )


def of_model(
  model: nn.Module,
  loss_fn: Callable = class_losses.sigmoid_cross_entropy,
  deployed: metadata.Description | None = None,
  data: input_pipeline.Datasets | None = None,
  choose: bool = False,
) -> task.Task:
  """Returns the task of a model with several labels.

  Args:
    model: see `make_loss`.
    loss_fn: see `make_loss`.
    deployed: metadata of the model; see `task.Task`.
    data: data whose labels are checked; None for no check.
    choose: whether the evaluation of a validation split chooses the thresholds.
      Otherwise, the thresholds are those of `deployed`.

  Raises:
    ValueError: the model cannot learn from these labels.
  """
  if data is not None:
    _count_classes(data, model.num_classes)
    for split in data.sources:
      labels = data.labels(split)
      if labels is not None:
        check_labels(labels, f'the {split} split', exact=split != 'train')

  names = (data and data.class_names) or (deployed and deployed.class_names)

  def check_batch(batch):
    if data is not None:
      task.check_images(batch, data)
    check_labels(batch['label'], 'a batch')

  return task.Task(
    model=model,
    loss=make_loss(model, loss_fn),
    deployed=deployed
    or metadata.Description(output='sigmoid', task='multi_label'),
    check_batch=check_batch,
    evaluators=functools.partial(
      task.whole_split_metrics,
      measure=measure,
      choose=_choose if choose else None,
      tables=lambda **found: (
        {'classes': by_class.multi_label_table(**found, class_names=names)}
        if names
        else {}
      ),
    ),
    main_metric='average_precision',
    metric_direction='max',
    other_metrics={'exact_match': 'max'},
    summarize=functools.partial(
      _summarize,
      from_validation=choose or bool(deployed and deployed.thresholds),
    ),
  )


def make(
  config: ConfigDict,
  data: input_pipeline.Datasets,
  loss_fn: Callable = class_losses.sigmoid_cross_entropy,
) -> task.Task:
  """Returns the task of predicting each class of `data` independently."""
  check(config)
  num_classes = _count_classes(data, len(data.class_names))
  names = data.class_names or [f'class {i}' for i in range(num_classes)]
  model, deployed = task.image_model(
    config, data, num_classes, output='sigmoid', class_names=tuple(names)
  )
  choose = 'validation' in data.sources
  return dataclasses.replace(
    of_model(model, loss_fn, deployed, data, choose),
    init=task.init_on_images(model, config.head_bias),
    transform=task.make_transform(config, data, num_classes),
  )


def _count_classes(data, expected):
  """Returns the number of classes K of the labels [B, K].

  Raises:
    ValueError: the labels have another shape, or K is not `expected` (0: any).
  """
  needed = 'a row of 0 and 1 for each image, [B, K]'
  shape, dtype = task.label_spec(data, needed)
  if len(shape) != 1:
    raise task.label_error(shape, dtype, needed)
  if expected not in (0, shape[0]):
    raise ValueError(
      f'the labels have {shape[0]} columns, but there are {expected} classes. '
      'Use one column for each class'
    )
  return shape[0]
