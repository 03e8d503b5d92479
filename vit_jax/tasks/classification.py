"""Image classification.

Labels are class numbers [B] or class probabilities [B, K], for example from
mixup.

Shapes:  B batch · K classes
"""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from vit_jax.checkpoint import metadata
from vit_jax.data import examples
from vit_jax.data import input_pipeline
from vit_jax.tasks import task


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the loss of each example [B]. Labels are probabilities [B, K]."""
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels)


def label_rows(labels: jax.Array, num_classes: int) -> jax.Array:
  """Returns class numbers [B] as one-hot rows [B, K]; keeps [B, K] labels."""
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return jax.nn.one_hot(labels, num_classes)
  return labels


def make_loss(
  model: nn.Module, loss_fn: Callable = softmax_cross_entropy
) -> Callable:
  """Returns the `Task.loss` of a classifier.

  Args:
    model: `apply({'params': p}, images, train=…) -> logits` [B, K].
    loss_fn: (logits [B, K], class probabilities [B, K]) -> loss of each example
      [B].
  """

  def loss(params, batch, context):
    logits = task.apply_to_images(model, params, batch, context)
    labels = label_rows(batch['label'], logits.shape[-1])
    losses = loss_fn(logits, labels)
    if context.train:
      return losses, {}, None
    hits = logits.argmax(-1) == labels.argmax(-1)
    return losses, {'accuracy': hits}, None

  return loss


def check(config: ConfigDict) -> None:
  """Raises ValueError if the model settings do not suit a classifier."""
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
  rest = [
    f'{name} {value:.4f}'
    for name, value in numbers.items()
    if name != 'accuracy'
  ]
  accuracy = f'accuracy {100 * numbers["accuracy"]:.2f} %'
  return ', '.join([f'{accuracy} on {num_examples} test images', *rest])


def of_model(
  model: nn.Module,
  loss_fn: Callable = softmax_cross_entropy,
  deployed: metadata.Description | None = None,
  data: input_pipeline.Datasets | None = None,
) -> task.Task:
  """Returns the classification task of a model.

  Args:
    model: see `make_loss`.
    loss_fn: see `make_loss`.
    deployed: metadata of the model; see `task.Task`.
    data: data whose batches are checked; None for no check.
  """
  if data is not None:
    _check_one_class(data)
  return task.Task(
    model=model,
    loss=make_loss(model, loss_fn),
    deployed=deployed or metadata.Description(),
    check_batch=data and make_check(data),
    main_metric='accuracy',
    metric_direction='max',
    other_metrics={},
    summarize=_summarize,
  )


def make(
  config: ConfigDict,
  data: input_pipeline.Datasets,
  loss_fn: Callable = softmax_cross_entropy,
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
    config, data, len(data.class_names), class_names=tuple(data.class_names)
  )
  return of_model(model, loss_fn, deployed, data)
