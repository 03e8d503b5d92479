"""Builds the parts of a run from its settings and its data.

Training, the dry run and the evaluation use these functions.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import hashlib
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
from vit_jax.optim import optimizer
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
  if not config.total_epochs:
    make_optimizer(config, config.total_steps, given.optimizer)
  if 'test' in given.evaluators or 'validation' in given.evaluators:
    raise ValueError(
      "evaluators: the names 'test' and 'validation' are reserved for the "
      'splits of the data. Choose another name'
    )
  return mesh


def check_best_metric(
  config: ConfigDict, task: tasks_task.Task, evaluators: Mapping[str, Callable]
) -> None:
  """Raises ValueError if no evaluator returns `config.best_metric`.

  Args:
    config: settings from `base_config`.
    task: a `task.Task`.
    evaluators: {name: function} of all evaluators that run at `eval_every`.
  """
  metric = config.best_metric
  if metric and not any(metric.endswith(f'_{name}') for name in evaluators):
    known = [
      f'{number}_{name}'
      for name in evaluators
      for number in dict.fromkeys(
        (task.main_metric, 'loss') if name in ('test', 'validation') else '…'
      )
    ]
    raise ValueError(
      f'config.best_metric={metric!r} is not one of the metrics of this run: '
      + ', '.join(known)
    )


def resolve_steps(config: ConfigDict, num_train: int) -> int:
  """Returns the number of updates of a run on `num_train` examples."""
  if not config.total_epochs:
    return config.total_steps
  return max(1, round(config.total_epochs * num_train / config.batch))


def make_optimizer(
  config: ConfigDict, total_steps: int, given: Any = None
) -> tuple[Callable, optax.GradientTransformation]:
  """Returns (schedule, gradient transformation) for `total_steps` updates.

  `given` replaces the optimizer of the config; see `optimizer.make_optimizer`.
  """
  schedule = optimizer.make_schedule(
    base_lr=config.base_lr,
    decay_type=config.decay_type,
    warmup_steps=config.warmup_steps,
    total_steps=total_steps,
    linear_end=config.linear_end,
    rsqrt_timescale=config.rsqrt_timescale,
    cooldown_steps=config.cooldown_steps,
  )
  return schedule, optimizer.make_optimizer(config, schedule, given)


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
  if given is not None:
    raise NotImplementedError
  data = processes.main_first(
    lambda: input_pipeline.get_datasets(
      base_config.data_settings(config, **changes),
      sharding.share_of(mesh, jax.process_index()),
      check_images=check_images,
    )
  )
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
  schedule: Callable  # number of completed updates -> learning rate
  tx: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  keys: numerics.RunKeys
  init_fn: Callable  # key -> TrainState
  abstract_state: train_state.TrainState  # shapes, dtypes, shardings

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
  if task.prepare:
    data = dataclasses.replace(data, prepare=task.prepare)
  total_steps = resolve_steps(config, data.num_train)
  schedule, tx = make_optimizer(config, total_steps, given.optimizer)
  keys = numerics.run_keys(config.seed)
  spec = jax.eval_shape(
    lambda batch: task.checked_transform(keys.transform, batch, 0, True),
    abstract_batch(data, config.batch, mesh),
  )
  init_fn = train_state.make_init_fn(task, tx, spec, mesh)
  abstract_state = jax.eval_shape(init_fn, keys.init)
  sharding.check_used(abstract_state.params, mesh)
  return Parts(
    task, data, total_steps, schedule, tx, mesh, keys, init_fn, abstract_state
  )


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

  return replace(params, path)


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
  config: ConfigDict, params: Any, mesh: jax.sharding.Mesh
) -> str:
  """Returns a line about the model, the image size and the devices."""
  num_params = sum(x.size for x in jax.tree.leaves(params))
  height, width = base_config.image_size(config)
  changed = ', '.join(
    f'{name} {value}'
    for name, value in tasks_task.model_settings(config).items()
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


def describe_data(config: ConfigDict, data: input_pipeline.Datasets) -> str:
  """Returns a line with the dataset and its numbers of images and classes."""
  num_validation = data.num_examples.get('validation', 0)
  return (
    f'{config.dataset}: {data.num_train} training and '
    + (f'{num_validation} validation and ' if num_validation else '')
    + f'{data.num_test} test images'
    + (f' in {len(data.class_names)} classes' if data.class_names else '')
  )
