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
import optax

from vit_jax import models
from vit_jax.checkpoint import metadata
from vit_jax.data import input_pipeline
from vit_jax.models import variants
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
    logits = model.apply(
      {'params': params},
      batch['image'],
      train=context.train,
      rngs={'dropout': context.key} if context.train else None,
    )
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
      'output per image, which classification needs. Use token, gap or map'
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
) -> task.Task:
  """Returns the classification task of a model.

  Args:
    model: see `make_loss`.
    loss_fn: see `make_loss`.
    deployed: metadata of the model; see `task.Task`.
  """
  return task.Task(
    model=model,
    loss=make_loss(model, loss_fn),
    deployed=deployed or metadata.Description(),
    main_metric='accuracy',
    metric_direction='max',
    summarize=_summarize,
  )


def make(
  config: ConfigDict,
  data: input_pipeline.Datasets,
  loss_fn: Callable = softmax_cross_entropy,
) -> task.Task:
  """Returns the task of predicting the classes of `data`."""
  check(config)
  settings = task.model_settings(config)
  name = variants.resolve(settings.pop('name'))
  model = models.get_model(name, num_classes=len(data.class_names), **settings)
  deployed = metadata.Description(
    name=name,
    settings=settings,
    image_size=data.image_size,
    class_names=tuple(data.class_names),
  )
  return of_model(model, loss_fn, deployed)
