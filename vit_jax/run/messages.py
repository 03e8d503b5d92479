"""Lines about the model, the data and the optimizer of a run."""

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax.data import class_names
from vit_jax.data import input_pipeline
from vit_jax.models import variants
from vit_jax.optim import ema
from vit_jax.optim import factors
from vit_jax.optim import given_optimizer
from vit_jax.optim import rules
from vit_jax.optim import sam
from vit_jax.optim import weight_decay
from vit_jax.parallel import sharding
from vit_jax.run import given as given_objects
from vit_jax.run import setup
from vit_jax.tasks import classification
from vit_jax.tasks import task as tasks_task


def describe_model(
  config: ConfigDict,
  params: Any,
  mesh: jax.sharding.Mesh,
  frozen_paths: Collection[str] = (),
) -> str:
  """Returns a line about the model, the image size and the devices."""
  num_params, num_trained = (
    sum(x.size for x in jax.tree.leaves(tree))
    for tree in (params, rules.select(params, frozen_paths))
  )
  height, width = base_config.image_size(config)
  changed = ', '.join(
    f'{name} {value}'
    for name, value in tasks_task.model_settings(config).items()
    if name != 'name'
  )
  count = jax.process_count()
  return (
    f'{variants.resolve(config.model.name)} ({changed}), '
    f'{num_params / 1e6:.1f} M parameters, '
    + (
      f'{100 * num_trained / num_params:.3g} % of them trained, '
      if frozen_paths
      else ''
    )
    + f'images {height} x {width}, '
    f'on {mesh.size} {mesh.devices.flat[0].platform} device(s)'
    + (f' of {count} processes' if count > 1 else '')
    + (f' ({sharding.describe_mesh(mesh)})' if mesh.size > 1 else '')
  )


def describe_balance(
  config: ConfigDict, data: input_pipeline.Datasets
) -> list[str]:
  """Returns lines about balanced sampling and about the weights of classes."""
  lines, names = [], data.class_names
  if config.sampling == 'balanced':
    order = data.sources['train'].order
    if config.repeats > 1:
      order = order.order  # of the examples, without their repeats
    lines.append(
      f'balanced sampling: an epoch has {order.images_per_class} images of '
      f'each class, {order.epoch_size} in total'
      + (f', each {config.repeats} times in a row' * (config.repeats > 1))
    )
  weights = classification.find_class_weights(config, data)
  if weights is not None:
    low, high = weights.argmin(), weights.argmax()
    lines.append(
      f'class weights of the training loss: from {weights[low]:.3g} '
      f'({names[low]}) to {weights[high]:.3g} ({names[high]})'
    )
  return lines


def describe_optimizer(
  config: ConfigDict,
  parts: setup.Parts,
  given: given_objects.Given = setup.NOTHING_GIVEN,
) -> list[str]:
  """Returns lines about frozen parameters, factors and the optimizer."""
  frozen = sorted(parts.frozen_paths)
  lines = [
    factors.describe(parts.lr_factors),
    factors.describe(parts.decay_factors or {}, 'the weight decay'),
  ]
  lines.append(sam.describe(config))
  if config.ema_decay:
    lines.append(ema.describe(config.ema_decay, parts.total_steps))
  if frozen:
    lines.append(
      f'frozen by config.freeze: {len(frozen)} array(s), '
      f'{first_names(rules.groups_of(frozen), 12)}'
    )
  if parts.task.optimizer is not None:
    unused = given_optimizer.describe_unused(parts.task.optimizer)
    lines.append(f'the task has its own optimizer. {unused}')
  elif given.optimizer is None:
    lines.append(weight_decay.warning(config))
  if given.optimizer is not None:
    state = parts.abstract_state.opt_state
    lines.append(given_optimizer.describe(given.optimizer, state))
  return [line for line in lines if line]


def describe_data(config: ConfigDict, data: input_pipeline.Datasets) -> str:
  """Returns a line with the dataset and its numbers of images and classes."""
  counts = {
    **data.num_examples,
    'train': data.num_train or 'an unknown number of',
  }
  words = {'train': 'training', 'validation': 'validation', 'test': 'test'}
  parts = [f'{counts[k]} {word}' for k, word in words.items() if k in counts]
  return (
    f'{config.dataset}: {" and ".join(parts)} images'
    + (f' in {len(data.class_names)} classes' if data.class_names else '')
    + ('' if 'test' in counts else ', without a test split')
  )


def warn_of_flips(
  config: ConfigDict, data: input_pipeline.Datasets
) -> list[str]:
  """Returns a warning if flipped images may belong to another class."""
  names = class_names.mirrored(data.class_names)
  if not config.pp.flip or not names or not data.pipeline.prepares:
    return []
  return [
    'warning: half of the training images are mirrored, but the classes '
    f'{first_names(names)} may differ from their mirror images. '
    'config.pp.flip=False turns this off'
  ]


def warn_of_pixels(config: ConfigDict) -> list[str]:
  """Returns a warning if a policy for 224 px is used for small images."""
  policy, side = config.augment.policy, min(base_config.image_size(config))
  if not policy.startswith('randaug(') or side > 160:
    return []
  return [
    f'warning: config.augment.policy={policy} is as published for 224 px, but '
    f'the images have {side} px. It moves and erases by a fixed number of '
    f'pixels. {policy.replace("randaug", "randaug_fixed")} adapts to the size'
  ]


def first_names(names: Sequence[str], count: int = 5) -> str:
  """Returns the first names, and the number of the others."""
  more = len(names) - count
  return ', '.join(names[:count]) + (f' … and {more} more' if more > 0 else '')
