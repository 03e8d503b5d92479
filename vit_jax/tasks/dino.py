"""Self-distillation without labels (DINO): Caron et al. 2021, arXiv 2104.14294.

A student sees several views of an image, a teacher only the two global ones.
The student learns the teacher's distribution over K prototypes, from another
view of the same image. The teacher is a moving average of the student. The
trained model is the teacher's encoder, a plain ViT.

Shapes:  B batch · V views: 2 global and L local ones · K prototypes
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax.augment import augmentation
from vit_jax.data import input_pipeline
from vit_jax.models.pretraining import dino
from vit_jax.optim import run_length
from vit_jax.tasks import reconstruction
from vit_jax.tasks import task
from vit_jax.tasks import views

USES_LENGTH = True  # the momentum of the teacher
_STUDENT_TEMPERATURE = 0.1
_CENTER_DECAY = 0.9
_MEAN_DECAY = 0.9  # of the mean distribution, for `information`
# Positions with a table for one grid of patches.
_ONE_SIZE = ('learned', 'learned_2d', 'relative', 'relative_table')
# Below it, the distributions of a batch carry no information about the image.
_LEAST_INFORMATION = 1e-3


def check(config: ConfigDict) -> None:
  """Raises ValueError for a model or `config.dino` that cannot be used."""
  _, _, encoder = reconstruction.check_model(config)
  if encoder.positions in _ONE_SIZE:
    raise ValueError(
      f'config.model.positions={encoder.positions!r} has a table for one image '
      'size, but DINO needs views of two sizes. Use '
      'config.model.positions=sincos2d'
    )
  for name in augmentation.Settings(**config.augment).changes:
    raise ValueError(
      f'config.augment.{name}={config.augment[name]!r} cannot be used: '
      'config.task=dino changes its views by itself (config.dino.colors). '
      'Remove this setting'
    )
  s = config.dino
  try:
    encoder.grid_size(s.local_size, s.local_size)
  except ValueError as error:
    raise ValueError(
      f'config.dino.local_size={s.local_size}: {error}'
    ) from error
  if s.prototypes < 2:
    raise ValueError(
      f'config.dino.prototypes={s.prototypes} must be at least 2'
    )
  if s.local_views < 0:
    raise ValueError(
      f'config.dino.local_views={s.local_views} must be at least 0'
    )
  if not 0 < s.local_min_area <= s.local_max_area <= 1:
    raise ValueError(
      f'config.dino.local_min_area={s.local_min_area} and '
      f'config.dino.local_max_area={s.local_max_area} must be in this order, '
      'greater than 0 and at most 1'
    )
  for name in ('teacher_temperature', 'first_teacher_temperature'):
    if s[name] <= 0:
      raise ValueError(f'config.dino.{name}={s[name]} must be greater than 0')
  if not 0 <= s.momentum < 1:
    raise ValueError(
      f'config.dino.momentum={s.momentum} must be at least 0 and below 1'
    )


def momentum_schedule(start: float, total_steps: int) -> Callable:
  """Returns the `Task.ema_decay` that rises from `start` to 1 on a cosine."""

  def decay_at(step):
    progress = jnp.clip(step / total_steps, 0, 1)
    return 1 - (1 - start) * (1 + jnp.cos(math.pi * progress)) / 2

  return decay_at


def temperature_schedule(first: float, last: float, steps: int) -> Callable:
  """Returns step -> temperature of the teacher, linear during `steps`."""

  def temperature_at(step):
    return first + (last - first) * jnp.clip(step / max(steps, 1), 0, 1)

  return temperature_at


def cross_entropy(
  teacher: jax.Array, student: jax.Array
) -> jax.Array:  # [B, 2, K], [B, V, K] -> [B]
  """Returns the mean over pairs of different views.

  Args:
    teacher: probabilities of the two global views.
    student: log-probabilities of all views; the first two are the same views.
  """
  pairs = -jnp.einsum('bik,bjk->bij', teacher, student)
  different = 1 - jnp.eye(pairs.shape[1], pairs.shape[2])
  return jnp.sum(pairs * different, (1, 2)) / jnp.sum(different)


def entropy(probabilities: jax.Array) -> jax.Array:
  """Returns the entropy over the last axis, in nats."""
  logs = jnp.log(jnp.maximum(probabilities, 1e-30))
  return -jnp.sum(probabilities * logs, -1)


def make_transform(config: ConfigDict) -> Callable:
  """Returns the `Task.transform` that changes the colors of all views."""
  blur = config.dino.blur

  def transform(key, batch, step, train):
    del step
    if not train or not config.dino.colors:
      return batch

    def change(index, images, blur_rate, solarize_rate):
      keys = jax.random.split(jax.random.fold_in(key, index), len(images))
      return jax.vmap(
        functools.partial(
          views.change_colors,
          blur_rate=blur_rate * blur,
          solarize_rate=solarize_rate,
        )
      )(keys, images)

    first, second = (batch['global_views'][:, i] for i in range(2))
    found = [change(0, first, 1.0, 0.0), change(1, second, 0.1, 0.2)]
    batch = {**batch, 'global_views': jnp.stack(found, 1)}
    if 'local_views' in batch:
      local = batch['local_views']
      found = [
        change(2 + i, local[:, i], 0.5, 0.0) for i in range(local.shape[1])
      ]
      batch['local_views'] = jnp.stack(found, 1)
    return batch

  return transform


def init_params(model: dino.DinoModel) -> Callable:
  """Returns the `Task.init` of a model."""

  def init(key, batch_spec):
    spec = batch_spec['global_views']
    images = jnp.zeros((1, *spec.shape[2:]), spec.dtype)
    return model.init(key, images, train=False)['params']

  return init


def make_loss(model: dino.DinoModel, config: ConfigDict) -> Callable:
  """Returns the `Task.loss` of a model.

  The metrics are the entropy of the teacher, its divergence from the student
  (their sum is the loss), and the information about the image. This is the
  divergence of the teacher's distributions from their mean over earlier
  batches. So it does not depend on the size of a micro-batch.

  `aux` has the means over views and rows of the teacher's outputs (`center`)
  and distributions (`distribution`), [K] each.
  """
  temperature_at = temperature_schedule(
    config.dino.first_teacher_temperature,
    config.dino.teacher_temperature,
    config.dino.temperature_steps,
  )

  def outputs(params, images, context, train):
    """Returns cosines [B, V, K] of views [B, V, H, W, C]."""
    size, count = images.shape[:2]
    flat = images.reshape(-1, *images.shape[2:])
    found = model.apply(
      {'params': params},
      flat,
      train=train,
      rngs={'dropout': context.key} if train else None,
    )
    return found.reshape(size, count, -1)

  def loss(params, batch, context):
    of_teacher = jax.lax.stop_gradient(
      outputs(context.ema, batch['global_views'], context, False)
    )
    center = context.task_state['center']
    teacher = jax.nn.softmax(
      (of_teacher - center) / temperature_at(context.step)
    )
    names = [n for n in ('global_views', 'local_views') if n in batch]
    student = jnp.concatenate(
      [outputs(params, batch[n], context, context.train) for n in names], 1
    )
    losses = cross_entropy(
      teacher, jax.nn.log_softmax(student / _STUDENT_TEMPERATURE)
    )
    entropies = entropy(teacher).mean(1)
    mean = jnp.log(jnp.maximum(context.task_state['distribution'], 1e-30))
    metrics = {
      'teacher_entropy': entropies,
      'divergence': losses - entropies,
      'information': -(teacher @ mean).mean(1) - entropies,
    }
    aux = {
      'center': of_teacher.mean((0, 1)),
      'distribution': teacher.mean((0, 1)),
    }
    return losses, metrics, aux

  return loss


def find_collapse(step: int, metrics: dict[str, float], first: int) -> str:
  """Returns what is wrong with a step's metrics, or ''.

  Args:
    step: number of completed updates.
    metrics: metrics of the step.
    first: earlier steps are not judged, because an untrained teacher knows
      little.
  """
  information = metrics['train_information']
  # It is NaN if an update was skipped.
  if step < first or not information <= _LEAST_INFORMATION:
    return ''
  return (
    'the features collapsed: the teacher gives the same distribution for all '
    f'images (entropy {metrics["train_teacher_entropy"]:.3g}, information '
    f'{information:.1g}). Use a smaller '
    'config.dino.teacher_temperature (0.02), a smaller config.base_lr, a '
    'larger config.batch, or a larger config.dino.momentum'
  )


def update_task_state(
  state: Mapping[str, jax.Array], params: Any, aux: Any, step: jax.Array
) -> dict[str, jax.Array]:
  """The `Task.update_task_state`: moving averages of `aux`."""
  del params, step
  decays = {'center': _CENTER_DECAY, 'distribution': _MEAN_DECAY}
  return {
    name: decay * state[name] + (1 - decay) * aux[name]
    for name, decay in decays.items()
  }


def evaluators(
  task_: task.Task, data: Any, mesh: jax.sharding.Mesh
) -> dict[str, Callable]:
  """Returns `task.mean_metrics` of the student against the teacher.

  This also holds if the teacher is evaluated.
  """

  def of_student(evaluator):
    def evaluate(params, context):
      del params
      return evaluator(context.params, context)

    return evaluate

  found = task.mean_metrics(task_, data, mesh)
  return {split: of_student(x) for split, x in found.items()}


def make(config: ConfigDict, data: input_pipeline.Datasets) -> task.Task:
  """Returns the task of self-distillation on the images of `data`."""
  encoder, deployed = reconstruction.make_encoder(config, data, 'pooled')
  deployed = dataclasses.replace(deployed, params_set='ema')
  count = config.dino.prototypes
  model = dino.DinoModel(encoder=encoder, num_prototypes=count)
  length = run_length.resolve(config, data.num_train)
  frozen_steps = run_length.in_steps(
    *(config.dino.frozen_epochs, config, data.num_train, 'dino.frozen_epochs')
  )

  return task.Task(
    model=model,
    loss=make_loss(model, config),
    deployed=deployed,
    init=init_params(model),
    prepare=views.make_prepare(
      data,
      views.Crops(
        num_local=config.dino.local_views,
        local_size=config.dino.local_size,
        local_area=(config.dino.local_min_area, config.dino.local_max_area),
      ),
    ),
    transform=make_transform(config),
    ema_decay=momentum_schedule(config.dino.momentum, length.total_steps),
    evaluators=evaluators,
    init_task_state=lambda params: {
      'center': jnp.zeros(count),
      'distribution': jnp.full(count, 1 / count),
    },
    update_task_state=update_task_state,
    frozen_until={'prototypes/kernel': frozen_steps},
    find_fault=functools.partial(find_collapse, first=length.warmup_steps),
  )
