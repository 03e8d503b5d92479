"""Evaluates a trained model on an entire test split."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_jax import base_config
from vit_jax import console
from vit_jax import tasks
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import search
from vit_jax.evaluators import options
from vit_jax.models import architecture
from vit_jax.models import variants
from vit_jax.parallel import numerics
from vit_jax.parallel import preemption
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import checkpointing
from vit_jax.run import given as given_objects
from vit_jax.run import messages
from vit_jax.run import run_files
from vit_jax.run import setup
from vit_jax.run.start import adopted_settings
from vit_jax.run.start import bit_hyperrule
from vit_jax.run.start import initial_weights
from vit_jax.run.start import named_evaluators
from vit_jax.tasks import task as tasks_task


@numerics.fixed()
def evaluate_only(
  config: ConfigDict,
  workdir: str,
  *,
  trained: trained_model.TrainedModel | None = None,
  data: Any = None,
  task: str | Callable | None = None,
  loss_fn: Callable | None = None,
  optimizer: Any = None,
  raw: bool = False,
  by_class: bool = False,
) -> dict[str, Any]:
  """Evaluates trained weights on the entire test split.

  It appends a line to `workdir`/evaluations.jsonl. A run in this folder is not
  changed, but if its task is a user's own, its damaged checkpoints are moved to
  the folder `checkpoints_damaged`.

  Args:
    config: settings from `base_config`.
    workdir: folder of the run to evaluate, or a folder for the metrics.
    trained: the model to evaluate. None: the model that `config` and `workdir`
      specify.
    data: as in `train.train_and_evaluate`; so are the next three.
    task: task of the run.
    loss_fn: loss of the run.
    optimizer: optimizer of the run.
    raw: whether to evaluate the parameters of the run in `workdir` in place of
      their moving average. `trained` is already one of them.
    by_class: whether the result has 'classes', a list of the numbers of each
      class, which the file does not have.

  Returns:
    The appended line, as a dict: {'loss', 'count', the metrics of the task,
    such as 'accuracy', …}.

  Raises:
    ValueError: the weights, the settings and the data do not match.
    preemption.Preempted: SIGTERM arrived. No metrics are written.
  """
  if trained is None:
    config = bit_hyperrule.adopt(config, workdir, data)
    config = adopted_settings.adopt(config, workdir)
  base_config.validate(config)
  options.check_towers(
    {name: x.type for name, x in config.evaluators.items()},
    trained.source if trained else 'the model of the run',
  )
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor
  )
  sharding.check_batch('batch_eval', config.batch_eval, 1, mesh)
  given = given_objects.Given(data, task, loss_fn, optimizer)
  config = given.in_config(config)
  config.task = tasks.trained_task(config.task)
  if not callable(task) and config.task == 'own':
    raise _unknown_task(trained.source if trained else workdir)
  if callable(task) or not hasattr(tasks.get_module(config.task), 'of_model'):
    evaluated = _load_task(config, workdir, mesh, given, raw)
  else:
    trained = trained or _load(config, workdir, raw)
    evaluated = _load_trained(config, mesh, trained, given)
  source, params_set, task, data, params, context = evaluated
  data = dataclasses.replace(data, watch=preemption.checked)
  evaluator = task.evaluators(task, data, mesh).get('test')
  if evaluator is None:
    raise ValueError(
      'the task has no evaluator of the test split: the data have only the '
      f'splits {", ".join(data.sources)}'
    )
  names = data.class_names or task.deployed.class_names
  others = named_evaluators.of_model(
    dataclasses.replace(task.deployed, class_names=names),
    *(config, params, data, 'test', mesh),
  )
  with preemption.watching():
    found = evaluator(params, context)
    measured = named_evaluators.measure(others, params, context)
  numbers, tables = {**found.numbers, **measured.numbers}, found.tables
  if by_class and 'classes' not in tables:
    raise ValueError(f'the task {config.task} has no numbers by class')
  if not loss_fn and _has_own_loss(source):
    del numbers['loss']
    console.log_info(
      'warning: the run was trained with a loss_fn, which is only known in '
      'Python, so the loss is not reported'
    )
  row = {
    'weights': os.path.abspath(source) if os.path.exists(source) else source,
    'params_set': params_set,
    'dataset': config.dataset,
    'split': config.test_split,
    'image_size': data.image_size,
    **numbers,
    'count': data.num_test,
  }
  row = run_files.append_evaluation(workdir, row)
  console.log_info(
    f'{task.summarize(numbers, data.num_test)}; written to '
    f'{workdir}/evaluations.jsonl'
  )
  return {**row, 'classes': tables['classes']} if by_class else row


def _has_own_loss(source):
  """Returns whether weights are a checkpoint of a run with a `loss_fn`."""
  run = os.path.dirname(os.path.dirname(source))
  return bool((run_files.read_given(run) or {}).get('loss_fn'))


def _load_data(config, mesh, given):
  data = setup.load_data(config, mesh, given.data, streams=True)
  console.log_info(messages.describe_data(config, data))
  if not data.num_test:
    raise ValueError(
      'the data have no test split, so there is nothing to evaluate. Give '
      'test=… with the data'
    )
  return data


def _load_trained(config, mesh, trained, given):
  """Returns what `_load_task` returns, for a model of a task of vit_jax.

  The run's own state is not needed, so weights files can be evaluated, too.
  """
  image_size = base_config.image_size(config)
  _check_task(trained, config)
  console.log_info(f'{trained.source}: {trained}')
  if trained.trained_size != image_size:
    resampled = architecture.has_positions(weights_file.flatten(trained.params))
    console.log_info(
      'the model was trained on images of {} x {}'.format(*trained.trained_size)
      + (': its position embeddings are resampled' if resampled else '')
    )
  data = _load_data(config, mesh, given)
  task = tasks.get_module(config.task).of_model(
    trained.model,
    deployed=trained.description,
    data=data,
    **({'loss_fn': given.loss_fn} if given.loss_fn else {}),
  )
  setup.check_samples(task, data)
  params, chosen = trained.params, None
  if trained.thresholds:  # they are matched as the biases of the head are
    head = {**params['head'], 'thresholds': np.float64(trained.thresholds)}
    params = {**params, 'head': head}
  if trained.output != 'identity' and data.class_names:
    params = class_mapping.match(
      params,
      trained.class_names,
      data.class_names,
      trained.source,
      config.dataset,
    )
  if trained.thresholds:
    head = dict(params['head'])
    chosen = {'thresholds': tuple(head.pop('thresholds').tolist())}
    params = {**params, 'head': head}
  params = jax.tree.map(sharding.put, params, sharding.by_rules(params, mesh))
  context = setup.fresh_context().replace(chosen=chosen)
  return trained.source, trained.params_set, task, data, params, context


def _unknown_task(source):
  """Returns the error for a model of a user's own task."""
  return ValueError(
    f'{source} was trained with a task of your own, so its metrics are only '
    'known in Python. Call vit_jax.run.evaluation.evaluate_only(config, '
    'workdir, task=…) there, with the function that makes the task'
  )


def _check_task(trained, config):
  """Raises ValueError unless the model was trained for the config's task."""
  if trained.task == config.task:
    for name, value in config.targets.items():
      stored = getattr(trained.targets, name, ())
      if value and tuple(value) != tuple(stored):
        raise ValueError(
          f'config.targets.{name}={value} does not match {trained.source}, '
          f'which was trained with {stored}. Use config.targets.{name}={stored}'
        )
    if not trained.model.num_classes:
      raise ValueError(
        f'{trained.source}: the weights have no head, so nothing is predicted '
        'that could be evaluated. Use weights with a head, or measure the '
        'features with the evaluators knn, few_shot or linear_probe'
      )
    return
  if trained.task == 'own':
    raise _unknown_task(trained.source)
  raise ValueError(
    f'{trained.source} was trained for the task {trained.task}, not for '
    f'config.task={config.task}. Use config.task={trained.task}'
  )


def _load_task(config, workdir, mesh, given, raw):
  """Returns the parts of an evaluation, for a run of another task.

  They are (source, 'params' or 'ema', task, data, params, context).
  """
  checkpoints = checkpointing.Checkpoints(
    os.path.join(workdir, 'checkpoints'), config.keep
  )
  step = processes.main_only(checkpoints.set_damaged_aside)
  if not step:
    raise ValueError(
      f'there is nothing to evaluate: workdir={workdir} has no checkpoint. Use '
      'the workdir=… of a run'
    )
  checkpoints.reload()
  data = _load_data(config, mesh, given)
  parts = setup.make_parts(config, mesh, data, given)
  frozen, _ = initial_weights.load_frozen(parts)
  state = checkpoints.restore(step, parts.init_fn)
  checkpoints.close()
  if raw and state.ema is None:
    raise ValueError(
      f'raw cannot be used: the run in workdir={workdir} has no moving '
      'average, so it has one set of parameters. Do not set raw'
    )
  params_set = 'params' if state.ema is None or raw else 'ema'
  chosen = metadata.read_chosen(workdir, step, params_set)
  return (
    f'{workdir}/checkpoints/{step}',
    params_set,
    parts.task,
    parts.data,
    getattr(state, params_set),
    setup.eval_context(state, frozen, chosen),
  )


def _load(config, workdir, raw):
  """Loads the model to evaluate, and checks it against the settings."""
  settings = tasks_task.model_settings(config)
  return trained_model.load_model(
    processes.main_first(lambda: _source(config, workdir)),
    model_name=_name(settings.pop('name')),
    overrides=settings,
    image_size=base_config.image_size(config),
    raw=raw,
  )


def _name(name):
  """Returns the name of an architecture; None for that of the weights."""
  return None if name == 'weights' else name


def _source(config, workdir):
  """Returns the path to evaluate: the run in `workdir`, or other weights.

  If `config.pretrained` is the run's initial weights, the run is evaluated. So
  a user can add `config.eval_only=True` to the command of a run to evaluate it.
  """
  if trained_model.is_run(workdir):
    stored = metadata.read_config(workdir)
    if config.pretrained in ('model', 'scratch', stored.get('pretrained')):
      return workdir
  if config.pretrained == 'scratch':
    raise ValueError(
      f'there is nothing to evaluate: workdir={workdir} has no checkpoint, '
      "and config.pretrained='scratch'. Use the workdir=… of a run, or set "
      'config.pretrained to weights'
    )
  return search.find(
    config.pretrained,
    config.pretrained_dir,
    model_name=_name(config.model.name) and variants.resolve(config.model.name),
    sources=config.weights_sources,
  )
