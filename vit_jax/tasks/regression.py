"""Regression: the prediction of T numbers for an image.

The outputs of the model are standardized with the means and the standard
deviations of the training targets. Metrics and predictions are in the units of
the targets.

Shapes:  B batch · T targets · N examples of a split
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vit_jax.checkpoint import metadata
from vit_jax.data import input_pipeline
from vit_jax.tasks import classification
from vit_jax.tasks import task

check = classification.check


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the loss of each example [B]: the mean over T standardized ones."""
  return jnp.square(outputs.astype(jnp.float32) - targets).mean(-1)


def rows(labels: Any) -> Any:
  """Returns targets [B] as [B, 1]; keeps [B, T]."""
  return labels[:, None] if labels.ndim == 1 else labels


def make_loss(
  model: nn.Module, targets: metadata.Targets, loss_fn: Callable = squared_error
) -> Callable:
  """Returns the `Task.loss` of a regression.

  Args:
    model: `apply({'params': p}, images, train=…) -> outputs` [B, T].
    targets: means and standard deviations of the targets.
    loss_fn: (outputs [B, T], standardized targets [B, T]) -> loss of each
      example [B].
  """

  def loss(params, batch, context):
    outputs = task.apply_to_images(model, params, batch, context)
    labels = rows(batch['label']).astype(jnp.float32)
    losses = loss_fn(outputs, targets.standardize(labels))
    if context.train:
      return losses, {}, None
    return losses, {}, {'labels': labels, 'outputs': outputs}

  return loss


def measure(
  labels: np.ndarray, outputs: np.ndarray, targets: metadata.Targets
) -> dict[str, float]:
  """Returns the metrics of a split.

  Args:
    labels: targets in their units [N, T].
    outputs: standardized outputs of the model [N, T].
    targets: means and standard deviations of the targets.

  Returns:
    'r2': coefficient of determination, the mean over the targets.
    'mean_absolute_error' and 'root_mean_squared_error', in the unit. With
    several targets, each target has all three: 'r2_NAME', ….

  Raises:
    ValueError: a target is equal for all N examples, so R² is not defined.
  """
  _check_varies(labels, targets.names, 'the evaluation split')
  labels = labels.astype(np.float64)
  errors = targets.in_units(outputs) - labels
  squares = np.square(errors).mean(0)
  values = {
    'r2': 1 - squares / labels.var(0),
    'mean_absolute_error': np.abs(errors).mean(0),
    'root_mean_squared_error': np.sqrt(squares),
  }
  if len(targets.names) == 1:
    return {name: float(x[0]) for name, x in values.items()}
  return {
    'r2': float(values['r2'].mean()),
    **{
      f'{metric}_{name}': float(value)
      for metric, x in values.items()
      for name, value in zip(targets.names, x, strict=True)
    },
  }


def _shown_metrics(targets):
  """Returns {metric: (better direction, text, unit)} of `measure`, but 'r2'."""
  shown = {}
  several = len(targets.names) > 1
  for name, unit in zip(targets.names, targets.units, strict=True):
    suffix, of_target = (f'_{name}', f' of {name}') if several else ('', '')
    if several:
      shown[f'r2{suffix}'] = 'max', f'R²{of_target}', ''
    for metric in ('mean_absolute_error', 'root_mean_squared_error'):
      text = metric.replace('_', ' ') + of_target
      shown[metric + suffix] = 'min', text, unit
  return shown


def _summarize(numbers, num_examples, targets):
  """Returns 'R² 0.8123 on 377 test images, mean absolute error 1.23 kg, …'."""
  texts = [f'R² {numbers["r2"]:.4f} on {num_examples} test images']
  shown = _shown_metrics(targets)
  for metric, value in numbers.items():
    if metric != 'r2':
      _, text, unit = shown.get(metric, ('', metric, ''))
      texts.append(f'{text} {value:.4g} {unit}'.rstrip())
  return ', '.join(texts)


def of_model(
  model: nn.Module,
  loss_fn: Callable = squared_error,
  deployed: metadata.Description | None = None,
  data: input_pipeline.Datasets | None = None,
) -> task.Task:
  """Returns the regression task of a model.

  Args:
    model: see `make_loss`.
    loss_fn: see `make_loss`.
    deployed: metadata of the model, with its `targets`.
    data: data whose labels are checked; None for no check.

  Raises:
    ValueError: the model cannot learn from these labels.
  """
  targets = deployed.targets
  if data is not None:
    _count_targets(data, len(targets.names))
    for split in data.sources:
      labels = data.labels(split)
      if labels is not None:
        check_labels(labels, f'the {split} split')
        _check_varies(rows(labels), targets.names, f'the {split} split')

  def check_batch(batch):
    if data is not None:
      task.check_images(batch, data)
    check_labels(batch['label'], 'a batch')

  return task.Task(
    model=model,
    loss=make_loss(model, targets, loss_fn),
    deployed=deployed,
    check_batch=check_batch,
    evaluators=functools.partial(
      task.whole_split_metrics,
      measure=functools.partial(measure, targets=targets),
    ),
    main_metric='r2',
    metric_direction='max',
    other_metrics={
      metric: direction
      for metric, (direction, _, _) in _shown_metrics(targets).items()
    },
    summarize=functools.partial(_summarize, targets=targets),
  )


def find_targets(
  config: ConfigDict, data: input_pipeline.Datasets
) -> metadata.Targets:
  """Returns the targets of a run, from `config.targets` and training labels.

  Raises:
    ValueError: the labels are not numbers, or `config.targets` does not match
      them.
  """
  num_targets = _count_targets(data)
  labels = data.labels('train')
  default = ('target',)
  if num_targets > 1:
    default = tuple(f'target_{i}' for i in range(num_targets))
  names = config.targets.names or default
  mean, std = config.targets.mean, config.targets.std
  if not mean:
    if labels is None:
      raise ValueError(
        'the mean and the standard deviation of the targets are unknown, '
        'because the training data are not in memory. Set config.targets.mean '
        'and config.targets.std, for each target: config.targets.mean=(170.0,)'
      )
    values = rows(np.asarray(labels, np.float64))
    check_labels(values, 'the train split')
    _check_varies(values, names, 'the train split')
    mean, std = tuple(values.mean(0).tolist()), tuple(values.std(0).tolist())
  try:
    return metadata.Targets(
      names, config.targets.units or ('',) * num_targets, mean, std
    )
  except ValueError as error:
    raise ValueError(
      f'config.targets: {error} The labels have {num_targets} target(s)'
    ) from error


def _count_targets(data, expected=None):
  """Returns the number of targets T of the labels, float [B] or [B, T].

  Raises:
    ValueError: the labels have another type or shape, or T is not `expected`.
  """
  needed = 'float targets [B] or [B, T]'
  shape, dtype = task.label_spec(data, needed)
  if len(shape) > 1 or dtype.kind != 'f':
    raise task.label_error(shape, dtype, needed)
  found = shape[0] if shape else 1
  if expected not in (None, found):
    raise ValueError(
      f'the labels have {found} target(s), but the model predicts {expected}. '
      'Use labels with the targets of the model'
    )
  return found


def check_labels(labels: np.ndarray, where: str) -> None:
  """Raises ValueError if a target of an array [N, …] is not finite."""
  wrong = ~np.isfinite(labels)
  if wrong.any():
    raise ValueError(
      f'{wrong.sum()} of {labels.size} targets in {where} are not finite '
      f'numbers, for example {labels[wrong][0]}. Remove these examples'
    )


def _check_varies(labels, names, where):
  """Raises ValueError if a target is equal for all examples [N, T]."""
  for name, column in zip(names, labels.T, strict=False):
    if (column == column[:1]).all():
      raise ValueError(
        f'{name} is {column[0]:.6g} for all {len(column)} examples of {where}, '
        'so R² is not defined, and there is nothing to learn. Remove this '
        'target, or use other data'
      )


def make(
  config: ConfigDict,
  data: input_pipeline.Datasets,
  loss_fn: Callable = squared_error,
) -> task.Task:
  """Returns the task of predicting the float labels of `data`."""
  check(config)
  targets = find_targets(config, data)
  model, deployed = task.image_model(
    config, data, len(targets.names), output='identity', targets=targets
  )
  return dataclasses.replace(
    of_model(model, loss_fn, deployed, data),
    transform=task.make_transform(config, data),
  )
