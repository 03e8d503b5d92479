"""Classification of images: the most common task.

Labels are class numbers [B], or rows of class probabilities [B, K], as mixup
makes them.

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
  """Loss of each example [B], from logits and rows of labels [B, K]."""
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels)


def label_rows(labels: jax.Array, num_classes: int) -> jax.Array:
  """Class numbers [B] as one-hot rows [B, K]; rows stay as they are."""
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return jax.nn.one_hot(labels, num_classes)
  return labels


def make_loss(
  model: nn.Module, loss_fn: Callable = softmax_cross_entropy
) -> Callable:
  """Returns the `Task.loss` of a classifier.

  Args:
    model: `apply({'params': p}, images, train=…) -> logits` [B, K].
    loss_fn: (logits, rows of labels) -> loss of each example [B].
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
  """Raises a ValueError for settings that fit no classifier."""
  if config.model.name.lower().startswith('lit'):
    raise ValueError(
      f'config.model.name={config.model.name!r}: LiT has no classes to train on'
    )
  if config.model.classifier not in (None, 'token', 'gap', 'map'):
    raise ValueError(
      f'config.model.classifier={config.model.classifier!r}: training needs '
      'one answer an image, from token, gap or map'
    )


def _summarize(numbers, num_examples):
  """'97.61 % of 377 test images right, loss 0.1234', and what else there is."""
  rest = [
    f'{name} {value:.4f}'
    for name, value in numbers.items()
    if name != 'accuracy'
  ]
  right = f'{100 * numbers["accuracy"]:.2f} % of {num_examples} test images'
  return ', '.join([f'{right} right', *rest])


def of_model(
  model: nn.Module,
  loss_fn: Callable = softmax_cross_entropy,
  deployed: metadata.Description | None = None,
) -> task.Task:
  """The task of a classifier.

  Args:
    model: see `make_loss`.
    loss_fn: see `make_loss`.
    deployed: what is known of the model; see `task.Task`.
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
  """The task of telling the classes of `data` apart; see `task.Task`."""
  check(config)
  settings = task.model_settings(config)
  model = models.get_model(**settings, num_classes=len(data.class_names))
  name = variants.resolve(settings.pop('name'))
  deployed = metadata.Description(
    name=name,
    settings=settings,
    image_size=data.image_size,
    class_names=tuple(data.class_names),
  )
  return of_model(model, loss_fn, deployed)
