"""What settings and data decide before anything runs.

Training and the dry run make the same parts, in the same way.
"""

from collections.abc import Callable
import dataclasses
import os
import tempfile

from flax import linen as nn
import jax
import optax

from vit_jax import base_config
from vit_jax import console
from vit_jax import models
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.data import input_pipeline
from vit_jax.models import variants
from vit_jax.optim import loss_functions
from vit_jax.optim import optimizer
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding


def model_settings(config):
  """Arguments of `models.get_model` but for `num_classes`."""
  return {
    name: value for name, value in config.model.items() if value is not None
  }


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the settings alone decide."""

  mesh: jax.sharding.Mesh
  image_size: tuple[int, int]
  schedule: Callable
  tx: optax.GradientTransformation


def _check_best_metric(metric, evaluators):
  """Raises a ValueError for a number that no evaluation will have."""
  if metric not in ('', 'accuracy_test', 'loss_test') and not any(
    metric.endswith(f'_{name}') for name in evaluators
  ):
    raise ValueError(
      f'config.best_metric={metric!r} is not one of accuracy_test, loss_test'
      + ''.join(f', …_{name}' for name in evaluators)
    )


def make_plan(config, evaluators=()):
  """The `Plan` of a config; a ValueError for the first thing that is wrong.

  Args:
    config: from `base_config`.
    evaluators: names of those beside 'test'.
  """
  base_config.validate(config)
  _check_best_metric(config.best_metric, evaluators)
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor
  )
  sharding.check_batch(
    'batch',
    config.batch,
    1 if config.accum_steps == 'auto' else config.accum_steps,
    mesh,
  )
  sharding.check_batch('batch_eval', config.batch_eval, 1, mesh)
  image_size = input_pipeline.image_size(config)
  models.get_model(**model_settings(config), num_classes=0).grid_size(
    *image_size
  )  # raises where the patches do not divide the images
  schedule = optimizer.make_schedule(
    base_lr=config.base_lr,
    decay_type=config.decay_type,
    warmup_steps=config.warmup_steps,
    total_steps=config.total_steps,
    linear_end=config.linear_end,
  )
  return Plan(
    mesh, image_size, schedule, optimizer.make_optimizer(config, schedule)
  )


def load_data(config, mesh, check_images=True):
  """This process's share of the data, of which all have the same."""
  data = processes.main_first(
    lambda: input_pipeline.get_datasets(
      config,
      sharding.share_of(mesh, jax.process_index()),
      check_images=check_images,
    )
  )
  processes.check_same(
    {
      'the names of the classes': data.class_names,
      'the number of training images': data.num_train,
      'the number of test images': data.num_test,
      'the fingerprint of the list of images': data.fingerprint,
    }
  )
  return data


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a config makes of data with so many classes."""

  model: nn.Module
  init_key: jax.Array
  init_fn: Callable  # key -> TrainState
  abstract_state: train_state.TrainState  # shapes, and where they lie
  make_update: Callable  # number of micro-batches -> update function


def make_parts(
  config, plan, data, loss_fn=loss_functions.softmax_cross_entropy
):
  """The `Parts` of a config."""
  model = models.get_model(
    **model_settings(config), num_classes=len(data.class_names)
  )
  init_key, dropout_key = jax.random.split(numerics.random_key(config.seed))
  init_fn = train_state.make_init_fn(model, plan.tx, plan.image_size, plan.mesh)
  abstract_state = jax.eval_shape(init_fn, init_key)
  sharding.check_used(abstract_state.params, plan.mesh)

  def make_update(accum_steps):
    return train_step.make_update_fn(
      model,
      plan.tx,
      plan.schedule,
      plan.mesh,
      key=dropout_key,
      accum_steps=accum_steps,
      loss_fn=loss_fn,
    )

  return Parts(model, init_key, init_fn, abstract_state, make_update)


def use_compilation_cache(folder):
  """Makes JAX keep compiled programs, so that the next start is fast.

  Args:
    folder: of the programs; '' is ~/.cache/vit_jax/compiled, and 'off' none.
      A folder that the user has set by JAX's own option comes before it.
  """
  if folder == 'off':
    return
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  folder = jax.config.jax_compilation_cache_dir or os.path.expanduser(
    folder or os.path.join(caches, 'vit_jax', 'compiled')
  )
  if '://' not in folder:
    try:
      os.makedirs(folder, exist_ok=True)
      with tempfile.TemporaryFile(dir=folder):
        pass
    except OSError as error:
      console.log_info(
        f'warning: compiled programs cannot be kept in {folder} '
        f'({error.strerror}): each start compiles again. Give a folder that '
        'can be written by config.compilation_cache_dir, or off'
      )
      folder = None
  jax.config.update('jax_compilation_cache_dir', folder)


def describe_model(config, params, mesh):
  """A line of what is trained, and on what."""
  num_params = sum(x.size for x in jax.tree.leaves(params))
  height, width = input_pipeline.image_size(config)
  changed = ', '.join(
    f'{name} {value}'
    for name, value in model_settings(config).items()
    if name != 'name'
  )
  count = jax.process_count()
  return (
    f'{variants.resolve(config.model.name)} ({changed}), '
    f'{num_params / 1e6:.1f} M parameters, images {height} x {width}, '
    f'on {mesh.size} {mesh.devices.flat[0].platform} device(s)'
    + (f' of {count} processes' if count > 1 else '')
    + (f' ({sharding.describe_mesh(mesh)})' if mesh.size > 1 else '')
  )
