"""What settings and data decide before anything runs.

Training, the dry run and the evaluation make the same parts, in the same way.
"""

from collections.abc import Callable
from collections.abc import Iterable
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
from vit_jax.tasks import task as tasks_task


def check(
  config: ConfigDict,
  evaluators: Iterable[str] = (),
  make_task: Callable | None = None,
) -> jax.sharding.Mesh:
  """Raises a ValueError for the first setting that is wrong in itself.

  Args:
    config: from `base_config`.
    evaluators: names of those that are not the task's.
    make_task: of a caller, in place of `config.task`.

  Returns:
    The device mesh.
  """
  base_config.validate(config)
  if not make_task:
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
  models.get_model(
    **tasks_task.model_settings(config), num_classes=0
  ).grid_size(*base_config.image_size(config))  # patches divide images
  if not config.total_epochs:
    make_optimizer(config, config.total_steps)
  if 'test' in evaluators or 'validation' in evaluators:
    raise ValueError(
      "evaluators: the names 'test' and 'validation' are taken by the data"
    )
  return mesh


def check_best_metric(
  config: ConfigDict, task: tasks_task.Task, evaluators: Mapping[str, Callable]
) -> None:
  """Raises a ValueError for a number that no evaluation will have.

  Args:
    config: from `base_config`.
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
      f'config.best_metric={metric!r} is not one of {", ".join(known)}'
    )


def resolve_steps(config: ConfigDict, num_train: int) -> int:
  """The number of updates of a run on so many training examples."""
  if not config.total_epochs:
    return config.total_steps
  return max(1, round(config.total_epochs * num_train / config.batch))


def make_optimizer(
  config: ConfigDict, total_steps: int, make_direction: Callable | None = None
) -> tuple[Callable, optax.GradientTransformation]:
  """(schedule, gradient transformation) of a run of so many updates."""
  schedule = optimizer.make_schedule(
    base_lr=config.base_lr,
    decay_type=config.decay_type,
    warmup_steps=config.warmup_steps,
    total_steps=total_steps,
    linear_end=config.linear_end,
    rsqrt_timescale=config.rsqrt_timescale,
    cooldown_steps=config.cooldown_steps,
  )
  return schedule, optimizer.make_optimizer(config, schedule, make_direction)


def get_datasets(config: ConfigDict, **options: Any) -> input_pipeline.Datasets:
  """The data of a config; see `input_pipeline.get_datasets`."""
  return input_pipeline.get_datasets(
    base_config.data_settings(config), **options
  )


def load_data(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  check_images: bool = True,
  streams: bool = False,
) -> input_pipeline.Datasets:
  """This process's rows of the data, of which all processes have the same.

  Args:
    config: from `base_config`.
    mesh: of the devices that share the batches.
    check_images: see `sources.get_sources`.
    streams: whether no data set is read into memory, as for one pass over it.
  """
  changes = {'in_memory_bytes': 0} if streams else {}
  data = processes.main_first(
    lambda: input_pipeline.get_datasets(
      base_config.data_settings(config, **changes),
      sharding.share_of(mesh, jax.process_index()),
      check_images=check_images,
    )
  )
  processes.check_same(
    {
      'the names of the classes': data.class_names,
      'the numbers of images': data.num_examples,
      'the fingerprint of the list of images': data.fingerprint,
    }
  )
  return data


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a config makes of its data."""

  task: tasks_task.Task
  data: input_pipeline.Datasets  # with the task's `prepare`
  total_steps: int
  schedule: Callable  # number of completed updates -> learning rate
  tx: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  keys: numerics.RunKeys
  init_fn: Callable  # key -> TrainState
  abstract_state: train_state.TrainState  # shapes, and where they lie

  def abstract_batch(
    self, size: int, masked: bool = False
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch, as `data` makes it."""
    return abstract_batch(self.data, size, self.mesh, masked)

  def make_update(self, accum_steps: int) -> Callable:
    """The compiled update for so many micro-batches."""
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
  """Shapes of a global batch of `size` rows, as `data` makes it."""
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
  make_task: Callable | None = None,
  make_direction: Callable | None = None,
) -> Parts:
  """The `Parts` of a config.

  Args:
    config: from `base_config`.
    mesh: from `check`.
    data: from `load_data`.
    make_task: (config, data) -> `task.Task`; None: as `config.task` names it.
    make_direction: see `optimizer.make_optimizer`.
  """
  task = (make_task or tasks.get_maker(config.task))(config, data)
  if task.prepare:
    data = dataclasses.replace(data, prepare=task.prepare)
  total_steps = resolve_steps(config, data.num_train)
  schedule, tx = make_optimizer(config, total_steps, make_direction)
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
  """The weights that a run starts from, found and read before any data.

  Args:
    config: from `base_config`.
    fetches: whether what is not here is fetched.

  Returns:
    (`init_weights.Pretrained` or None for random weights, the places that a
    run would ask for them, where nothing is fetched).

  Raises:
    ValueError: there are none, or they were trained otherwise.
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
  """Initial parameters, with those of a file where the model is in them.

  Args:
    loaded: from `find_weights`.
    config: from `base_config`.
    parts: from `make_parts`.
    params: freshly initialised, in NumPy.

  Raises:
    ValueError: they do not fit.
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
  """A config whose model has each layer by itself, for counting their work."""
  plain = {'scan': False, 'remat': 'none', 'attention': 'plain'}
  config = config.copy_and_resolve_references()
  config.model.update(
    {name: value for name, value in plain.items() if hasattr(model, name)}
  )
  return config


def fresh_context() -> tasks_task.Context:
  """The `task.Context` in which parameters without a run are evaluated.

  Its key is always the same.
  """
  return tasks_task.Context(key=numerics.random_key(0), step=np.int32(0))


def eval_context(
  state: train_state.TrainState, frozen: Any
) -> tasks_task.Context:
  """The `task.Context` in which the state of a run is evaluated."""
  return fresh_context().replace(
    step=state.step, ema=state.ema, frozen=frozen, task_state=state.task_state
  )


def load_frozen(parts: 'Parts') -> tuple[Any, str | None]:
  """What a task uses and does not train, on the mesh, and its fingerprint."""
  frozen = parts.task.load_frozen(parts.mesh)
  if not jax.tree.leaves(frozen):
    return frozen, None
  found = fingerprint(frozen)
  processes.check_same({'what the task does not train': found})
  return jax.tree.map(
    sharding.put, frozen, sharding.by_rules(frozen, parts.mesh)
  ), found


def fingerprint(tree: Any) -> str:
  """The SHA-256 of all arrays of a pytree, and of their paths."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    x = np.asarray(x)
    digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).data)
  return digest.hexdigest()


def use_compilation_cache(folder: str) -> None:
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


def describe_model(
  config: ConfigDict, params: Any, mesh: jax.sharding.Mesh
) -> str:
  """A line of what is trained, and on what."""
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
  """A line of what a run trains and is evaluated on."""
  apart = data.num_examples.get('validation', 0)
  return (
    f'{config.dataset}: {data.num_train} training and '
    + (f'{apart} validation and ' if apart else '')
    + f'{data.num_test} test images'
    + (f' in {len(data.class_names)} classes' if data.class_names else '')
  )
