"""Image classification.

Labels are class numbers [B] or class probabilities [B, K], for example from
mixup.

Shapes:  B batch · K classes
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
from vit_jax.data import examples
from vit_jax.data import input_pipeline
from vit_jax.data.in_memory import sampling
from vit_jax.evaluators import by_class
from vit_jax.tasks import losses as class_losses
from vit_jax.tasks import task


def label_rows(labels: jax.Array, num_classes: int) -> jax.Array:
  """Returns class numbers [B] as one-hot rows [B, K]; keeps [B, K] labels."""
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return jax.nn.one_hot(labels, num_classes)
  return labels


def outputs(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """Returns {'labels': class numbers [B], 'predicted': class numbers [B]}.

  Args:
    logits: [B, K].
    labels: class probabilities [B, K].
  """
  return {'labels': labels.argmax(-1), 'predicted': logits.argmax(-1)}


def make_loss(
  model: nn.Module,
  loss_fn: Callable = class_losses.softmax_cross_entropy,
  class_weights: np.ndarray | None = None,
  make_targets: Callable | None = None,
) -> Callable:
  """Returns the `Task.loss` of a classifier.

  Args:
    model: `apply({'params': p}, images, train=…) -> logits` [B, K].
    loss_fn: (logits [B, K], class probabilities [B, K]) -> loss of each example
      [B].
    class_weights: [K], factors of the training loss by class; None: all 1.
    make_targets: labels [B, K] -> targets [B, K] of the training loss; see
      `losses.make_targets`. None: the labels.
  """

  def loss(params, batch, context):
    logits = task.apply_to_images(model, params, batch, context)
    labels = label_rows(batch['label'], logits.shape[-1])
    targets = labels
    if context.train and make_targets:
      targets = make_targets(labels)
    losses = loss_fn(logits, targets)
    if context.train:
      if class_weights is not None:
        losses *= labels @ class_weights
      return losses, {}, None
    found = outputs(logits, labels)
    return losses, {'accuracy': found['labels'] == found['predicted']}, found

  return loss


def check(config: ConfigDict) -> None:
  """Raises ValueError if the settings do not suit a classifier."""
  if config.labels == 'none':
    raise ValueError(
      f'config.labels=none ignores all labels, but config.task={config.task} '
      'needs them. Remove config.labels=none, or use a task without labels, '
      'such as config.task=mae'
    )
  if config.model.name.lower().startswith('lit'):
    raise ValueError(
      f'config.model.name={config.model.name!r} cannot be trained: LiT models '
      'have no classes. Use a classifier, such as config.model.name=ViT-B_16'
    )
  if config.model.classifier not in (None, 'token', 'gap', 'map'):
    raise ValueError(
      f'config.model.classifier={config.model.classifier!r} does not give one '
      f'output per image, which {config.task} needs. Use token, gap or map'
    )


def make_check(data: input_pipeline.Datasets) -> Callable:
  """Returns the `Task.check_batch` of a classifier."""
  num_classes = len(data.class_names)

  def check_batch(batch):
    task.check_images(batch, data)
    if 'label' not in batch:
      raise ValueError(
        f"a batch has no 'label', only {', '.join(batch)}. Classification "
        'needs the labels [B]'
      )
    labels = np.asarray(batch['label'])
    if examples.are_classes(labels):
      examples.check_labels(labels, num_classes, 'label')
    elif not _are_probabilities(labels, num_classes):
      raise ValueError(
        f'label has the dtype {labels.dtype} and the shape '
        f'{list(labels.shape)}, but classification needs class numbers [B], '
        f'integers, or probabilities [B, {num_classes}], floats that sum to 1 '
        'in each row. Convert class numbers with label.astype(int). For '
        'several classes per image, or targets that are not classes, use '
        'another task'
      )

  return check_batch


def _check_one_class(data):
  """Raises ValueError if an image can have several classes."""
  for split, source in data.sources.items():
    if source.several_classes:
      raise ValueError(
        f'config.dataset={data.settings.dataset!r}: an image of the split '
        f'{split} can have several classes, because the feature label is a '
        'Sequence of ClassLabels. config.task=classification needs exactly one '
        'class per image. Use config.task=multi_label'
      )


def _are_probabilities(labels, num_classes):
  return (
    labels.dtype.kind not in 'biu'
    and labels.ndim == 2
    and labels.shape[1] == num_classes
    and labels.min() >= 0
    and bool((abs(labels.sum(1, dtype=np.float32) - 1) < 1e-2).all())
  )


def _summarize(numbers, num_examples):
  """Returns 'accuracy 97.61 % on 377 test images, loss 0.1234, …'."""
  texts = [
    f'accuracy {100 * numbers["accuracy"]:.2f} % on {num_examples} test images'
  ]
  if 'balanced_accuracy' in numbers:
    balanced = 100 * numbers['balanced_accuracy']
    texts.append(f'balanced accuracy {balanced:.2f} %')
  texts += [
    f'{name} {value:.4f}'
    for name, value in numbers.items()
    if name not in ('accuracy', 'balanced_accuracy')
  ]
  return ', '.join(texts)


def find_class_weights(
  config: ConfigDict, data: input_pipeline.Datasets
) -> np.ndarray | None:
  """Returns the weights [K] float32 of `config.class_weights`, or None.

  'balanced' gives class k the weight N / (K · N_k), where N_k of the N training
  examples are in class k. The mean weight of the training examples is then 1.

  Raises:
    ValueError: the labels are not known, or the number of weights is not K.
  """
  given, names = config.class_weights, data.class_names
  if not given:
    return None
  if given != 'balanced':
    if len(given) != len(names):
      raise ValueError(
        f'config.class_weights has {len(given)} numbers, but there are '
        f'{len(names)} classes: {", ".join(names[:10])}'
        + (', …' if len(names) > 10 else '')
      )
    return np.float32(given)
  labels = sampling.check_classes(
    data.sources['train'], "config.class_weights='balanced'"
  )
  counts = np.bincount(labels, minlength=len(names))
  # A class without training examples is never weighted.
  weights = len(labels) / ((counts > 0).sum() * np.maximum(counts, 1))
  return np.float32(weights)


def of_model(
  model: nn.Module,
  loss_fn: Callable | None = None,
  deployed: metadata.Description | None = None,
  data: input_pipeline.Datasets | None = None,
  **of_training: Any,
) -> task.Task:
  """Returns the classification task of a model.

  Args:
    model: see `make_loss`.
    loss_fn: see `make_loss`. None: the loss that `deployed` names.
    deployed: metadata of the model; see `task.Task`.
    data: data whose batches are checked, and whose class names are used.
    **of_training: arguments of `make_loss` that only training uses.
  """
  deployed = deployed or metadata.Description()
  names = data.class_names if data else deployed.class_names
  if data is not None:
    _check_one_class(data)
  return task.Task(
    model=model,
    loss=make_loss(
      model, loss_fn or class_losses.LOSSES[deployed.loss], **of_training
    ),
    deployed=deployed,
    check_batch=data and make_check(data),
    evaluators=functools.partial(
      task.whole_split_metrics,
      measure=lambda **found: {
        'balanced_accuracy': by_class.balanced_accuracy(**found)
      },
      tables=lambda **found: (
        {'classes': by_class.table(**found, class_names=names)} if names else {}
      ),
    ),
    main_metric='accuracy',
    metric_direction='max',
    other_metrics={'balanced_accuracy': 'max'},
    summarize=_summarize,
  )


def make(
  config: ConfigDict,
  data: input_pipeline.Datasets,
  loss_fn: Callable | None = None,
) -> task.Task:
  """Returns the task of predicting the classes of `data`."""
  check(config)
  if not data.class_names:
    raise ValueError(
      'the data have no classes, which classification needs. Give integer '
      'labels, or class_names or num_classes with the data, or use another '
      'task'
    )
  model, deployed = task.image_model(
    config,
    data,
    len(data.class_names),
    class_names=tuple(data.class_names),
    loss=config.loss,
  )
  made = of_model(
    model,
    loss_fn,
    deployed,
    data,
    class_weights=find_class_weights(config, data),
    make_targets=class_losses.make_targets(config),
  )
  return dataclasses.replace(
    made,
    init=task.init_on_images(model, config.head_bias),
    transform=task.make_transform(config, data, len(data.class_names)),
  )
