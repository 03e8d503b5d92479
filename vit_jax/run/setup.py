"""Builds the parts of a run from its settings and its data.

Training, the dry run and the evaluation use these functions.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import itertools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from vit_jax import base_config
from vit_jax import models
from vit_jax import tasks
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.data import input_pipeline
from vit_jax.evaluators import options
from vit_jax.optim import ema
from vit_jax.optim import factors as path_factors
from vit_jax.optim import given_optimizer
from vit_jax.optim import optimizer
from vit_jax.optim import rules
from vit_jax.optim import run_length
from vit_jax.optim import sam
from vit_jax.optim import schedules
from vit_jax.optim import weight_decay
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import given as given_objects
from vit_jax.run.writers import trackers
from vit_jax.tasks import losses
from vit_jax.tasks import task as tasks_task

NOTHING_GIVEN = given_objects.Given()


def check(
  config: ConfigDict, given: given_objects.Given = NOTHING_GIVEN
) -> jax.sharding.Mesh:
  """Checks the settings without the data, and returns the device mesh.

  Args:
    config: settings from `base_config`.
    given: the caller's objects that replace settings.

  Raises:
    ValueError: a setting is wrong. The first wrong setting is reported.
  """
  base_config.validate(config)
  kinds = {name: x.type for name, x in config.evaluators.items()}
  options.check_towers(kinds, 'the model of the run')
  given.make_task(config)
  losses.check(config, given.loss_fn is not None)
  sam.check(config)
  if not callable(given.task):
    tasks.check(config)
  base_config.check_used(config)
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
  settings = tasks_task.model_settings(config)
  models.get_model(settings.pop('name'), num_classes=0, **settings).grid_size(
    *base_config.image_size(config)
  )  # checks that patches fit
  rules.compile_pattern(config.freeze, 'config.freeze')
  path_factors.check(config.lr_rules, config.decay_rules)
  # Epochs become steps when the data are known. Until then, any length serves.
  make_optimizer(config, run_length.shortest(config), given.optimizer)
  for name in given.evaluators:
    if name in config.evaluators:
      raise ValueError(
        f'evaluators: the name {name!r} is also in config.evaluators. Choose '
        'another name'
      )
  if 'test' in given.evaluators or 'validation' in given.evaluators:
    raise ValueError(
      "evaluators: the names 'test' and 'validation' are reserved for the "
      'splits of the data. Choose another name'
    )
  for writer in given.writers:
    if not callable(writer):
      raise ValueError(
        f'writers has {writer!r}, which cannot be called. Give functions '
        '(step, numbers, pictures)'
      )
  trackers.check(config.tracker)
  return mesh


def best_direction(
  config: ConfigDict, task: tasks_task.Task, evaluators: Mapping[str, Callable]
) -> str:
  """Returns which values of `config.best_metric` are better: 'max' or 'min'.

  Args:
    config: settings from `base_config`.
    task: a `task.Task`.
    evaluators: {name: function} of all evaluators that run at `eval_every`.

  Raises:
    ValueError: no evaluator returns this metric, or its direction is unknown.
  """
  if not config.best_metric:
    return 'max'
  metric = config.best_metric
  if task.ema_decay:
    metric = metric.removesuffix('_raw')
  directions = {
    task.main_metric: task.metric_direction,
    **(task.other_metrics or {}),
    'loss': 'min',
  }
  splits = [name for name in evaluators if name in ('test', 'validation')]
  known = {
    f'{name}_{split}': direction
    for split in splits
    for name, direction in directions.items()
  }
  others = [name for name in evaluators if name not in splits]
  if task.other_metrics is None:
    others += splits
  found = known.get(metric, 'min' if metric.startswith('loss_') else '')
  if metric not in known and not metric.endswith(
    tuple(f'_{name}' for name in others)
  ):
    raise ValueError(
      f'config.best_metric={config.best_metric!r} is not one of the metrics of '
      f'this run: {", ".join([*known, *(f"…_{name}" for name in others)])}'
    )
  if not config.best_direction and not found:
    raise ValueError(
      f'config.best_metric={config.best_metric!r}: it is not known whether '
      'higher or lower values are better. Set config.best_direction=max or '
      'config.best_direction=min'
    )
  return config.best_direction or found


def make_optimizer(
  config: ConfigDict,
  length: run_length.Length,
  given: Any = None,
  factors: Mapping[str, float] | None = None,
  decay_factors: Mapping[str, float] | None = None,
  frozen_until: Mapping[str, int] | None = None,
) -> tuple[Callable | None, optax.GradientTransformation]:
  """Returns (schedule, gradient transformation) for a run of some length.

  The schedule is None if `given` replaces it. `optimizer.make_optimizer`
  describes `given`, `factors` and `frozen_until`,
  `weight_decay.make` describes `decay_factors`.
  """
  schedule = None
  if given_optimizer.uses_schedule(given):
    run_length.check_warmup(config, length)
    schedule = schedules.make_schedule(
      base_lr=config.base_lr,
      decay_type=config.decay_type,
      warmup_steps=length.warmup_steps,
      total_steps=length.total_steps,
      linear_end=config.linear_end,
      cosine_end=config.cosine_end,
      rsqrt_timescale=config.rsqrt_timescale,
      drop_steps=config.drop_steps,
      drop_factor=config.drop_factor,
      cooldown_steps=config.cooldown_steps,
      warmup_start=config.warmup_start,
    )
  decay = weight_decay.make(config, length.total_steps, decay_factors, factors)
  return schedule, optimizer.make_optimizer(
    config, schedule, given, factors, decay, frozen_until
  )


def get_datasets(config: ConfigDict, **options: Any) -> input_pipeline.Datasets:
  """Returns the datasets of a config; see `input_pipeline.get_datasets`."""
  return input_pipeline.get_datasets(
    base_config.data_settings(config), **options
  )


def load_data(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  given: Any = None,
  check_images: bool = True,
  streams: bool = False,
) -> input_pipeline.Datasets:
  """Loads this process's shard of the data.

  All processes must have the same data. A difference raises ValueError.

  Args:
    config: settings from `base_config`.
    mesh: device mesh over which the batches are sharded.
    given: data that replace `config.dataset`; see `vit_jax.data`.
    check_images: see `sources.get_sources`.
    streams: whether to stream the data instead of reading them into memory.
      Streaming is better for one pass. The training examples are then in the
      stored order.
  """
  changes = base_config.ONE_PASS if streams else {}
  data = processes.main_first(
    lambda: input_pipeline.get_datasets(
      base_config.data_settings(config, **changes),
      sharding.share_of(mesh, jax.process_index()),
      check_images=check_images,
      given=given,
      mesh=mesh,
    )
  )
  if given is not None:
    data = given.agree(data)
  processes.check_same(
    {
      'the list of class names': data.class_names,
      'the number of images in each split': data.num_examples,
      'the fingerprint of the image list': data.fingerprint,
    }
  )
  return data


@dataclasses.dataclass(frozen=True)
class Parts:
  """The objects that a config and its data define."""

  task: tasks_task.Task
  data: input_pipeline.Datasets  # uses the task's `prepare`
  total_steps: int
  # Number of completed updates -> learning rate. None: the optimizer's own.
  schedule: Callable | None
  tx: optax.GradientTransformation
  value_and_grad: Callable  # `jax.value_and_grad`, or that of SAM
  mesh: jax.sharding.Mesh
  keys: numerics.RunKeys
  init_fn: Callable  # key -> TrainState
  abstract_state: train_state.TrainState  # shapes, dtypes, shardings
  frozen_paths: frozenset[str]  # parameters that `config.freeze` freezes
  lr_factors: dict[str, float]  # of trained parameters, by path
  decay_factors: dict[str, float] | None  # the same; None: 1 for kernels

  @property
  def batch(self) -> int:
    """Number of rows of a training batch, over all devices."""
    return self.data.settings.batch

  def abstract_batch(
    self, size: int, masked: bool = False
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global batch of `data`."""
    return abstract_batch(self.data, size, self.mesh, masked)

  def abstract_feed(self) -> Any:
    """Returns the shapes of what the update gets: a batch, or a feed."""
    if not self.data.make_batch:
      return self.abstract_batch(self.batch)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      sharding.put_batch(next(self.data.train()), self.mesh),
    )

  def put_batch(self, feed: Any) -> dict[str, jax.Array]:
    """Returns the global batch of a batch or feed of `data.train`."""
    placed = sharding.put_batch(feed, self.mesh)
    if not self.data.make_batch:
      return placed
    rows = sharding.by_rows(self.mesh)
    return jax.jit(self.data.make_batch, out_shardings=rows)(placed)

  def make_update(self, accum_steps: int) -> Callable:
    """Returns the compiled update with `accum_steps` micro-batches."""
    return train_step.make_update_fn(
      self.task,
      self.tx,
      self.schedule,
      self.mesh,
      keys=self.keys,
      accum_steps=accum_steps,
      value_and_grad=self.value_and_grad,
      frozen_paths=self.frozen_paths,
      make_batch=self.data.make_batch,
    )


def abstract_batch(
  data: input_pipeline.Datasets,
  size: int,
  mesh: jax.sharding.Mesh,
  masked: bool = False,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a global batch of `data` with `size` rows."""
  spec = data.spec()
  if masked:
    spec['mask'] = (), jnp.float32
  return {
    name: jax.ShapeDtypeStruct(
      (size, *shape), dtype, sharding=sharding.by_rows(mesh)
    )
    for name, (shape, dtype) in spec.items()
  }


def make_parts(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  data: input_pipeline.Datasets,
  given: given_objects.Given = NOTHING_GIVEN,
) -> Parts:
  """Returns the `Parts` of a config.

  Args:
    config: settings from `base_config`.
    mesh: from `check`.
    data: from `load_data`.
    given: the caller's objects that replace settings.
  """
  task = given.make_task(config)(config, data)
  task = dataclasses.replace(  # the record names the maker that was used
    task,
    deployed=dataclasses.replace(
      task.deployed,
      task=tasks.trained_task(config.task),
      exif=config.pp.exif,
      background=config.pp.background,
      resizing=base_config.resizing(config),
    ),
  )
  task = _with_ema(config, task)
  if task.optimizer is not None and given.optimizer is not None:
    raise ValueError(
      f'optimizer cannot be used: config.task={config.task} has its own '
      'optimizer. Remove the argument'
    )
  if task.prepare:
    if data.make_batch:
      name = 'data_on' if config.data_on == 'device' else 'pp.train_resize_on'
      raise ValueError(
        f"config.{name}='device' cannot be used with config.task="
        f'{config.task}, which prepares each example on the host (`prepare`). '
        f"Use config.{name}='host'"
      )
    data = dataclasses.replace(data, prepare=task.prepare)
  check_samples(task, data)
  length = run_length.resolve(config, data.num_train)
  keys = numerics.run_keys(config.seed)
  spec = jax.eval_shape(
    lambda batch: task.checked_transform(keys.transform, batch, 0, True),
    abstract_batch(data, data.settings.batch, mesh),
  )
  params = jax.eval_shape(task.init, keys.init, spec)
  paths = rules.paths_of(params)
  frozen_paths = rules.find_frozen(paths, config.freeze)
  factors = path_factors.lr_factors(
    paths, frozen_paths, config.lr_rules, config.layer_decay
  )
  decay_factors = None
  if config.decay_rules:
    decay_factors = path_factors.decay_factors(
      paths, frozen_paths, config.decay_rules
    )
  schedule, tx = make_optimizer(
    config,
    length,
    given.optimizer if task.optimizer is None else task.optimizer,
    factors if set(factors.values()) != {1.0} else None,
    decay_factors,
    task.frozen_until,
  )
  trained = rules.select(params, frozen_paths)
  if given.optimizer is not None:
    given_optimizer.check(tx, trained)
  sharpness = sam.make(config, schedule, length.total_steps)
  if sharpness and given_optimizer.calls_loss(tx, trained):
    raise ValueError(
      f'config.sam.rho={config.sam.rho} cannot be used with an optimizer that '
      'evaluates the loss, such as a line search: it would search along '
      'another gradient. Use config.sam.rho=0.0, or another optimizer'
    )
  init_fn = train_state.make_init_fn(task, tx, spec, mesh, frozen_paths)
  abstract_state = jax.eval_shape(init_fn, keys.init)
  sharding.check_used(abstract_state.params, mesh)
  return Parts(
    task=task,
    data=data,
    total_steps=length.total_steps,
    schedule=schedule,
    tx=tx,
    value_and_grad=(
      sharpness.value_and_grad if sharpness else jax.value_and_grad
    ),
    mesh=mesh,
    keys=keys,
    init_fn=init_fn,
    abstract_state=abstract_state,
    frozen_paths=frozen_paths,
    lr_factors=factors,
    decay_factors=decay_factors,
  )


def _with_ema(config, task):
  """Returns the task with the moving average that the config requests.

  Raises:
    ValueError: the task has its own average.
  """
  if not config.ema_decay:
    return task
  if task.ema_decay:
    raise ValueError(
      f'config.ema_decay={config.ema_decay} cannot be used: config.task='
      f'{config.task} defines its own moving average. Use config.ema_decay=0.0'
    )
  return dataclasses.replace(
    task,
    ema_decay=ema.make_decay(config.ema_decay, config.ema_warmup_power),
    deployed=dataclasses.replace(task.deployed, params_set='ema'),
  )


def check_samples(task: tasks_task.Task, data: input_pipeline.Datasets) -> None:
  """Raises ValueError if the task cannot use the first batch of a split.

  Only given batches are checked. They are prepared as in evaluation.
  """
  for split, source in data.sources.items():
    if source.sample is not None:
      first = dataclasses.replace(
        source, num_examples=1, batches=functools.partial(iter, [source.sample])
      )
      only = dataclasses.replace(data, sources={split: first})
      batch = next(only.evaluate(split))
      count = int(batch.pop('mask').sum())  # of rows that are not padding
      _check_batch(task, {k: x[:count] for k, x in batch.items()}, split)


def open_batches(parts: Parts, first_step: int) -> Iterator[dict[str, Any]]:
  """Returns the batches or feeds after `first_step`; checks the first batch.

  Raises:
    ValueError: the task cannot use the first batch.
  """
  batches = parts.data.train(first_step)
  if first_step >= parts.total_steps:
    return batches
  first = next(batches)
  _check_batch(parts.task, parts.data.sample(first), 'train')
  return itertools.chain([first], batches)


def _check_batch(task, batch, split):
  if task.check_batch:
    try:
      task.check_batch(batch)
    except ValueError as error:
      raise ValueError(
        f'the batches of the split {split} cannot be used: {error}'
      ) from error


def without_loops(config: ConfigDict, model: nn.Module) -> ConfigDict:
  """Returns a config without scan, remat and fused attention.

  With such a config, the compiler counts the FLOPs of each layer.
  """
  plain = {'scan': False, 'remat': 'none', 'attention': 'plain'}
  config = config.copy_and_resolve_references()
  config.model.update(
    {name: value for name, value in plain.items() if hasattr(model, name)}
  )
  return config


def fresh_context() -> tasks_task.Context:
  """Returns the `task.Context` to evaluate parameters that have no run.

  Its key is constant.
  """
  return tasks_task.Context(key=numerics.random_key(0), step=np.int32(0))


def eval_context(
  state: train_state.TrainState, frozen: Any, chosen: Any = None
) -> tasks_task.Context:
  """Returns the `task.Context` to evaluate the state of a run."""
  return fresh_context().replace(
    step=state.step,
    params=state.params,
    ema=state.ema,
    frozen=frozen,
    task_state=state.task_state,
    chosen=chosen,
  )
