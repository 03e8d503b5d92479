"""A linear classifier on features of frozen weights.

A run computes the features of all images once. Each of its steps fits one head
to all training features, to convergence, with one strength of the L2 penalty.
The last step fits the head again whose strength is best on the validation
split. The trained model is an ordinary classifier: the frozen parameters and
this head. The loss of a strength λ is, with the kernel W and no penalty of the
bias,

  mean of the cross-entropy + λ/2 · |W|²

Shapes:  B batch · D width of the features · K classes · S strengths
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vit_jax import console
from vit_jax import models
from vit_jax.data import examples
from vit_jax.data import input_pipeline
from vit_jax.evaluators import linear_probe as evaluator
from vit_jax.inference import image_features
from vit_jax.models import param_paths
from vit_jax.optim import minimize
from vit_jax.tasks import classification
from vit_jax.tasks import losses as class_losses
from vit_jax.tasks import task

TRAINS = 'classification'

# Settings that this task needs, and why.
_FREEZE = f'(?!{param_paths.HEAD}/).*'
_ONCE = 'features are computed once, without random changes'
_NEEDED = {
  'freeze': (_FREEZE, 'only the head is trained'),
  'pretrained_head': ('fresh', 'each step starts with a head of zeros'),
  'accum_steps': (1, 'each step uses all features at once'),
  'total_epochs': (0, 'the number of steps is the number of heads'),
  'skip_nonfinite': (0, 'each step is needed'),
  'lr_rules': ('', 'there is no learning rate'),
  'decay_rules': ('', 'there is no weight decay'),
  'ema_decay': (0, 'each step fits a new head'),
  'sam.rho': (0, 'each step searches along lines for the minimum of the loss'),
  'layer_decay': (1, 'there is no learning rate'),
  'data_on': ('host', 'features are computed once'),
  'sampling': ('uniform', 'each step uses all features at once'),
  'patience': (0, 'the last step fits the best head'),
  'pp.flip': (False, _ONCE),
  'pp.min_area': (1, _ONCE),
  'pp.train_crop': ('area', _ONCE),
  'pp.train_interpolation': ('bilinear', _ONCE),
  'pp.train_resize_on': ('host', _ONCE),
  'repeats': (1, 'each step uses all features at once'),
  **{
    f'augment.{name}': (off, _ONCE)
    for name, off in (
      *(('policy', ''), ('jitter', 0), ('erasing', 0), ('pad', 0)),
      *(('mixup', 0), ('cutmix', 0)),
    )
  },
  'model.dtype': ('float32', 'the head is fitted in float32'),
  # The devices search together until the gradient is small. If two groups of
  # devices summed in another order, one group could stop before the other.
  'mesh.fsdp': (1, 'all devices need the entire head'),
  'mesh.tensor': (1, 'all devices need the entire head'),
}


def num_steps(strengths: tuple[float, ...]) -> int:
  """Returns the number of steps: one per strength, and one for the best."""
  return len(strengths) + (len(strengths) > 1)


def check(config: ConfigDict) -> None:
  """Raises ValueError if the settings do not suit a linear probe."""
  classification.check(config)
  if jax.process_count() > 1:
    raise ValueError(
      f'config.task=linear_probe runs in one process, not in '
      f'{jax.process_count()}. It can use all devices of this process'
    )
  strengths = config.l2_strengths
  if (
    not strengths
    or len(set(strengths)) < len(strengths)
    or not all(
      isinstance(x, int | float) and 0 < x < math.inf for x in strengths
    )
  ):
    raise ValueError(
      f'config.l2_strengths={strengths} must be different numbers greater than '
      '0, such as (0.1, 0.01, 0.001)'
    )
  for name, (value, reason) in _NEEDED.items():
    group, _, leaf = name.rpartition('.')
    found = (config[group] if group else config)[leaf]
    if found != value:
      raise ValueError(
        f'config.{name}={found!r} cannot be used with config.task='
        f'linear_probe, because {reason}. Use config.{name}={value!r}'
      )
  steps = num_steps(strengths)
  if config.total_steps != steps:
    raise ValueError(
      f'config.total_steps={config.total_steps} must be {steps}: config.task='
      f'linear_probe has a step for each of the {len(strengths)} values of '
      'config.l2_strengths'
      + (', and one for the best of them' if steps > 1 else '')
      + f'. Use config.total_steps={steps}'
    )


def make_encoder(
  config: ConfigDict, data: input_pipeline.Datasets
) -> tuple[Callable, int]:
  """Returns ((params, images) -> features [B, D], D); see `tasks`.

  Args:
    config: settings from `base_config`.
    data: the images.

  Raises:
    ValueError: the data or the model do not suit a linear probe.
  """
  _check_data(config, data)
  settings = task.model_settings(config)
  headless = models.get_model(settings.pop('name'), num_classes=0, **settings)
  encode = image_features.make(headless)
  image = jax.ShapeDtypeStruct((1, *data.image_size, 3), jnp.float32)
  params = jax.eval_shape(
    task.init_on_images(headless), jax.random.key(0), {'image': image}
  )
  return encode, image_features.row_width(
    encode, params, data.image_size, f'config.model.name={config.model.name}'
  )


def _check_data(config, data):
  """Raises ValueError if the data do not suit a linear probe."""
  if any(source.batches for source in data.sources.values()):
    raise ValueError(
      'config.task=linear_probe computes the features of each image once, but '
      'the data are batches in an order of their own. Give arrays '
      '(vit_jax.data.from_arrays), a folder of images or a dataset'
    )
  if len(data.class_names) < 2:
    found = ', '.join(map(repr, data.class_names)) or 'none'
    raise ValueError(
      'config.task=linear_probe needs at least two classes, but the data have '
      f'{len(data.class_names)}: {found}. Give images of two or more classes'
    )
  task.label_spec(data, 'class numbers')
  labels = data.labels('train')
  if labels is not None:
    classification.make_check(data)({'label': labels})
    if examples.are_classes(labels) and len(np.unique(labels)) < 2:
      raise ValueError(
        'config.task=linear_probe needs training images of at least two '
        f'classes, but all {len(labels)} are of the class '
        f'{data.class_names[labels[0]]!r}. Give more images, or hold out fewer '
        'with config.validation'
      )
  if 'validation' not in data.sources and len(config.l2_strengths) > 1:
    raise ValueError(
      'config.task=linear_probe chooses one of the '
      f'{len(config.l2_strengths)} values of config.l2_strengths by the '
      'accuracy on a validation split, which the data do not have. Set '
      'config.validation=0.1, or a single value of config.l2_strengths with '
      'config.total_steps=1'
    )


# --- the heads ---------------------------------------------------------------


def _measure(params, features, labels):
  """Returns (cross-entropy [B], {'labels' [B], 'predicted' [B]})."""
  logits = evaluator.logits(params[param_paths.HEAD], features)
  labels = classification.label_rows(labels, logits.shape[-1])
  losses = class_losses.softmax_cross_entropy(logits, labels)
  return losses, classification.outputs(logits, labels)


def strength_at(
  step: jax.Array, task_state: Any, strengths: tuple[float, ...]
) -> jax.Array:
  """Returns the strength of the head of step 0, 1, ….

  Args:
    step: number of the step, from 0.
    task_state: accuracy and loss of each strength on the validation split; None
      for a single strength.
    strengths: `config.l2_strengths`.
  """
  if task_state is None:
    return jnp.float32(strengths[0])
  index = jnp.where(step < len(strengths), step, evaluator.best(task_state))
  return jnp.take(jnp.float32(strengths), index, mode='clip')


def make_loss(strengths: tuple[float, ...]) -> Callable:
  """Returns the `Task.loss` of a linear probe, for `config.l2_strengths`.

  In training, `aux` is the validation split: `update_task_state` measures the
  new head on it.
  """

  def loss(params, batch, context):
    losses, outputs = _measure(params, batch['feature'], batch['label'])
    if not context.train:
      hits = outputs['labels'] == outputs['predicted']
      return losses, {'accuracy': hits}, outputs
    mask = batch['mask']
    kernel = params[param_paths.HEAD]['kernel']
    l2 = strength_at(context.step, context.task_state, strengths)
    # The mean over the B rows is the mean over the rows that are not padding.
    losses = losses * mask * (len(mask) / mask.sum())
    penalty = l2 / 2 * (kernel**2).sum()
    return losses + penalty, {}, context.frozen

  return loss


def _measure_head(task_state, params, aux, step):
  """Returns the task state with the validation metrics of the new head."""
  if task_state is None:
    return None
  losses, outputs = _measure(params, aux['feature'], aux['label'])
  hits = outputs['labels'] == outputs['predicted']
  found = {'accuracy': hits.mean(), 'loss': losses.mean()}
  return {
    name: task_state[name].at[step - 1].set(value, mode='drop')
    for name, value in found.items()
  }


# --- evaluation --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _WithStrength:
  """Adds the strength `l2` of a head to its metrics."""

  evaluator: Callable
  strengths: tuple[float, ...]

  def __call__(self, params, context):
    step = int(context.step)
    l2 = float(strength_at(step - 1, context.task_state, self.strengths))
    if step == num_steps(self.strengths):
      console.log_info(describe_choice(context.task_state, self.strengths))
    found = self.evaluator(params, context)
    return found._replace(numbers={'l2': l2, **found.numbers})


def describe_choice(task_state: Any, strengths: tuple[float, ...]) -> str:
  """Returns a line about the chosen strength."""
  index = int(evaluator.best(task_state))
  l2, accuracy = strengths[index], float(task_state['accuracy'][index])
  line = (
    f'the best of {len(strengths)} strengths on the validation split: '
    f'l2={l2:g}, accuracy {100 * accuracy:.2f} %'
  )
  for edge, other in ((min(strengths), 'smaller'), (max(strengths), 'larger')):
    if l2 == edge:
      line += (
        f'. No strength is {other}, so add {other} values to '
        'config.l2_strengths'
      )
  return line


def _evaluators(of_task, data, mesh, classifier, strengths):
  found = classifier.evaluators(of_task, data, mesh)
  if 'validation' in found and len(strengths) > 1:
    found['validation'] = _WithStrength(found['validation'], strengths)
  return found


# --- the task ----------------------------------------------------------------


def _coordinates(data):
  """Returns the `change` of `minimize.to_convergence` for training features.

  The means are computed when they are first used, by the compiled step.
  """

  @functools.cache
  def change_head():
    features = _all_rows(data, 'train')['feature']
    return minimize.standardizing(
      features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    )

  def change(params):
    name = param_paths.HEAD
    return {**params, name: change_head()(params[name])}

  return change


def _make_init(model, image_size):
  def init(key, batch_spec):
    del batch_spec  # of features
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return task.init_on_images(model)(key, {'image': image})

  return init


def _all_rows(data, split):
  source = data.sources[split]
  return source.read(np.arange(source.num_examples))


def _make_check(data):
  check_batch = classification.make_check(data)

  def check_rows(batch):
    rows = batch['mask'] > 0
    check_batch({name: x[rows] for name, x in batch.items()})

  return check_rows


def make(config: ConfigDict, data: input_pipeline.Datasets) -> task.Task:
  """Returns the task of fitting heads to the features in `data`."""
  check(config)
  if 'feature' not in data.spec():
    raise ValueError(
      'config.task=linear_probe needs features, which train_and_evaluate '
      'computes from the images'
    )
  model, deployed = task.image_model(
    config, data, len(data.class_names), class_names=tuple(data.class_names)
  )
  strengths = tuple(map(float, config.l2_strengths))
  chooses = len(strengths) > 1
  nothing = jnp.zeros(len(strengths))

  def init_task_state(params):
    del params
    return {'accuracy': nothing, 'loss': nothing} if chooses else None

  classifier = classification.of_model(model, deployed=deployed, data=data)
  return dataclasses.replace(
    classifier,
    loss=make_loss(strengths),
    check_batch=_make_check(data),
    init=_make_init(model, data.image_size),
    evaluators=functools.partial(
      _evaluators, classifier=classifier, strengths=strengths
    ),
    optimizer=minimize.to_convergence(_coordinates(data)),
    load_frozen=lambda mesh: _all_rows(data, 'validation') if chooses else None,
    init_task_state=init_task_state,
    update_task_state=_measure_head,
  )
