"""Builds the parts of a run from its settings and its data.

Training, the dry run and the evaluation use these functions.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import itertools
import os
import tempfile
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from vit_jax import base_config
from vit_jax import console
from vit_jax import models
from vit_jax import tasks
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint.pretrained import search
from vit_jax.data import input_pipeline
from vit_jax.models import variants
from vit_jax.optim import given_optimizer
from vit_jax.optim import optimizer
from vit_jax.optim import rules
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import given as given_objects
from vit_jax.tasks import task as tasks_task

_NOTHING = given_objects.Given()


def check(
  config: ConfigDict, given: given_objects.Given = _NOTHING
) -> jax.sharding.Mesh:
  """Checks the settings without the data, and returns the device mesh.

  Args:
    config: settings from `base_config`.
    given: the caller's objects that replace settings.

  Raises:
    ValueError: a setting is wrong. The first wrong setting is reported.
  """
  base_config.validate(config)
  given.make_task(config)
  if not callable(given.task):
    tasks.check(config)
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
  rules.check(config.freeze, config.lr_rules)
  # Epochs become steps when the data are known. Until then, any length serves.
  shortest = config.warmup_steps + config.cooldown_steps + 1
  total_steps = shortest if config.total_epochs else config.total_steps
  make_optimizer(config, total_steps, given.optimizer)
  if 'test' in given.evaluators or 'validation' in given.evaluators:
    raise ValueError(
      "evaluators: the names 'test' and 'validation' are reserved for the "
      'splits of the data. Choose another name'
    )
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


def resolve_steps(config: ConfigDict, num_train: int | None) -> int:
  """Returns the number of updates of a run on `num_train` examples."""
  if not config.total_epochs:
    return config.total_steps
  if not num_train:
    raise ValueError(
      f'config.total_epochs={config.total_epochs} needs the number of training '
      'examples, which is unknown for these data. Give num_train to '
      'vit_jax.data.from_batches, or set config.total_steps in place of '
      'config.total_epochs'
    )
  return max(1, round(config.total_epochs * num_train / config.batch))


def make_optimizer(
  config: ConfigDict,
  total_steps: int,
  given: Any = None,
  factors: Mapping[str, float] | None = None,
) -> tuple[Callable | None, optax.GradientTransformation]:
  """Returns (schedule, gradient transformation) for `total_steps` updates.

  The schedule is None if `given` replaces it. `optimizer.make_optimizer`
  describes `given` and `factors`.
  """
  schedule = None
  if given_optimizer.uses_schedule(given):
    schedule = optimizer.make_schedule(
      base_lr=config.base_lr,
      decay_type=config.decay_type,
      warmup_steps=config.warmup_steps,
      total_steps=total_steps,
      linear_end=config.linear_end,
      rsqrt_timescale=config.rsqrt_timescale,
      cooldown_steps=config.cooldown_steps,
    )
  return schedule, optimizer.make_optimizer(config, schedule, given, factors)


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
      Streaming is better for one pass.
  """
  changes = {'in_memory_bytes': 0} if streams else {}
  data = processes.main_first(
    lambda: input_pipeline.get_datasets(
      base_config.data_settings(config, **changes),
      sharding.share_of(mesh, jax.process_index()),
      check_images=check_images,
      given=given,
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
  mesh: jax.sharding.Mesh
  keys: numerics.RunKeys
  init_fn: Callable  # key -> TrainState
  abstract_state: train_state.TrainState  # shapes, dtypes, shardings
  frozen_paths: frozenset[str]  # parameters that `config.freeze` freezes
  lr_factors: dict[str, float]  # of trained parameters, by path

  def abstract_batch(
    self, size: int, masked: bool = False
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global batch of `data`."""
    return abstract_batch(self.data, size, self.mesh, masked)

  def make_update(self, accum_steps: int) -> Callable:
    """Returns the compiled update with `accum_steps` micro-batches."""
    return train_step.make_update_fn(
      self.task,
      self.tx,
      self.schedule,
      self.mesh,
      keys=self.keys,
      accum_steps=accum_steps,
      frozen_paths=self.frozen_paths,
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
  given: given_objects.Given = _NOTHING,
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
    task, deployed=dataclasses.replace(task.deployed, task=config.task)
  )
  if task.prepare:
    data = dataclasses.replace(data, prepare=task.prepare)
  check_samples(task, data)
  total_steps = resolve_steps(config, data.num_train)
  keys = numerics.run_keys(config.seed)
  spec = jax.eval_shape(
    lambda batch: task.checked_transform(keys.transform, batch, 0, True),
    abstract_batch(data, config.batch, mesh),
  )
  params = jax.eval_shape(task.init, keys.init, spec)
  paths = rules.paths_of(params)
  frozen_paths = rules.find_frozen(paths, config.freeze)
  factors = rules.lr_factors(
    paths, frozen_paths, config.lr_rules, config.layer_decay
  )
  schedule, tx = make_optimizer(
    config,
    total_steps,
    given.optimizer,
    factors if set(factors.values()) != {1.0} else None,
  )
  if given.optimizer is not None:
    given_optimizer.check(tx, rules.select(params, frozen_paths))
  init_fn = train_state.make_init_fn(task, tx, spec, mesh, frozen_paths)
  abstract_state = jax.eval_shape(init_fn, keys.init)
  sharding.check_used(abstract_state.params, mesh)
  return Parts(
    task=task,
    data=data,
    total_steps=total_steps,
    schedule=schedule,
    tx=tx,
    mesh=mesh,
    keys=keys,
    init_fn=init_fn,
    abstract_state=abstract_state,
    frozen_paths=frozen_paths,
    lr_factors=factors,
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
  """Returns the training batches after `first_step`; checks the first one.

  Raises:
    ValueError: the task cannot use the first batch.
  """
  batches = parts.data.train(first_step)
  if first_step >= parts.total_steps:
    return batches
  first = next(batches)
  _check_batch(parts.task, first, 'train')
  return itertools.chain([first], batches)


def _check_batch(task, batch, split):
  if task.check_batch:
    try:
      task.check_batch(batch)
    except ValueError as error:
      raise ValueError(
        f'the batches of the split {split} cannot be used: {error}'
      ) from error


def find_weights(
  config: ConfigDict, fetches: bool = True
) -> tuple[init_weights.Pretrained | None, list[str]]:
  """Finds and reads the initial weights of a run.

  Args:
    config: settings from `base_config`.
    fetches: whether to download weights that are not on this machine.

  Returns:
    (weights, places). The weights are None for random initialization, and if
    they would have to be downloaded. In the second case, `places` lists the
    addresses in the order in which a run would try them.

  Raises:
    ValueError: no weights were found, or they need other model settings.
  """
  find = search.find if fetches else search.look
  found = processes.main_first(
    lambda: find(
      config.pretrained,
      config.pretrained_dir,
      model_name=variants.resolve(config.model.name),
      sources=config.weights_sources,
    )
  )
  path, places = (found, []) if fetches else found
  if path is None:
    return None, places
  loaded = init_weights.read(
    path, tasks_task.model_settings(config), config.pretrained_head == 'keep'
  )
  return loaded, []


def fit_weights(
  loaded: init_weights.Pretrained,
  config: ConfigDict,
  parts: 'Parts',
  params: Any,
) -> Any:
  """Returns `params`; a file's weights replace those of the deployed model.

  Args:
    loaded: weights from `find_weights`.
    config: settings from `base_config`.
    parts: from `make_parts`.
    params: randomly initialized NumPy arrays of the task's entire model.

  Raises:
    ValueError: the weights do not match the model.
  """
  deployed, model = parts.task.deployed, parts.task.model
  init_weights.check_head(loaded, deployed)
  path = [name for name in deployed.module.split('/') if name]
  if path:
    model = models.get_model(
      deployed.name,
      num_classes=len(deployed.class_names or ()),
      **deployed.settings,
    )

  def replace(tree, path):
    if path:
      return {**tree, path[0]: replace(tree[path[0]], path[1:])}
    return init_weights.fit(
      loaded,
      model,
      tree,
      parts.data.image_size,
      parts.data.class_names,
      config.dataset,
      resize_patches=config.model.patch_size is not None,
    )

  if parts.frozen_paths:
    params = jax.tree.map(np.asarray, params)
  fitted = replace(params, path)
  warn_of_random(
    parts,
    {
      rules.path_of(path)
      for (path, old), new in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(fitted), strict=True
      )
      if new is old  # `adapt` returns arrays that the file does not replace
    },
  )
  return fitted


def warn_of_random(parts: 'Parts', random_paths: Collection[str]) -> None:
  """Logs a warning if randomly initialized parameters are frozen.

  Args:
    parts: from `make_parts`.
    random_paths: paths of the parameters that no file replaces.
  """
  found = sorted(parts.frozen_paths.intersection(random_paths))
  modules = _first(rules.groups_of(found))
  if found:
    console.log_info(
      f'warning: config.freeze freezes {len(found)} array(s) that are randomly '
      f'initialized and would stay random, in {modules}. Change config.freeze '
      'or the weights, unless this is intended'
    )


def _first(names, count=5):
  """Returns the first names, and the number of the others."""
  more = len(names) - count
  return ', '.join(names[:count]) + (f' … and {more} more' if more > 0 else '')


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
  state: train_state.TrainState, frozen: Any
) -> tasks_task.Context:
  """Returns the `task.Context` to evaluate the state of a run."""
  return fresh_context().replace(
    step=state.step, ema=state.ema, frozen=frozen, task_state=state.task_state
  )


def load_frozen(parts: 'Parts') -> tuple[Any, str | None]:
  """Returns (frozen arrays of the task on the mesh, their fingerprint)."""
  frozen = parts.task.load_frozen(parts.mesh)
  if not jax.tree.leaves(frozen):
    return frozen, None
  digest = fingerprint(frozen)
  processes.check_same({'the fingerprint of the frozen arrays': digest})
  return jax.tree.map(
    sharding.put, frozen, sharding.by_rules(frozen, parts.mesh)
  ), digest


def fingerprint(tree: Any) -> str:
  """Returns the SHA-256 of the arrays and paths of a pytree."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    x = np.asarray(x)
    digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).data)
  return digest.hexdigest()


def use_compilation_cache(folder: str) -> None:
  """Enables JAX's compilation cache, which makes the next start faster.

  Args:
    folder: folder of the cache. '' is ~/.cache/vit_jax/compiled, and 'off'
      disables the cache. JAX's own option, if it is set, has priority.
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
        f'warning: cannot write compiled programs to {folder} '
        f'({error.strerror}), so each start compiles again. Set '
        'config.compilation_cache_dir to a writable folder, or to off'
      )
      folder = None
  jax.config.update('jax_compilation_cache_dir', folder)


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


def describe_optimizer(
  parts: Parts, given: given_objects.Given = _NOTHING
) -> list[str]:
  """Returns lines about frozen parameters, factors and a given optimizer."""
  frozen = sorted(parts.frozen_paths)
  lines = [rules.describe_factors(parts.lr_factors)]
  if frozen:
    lines.append(
      f'frozen by config.freeze: {len(frozen)} array(s), '
      f'{_first(rules.groups_of(frozen), 12)}'
    )
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
