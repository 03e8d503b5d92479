"""Training and evaluation of a model, from the settings to the last metrics.

The order is: settings, run folder, weights, data, task and optimizer, state,
steps, metrics. A later part uses only earlier parts.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import console
from vit_jax import train_state
from vit_jax.augment import picture
from vit_jax.checkpoint import metadata
from vit_jax.cost import memory
from vit_jax.optim import given_optimizer
from vit_jax.parallel import compilation_cache
from vit_jax.parallel import numerics
from vit_jax.parallel import preemption
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import active_run
from vit_jax.run import checkpointing
from vit_jax.run import given as given_objects
from vit_jax.run import messages
from vit_jax.run import run_files
from vit_jax.run import run_lock
from vit_jax.run import setup
from vit_jax.run import stopping
from vit_jax.run.start import adopted_settings
from vit_jax.run.start import bit_hyperrule
from vit_jax.run.start import feature_data
from vit_jax.run.start import initial_weights
from vit_jax.run.start import named_evaluators
from vit_jax.run.writers import metric_log
from vit_jax.run.writers import trackers


class Result(NamedTuple):
  """The result of a run."""

  state: train_state.TrainState
  metrics: dict[str, float]  # of the last step
  best_step: int | None = None  # of the checkpoint with the best metric

  @property
  def params(self) -> Any:
    """The final parameters, a nested dict."""
    return self.state.params


@numerics.fixed()
def train_and_evaluate(
  config: ConfigDict,
  workdir: str,
  *,
  data: Any = None,
  task: str | Callable | None = None,
  loss_fn: Callable | None = None,
  optimizer: Any = None,
  evaluators: Mapping[str, Callable] | None = None,
  hooks: Sequence[Callable] = (),
  writers: Sequence[Callable] = (),
) -> Result:
  """Trains a model, or resumes from the newest checkpoint in `workdir`.

  Messages go to stderr, and to a log if `console.start_logging` opened one.

  Args:
    config: settings from `base_config`.
    workdir: folder for all files of the run.
    data: data that replace `config.dataset`; see `vit_jax.data`.
    task: a name that replaces `config.task`, or a function (config, data) ->
      `task.Task`.
    loss_fn: replaces the loss of a task of vit_jax: (outputs, labels) -> loss
      of each example [B]. For classification, logits and class probabilities
      [B, K]; for multi_label, logits and labels [B, K]; for regression,
      standardized outputs and targets [B, T].
    optimizer: an optimizer that replaces the config's optimizer, schedule and
      clipping; see `given_optimizer.resolve`. Rules such as `config.freeze`,
      and `config.skip_nonfinite`, still apply.
    evaluators: additional metrics, {name: function from a TrainState to
      {metric: value}}. They are reported as `metric_name`.
    hooks: functions (step, state, metrics), called after each step. `metrics`
      are those of the update and, if the step was evaluated, of the
      evaluation. A hook that raises `vit_jax.Stop(reason)` ends the run. The
      next step reuses the memory of the state, so a hook that keeps it must
      keep `state.copy()`.
    writers: functions (step, numbers, pictures), called by process 0 whenever
      the run writes metrics, {name: number}, or pictures, {name: uint8
      [height, width, 3]}. The arguments are copies. A writer that fails gets a
      warning and is not called again.

  Returns:
    `Result`: the final TrainState, the metrics of the last step, and the step
    of the best checkpoint by `config.best_metric`.

  Raises:
    ValueError: a setting or a file cannot be used, or another run writes into
      `workdir`.
    OSError: `workdir` cannot be written, or was removed.
    preemption.Preempted: SIGTERM arrived. The last step is saved.
    KeyboardInterrupt: Ctrl-C was pressed. The last step is saved, unless Ctrl-C
      was pressed twice.
  """
  # Settings are checked before any slow work.
  given = given_objects.Given(
    data, task, loss_fn, optimizer, evaluators or {}, hooks, tuple(writers)
  )
  workdir = os.path.expanduser(workdir)
  config = bit_hyperrule.adopt(given.in_config(config), workdir, data)
  config = adopted_settings.adopt(config, workdir)
  mesh = setup.check(config, given)
  memory.check_batches(config)
  compilation_cache.use(config.compilation_cache_dir)
  with (
    run_lock.RunLock(workdir) as lock,
    trackers.opened(config.tracker, given.writers) as writers,
  ):
    processes.main_only(lock.acquire)
    given = dataclasses.replace(given, writers=writers)
    return _run(config, workdir, mesh, given, lock)


def _run(config, workdir, mesh, given, lock):
  """Runs `train_and_evaluate` in a locked folder."""
  checkpoints, first_step = _open(config, workdir)
  loaded = None if first_step else initial_weights.find(config)[0]
  data = setup.load_data(config, mesh, given.data)
  if first_step:
    run_files.check_data(workdir, data)
    run_files.check_given(workdir, given)
  data = feature_data.encode_data(config, mesh, data, given, workdir, loaded)
  parts = setup.make_parts(config, mesh, data, given)
  frozen, fingerprint = initial_weights.load_frozen(parts)
  if first_step:
    run_files.check_frozen(workdir, fingerprint)
  chosen = run_files.Chosen(workdir, first_step)
  evaluators = _make_evaluators(
    config, parts, frozen, given.evaluators, workdir, chosen
  )
  if config.patience:
    _watched(config, parts.task, evaluators.regular)
  checkpoints.best_direction = setup.best_direction(
    config, parts.task, evaluators.regular
  )
  batches = setup.open_batches(parts, first_step)

  accum_steps = memory.find_accum_steps(config, parts, frozen)
  explain_oom = functools.partial(
    memory.explain_oom, config, accum_steps, parts.abstract_state, mesh
  )
  source = loaded.source if loaded else 'random weights'
  start = metadata.read_start(workdir) if first_step else {}
  if loaded:
    start = metadata.start_of(loaded.description)
  with explain_oom():
    state = _first_state(config, parts, checkpoints, first_step, loaded)
  del loaded  # hundreds of megabytes
  update = parts.make_update(accum_steps)
  _announce(config, workdir, parts, state, first_step, source, given)
  if processes.is_main():
    deployed = dataclasses.replace(parts.task.deployed, **start)
    run_files.save(workdir, config, data, deployed, given, fingerprint)
    trackers.start(
      given.writers,
      workdir,
      settings=base_config.flatten(config),
      first_step=first_step,
      total_steps=parts.total_steps,
    )

  with metric_log.MetricLog(
    workdir,
    first_step,
    processes.is_main(),
    parts.task.main_metric,
    given.writers,
  ) as metrics:
    run = _make_active_run(
      config, parts, evaluators, given, checkpoints, metrics
    )
    checks = (lock.check, checkpoints.check)
    with _explained_stop(lock, checkpoints):
      with preemption.watching(), explain_oom(), checkpoints:
        run.catch_up(first_step, state)
        if not first_step and base_config.augments(config):
          batches = _draw_first_batch(parts, batches, metrics)
        advance = functools.partial(_advance, update, frozen, parts.mesh)
        state = _steps(run, state, batches, advance, checks)
        run.complete(int(state.step), state)
    results = {'step': int(state.step), **metrics.at(int(state.step))}
    lock.check()
  best_step = checkpoints.best_step()
  _conclude(config, workdir, parts, results, best_step)
  return Result(state, results, best_step)


def _advance(update, frozen, mesh, state, batch):
  """Returns (the next state, metrics of the update) for a batch of arrays."""
  return update(state, sharding.put_batch(batch, mesh), frozen)


def _steps(run, state, batches, advance, checks):
  """Runs the training loop: an update, then logging, evaluation and saving."""
  step = int(state.step)
  while not run.is_over(step):
    with run.keeping(step, state, 'the training data'):
      batch = next(batches)
    state, metrics = advance(state, batch)
    step += 1
    for check in checks:
      check()
    run.updated(step, metrics)
    run.log(step, metrics)
    run.evaluate(step, state)
    run.write(step, state)
    run.call_hooks(step, state, metrics)
    run.save(step, state)
  return state


# --- before the steps --------------------------------------------------------


def _open(config, workdir):
  """Returns (checkpoints of the run, the step to resume from or 0)."""
  processes.check_shared(workdir)
  checkpoints = checkpointing.Checkpoints(
    os.path.join(workdir, 'checkpoints'),
    config.keep,
    config.best_metric,
    rows=metric_log.read(os.path.join(workdir, 'metrics.jsonl')),
  )
  if checkpoints.latest_step():
    run_files.check_config(workdir, config, checkpoints.latest_step())
  first_step = processes.main_only(checkpoints.set_damaged_aside) or 0
  checkpoints.reload()
  processes.check_same(
    {
      'the newest and the best checkpoint step': [
        checkpoints.latest_step(),
        checkpoints.best_step(),
      ],
      **{
        f'config.{name}': value
        for name, value in base_config.flatten(config).items()
      },
    }
  )
  return checkpoints, first_step


def _make_evaluators(config, parts, frozen, others, workdir, chosen):
  """Returns the `Evaluators` of the task, of the config and of the caller.

  The tables of an evaluation are written into `workdir`. What an evaluation
  chooses is kept in `chosen`, a `run_files.Chosen`. Later evaluations of the
  same step use it.
  """
  data = dataclasses.replace(parts.data, watch=preemption.checked)
  pictures = {}

  def of_task(name, evaluator):
    def evaluate(state):
      step = int(state.step)
      sets = {'params': ''}  # suffix of the metrics
      if state.ema is not None:
        sets = {'ema': '', 'params': '_raw'}
      found = {}
      for params_set, suffix in sets.items():
        context = setup.eval_context(state, frozen, chosen.at(step, params_set))
        found[suffix] = evaluator(getattr(state, params_set), context)
      chosen.keep(step, {k: found[suffix].chosen for k, suffix in sets.items()})
      for title, drawn in found[''].pictures.items():
        pictures[f'{title}_{name}'] = drawn
      if processes.is_main():
        for table, rows in found[''].tables.items():
          path = os.path.join(workdir, f'{table}_{name}.csv')
          metric_log.write_table(path, rows)
      return {
        f'{metric}_{name}{suffix}': float(value)
        for suffix, evaluation in found.items()
        for metric, value in evaluation.numbers.items()
      }

    return evaluate

  def of_caller(name, evaluator):
    return lambda state: {
      f'{metric}_{name}': float(value)
      for metric, value in evaluator(state).items()
    }

  regular = {
    name: of_task(name, evaluator)
    for name, evaluator in parts.task.evaluators(
      parts.task, data, parts.mesh
    ).items()
  }
  at_the_end = {}
  if 'validation' in regular and 'test' in regular:
    at_the_end['test'] = regular.pop('test')
  named = named_evaluators.of_model(
    *(parts.task.deployed, config, parts.abstract_state.params, parts.data),
    'validation' if 'validation' in parts.data.sources else 'test',
    parts.mesh,
  )
  regular.update({name: of_task(name, x) for name, x in named.items()})
  regular.update({name: of_caller(name, x) for name, x in others.items()})
  every = {
    name: settings.every
    for name, settings in config.evaluators.items()
    if settings.every is not None
  }
  return active_run.Evaluators(regular, at_the_end, pictures, every)


def _make_active_run(config, parts, evaluators, given, checkpoints, metrics):
  """Returns the `ActiveRun`, which the loop calls after each update."""
  hooks = [stopping.agreed(hook) for hook in given.hooks]
  if config.patience:
    watched = _watched(config, parts.task, evaluators.regular)
    hooks.append(stopping.Patience(*watched, config.patience, metrics))
  return active_run.ActiveRun(
    active_run.Cadence(
      parts.total_steps,
      config.log_every,
      config.eval_every,
      config.checkpoint_every,
    ),
    evaluators,
    hooks,
    console.Progress(parts.total_steps, parts.batch),
    checkpoints,
    metrics,
    num_devices=parts.mesh.size,
    skip_nonfinite=config.skip_nonfinite,
    advice=given_optimizer.advice(given.optimizer),
    find_fault=parts.task.find_fault,
  )


def _watched(config, task, regular):
  """Returns (metric, its better direction) for `config.patience`.

  Raises:
    ValueError: no evaluator measures a metric.
  """
  split = 'validation' if 'validation' in regular else 'test'
  name, direction = f'{task.main_metric}_{split}', task.metric_direction
  if config.best_metric:
    name = config.best_metric
    direction = setup.best_direction(config, task, regular)
  elif split not in regular:
    raise ValueError(
      f'config.patience={config.patience} needs evaluations, but the data have '
      'neither a validation split nor a test split. Give one of them, or set '
      'config.best_metric to a metric of an evaluator'
    )
  return name, direction


def _first_state(config, parts, checkpoints, first_step, loaded):
  """Returns a new state, or the state of the checkpoint of `first_step`."""
  if first_step:
    state = checkpoints.restore(first_step, parts.init_fn)
  else:
    state = parts.init_fn(parts.keys.init)
  checkpoints.check_room(state)
  if loaded:
    params = initial_weights.fit(
      loaded, config, parts, sharding.gather(state.params)
    )
    state = train_state.with_params(state, params, parts.task)
  elif not first_step:
    initial_weights.warn_of_frozen(parts, parts.frozen_paths)
  return state


@contextlib.contextmanager
def _explained_stop(lock, checkpoints):
  """Logs the step to resume from; explains errors of a removed folder."""
  try:
    yield
  except OSError:
    lock.check()  # raises a clearer error if the folder is gone
    raise
  except (KeyboardInterrupt, preemption.Preempted):
    console.log_info(
      'to resume from step '
      f'{checkpoints.latest_step() or 0}, start the same command again'
    )
    raise


def _draw_first_batch(parts, batches, metrics):
  """Draws the augmented first batch; returns the batches, with the first."""
  batch = next(batches)
  rows = picture.first_rows(
    parts.task.checked_transform,
    jax.random.fold_in(parts.keys.transform, 0),
    parts.put_batch(batch),
    sharding.replicated(parts.mesh),
  )
  drawn = picture.draw_rows(rows, parts.data.class_names)
  metrics.write(1, {}, {'augmented': drawn})
  return itertools.chain([batch], batches)


# --- messages ----------------------------------------------------------------


def _announce(config, workdir, parts, state, first_step, source, given):
  """Logs the model, the data, the optimizer, the weights and the length."""
  data, total_steps = parts.data, parts.total_steps
  console.log_info(
    messages.describe_model(
      config, state.params, parts.mesh, parts.frozen_paths
    )
  )
  console.log_info(messages.describe_data(config, data))
  for line in (
    *messages.describe_balance(config, data),
    *messages.warn_of_flips(config, data),
    *messages.describe_optimizer(config, parts, given),
    *messages.warn_of_pixels(config),
  ):
    console.log_info(line)
  if first_step:
    console.log_info(
      f'resuming from step {first_step} in {workdir}; the run has '
      f'{total_steps} steps of {parts.batch} images'
    )
  else:
    epochs = total_steps * parts.batch / (data.num_train or math.inf)
    console.log_info(
      f'starting from {source}: {total_steps} steps of {parts.batch} images'
      + (f', {epochs:.1f} epochs' if data.num_train else '')
    )


def _conclude(config, workdir, parts, results, best_step):
  """Logs the test metrics, the paths of the files and the next commands."""
  done = 'there is no test split'
  if parts.data.num_test:
    metrics = {
      name.removesuffix('_test'): value
      for name, value in results.items()
      if name.endswith('_test')
    }
    done = parts.task.summarize(metrics, parts.data.num_test)
  console.log_info(f'done: {done}, after {results["step"]} steps')
  if best_step:
    console.log_info(
      f'best {config.best_metric} after {best_step} steps: '
      f'{workdir}/checkpoints/{best_step}'
    )
  folder = pathlib.Path(workdir)
  files = sorted(
    path.name
    for path in folder.iterdir()
    if path.suffix in ('.csv', '.png') or path.name == 'log.txt'
  )
  console.log_info(
    f'written to {workdir}: '
    + ', '.join(['checkpoints', 'metrics.jsonl', *files])
  )
  if any(folder.glob('*tfevents*')):
    console.log_info(f'see the curves: tensorboard --logdir={workdir}')
  if config.pretrained == 'scratch' and config.task == 'classification':
    console.log_info(
      'next, fine-tune published weights on your own images (see '
      'docs/weights.md): python -m vit_jax.main '
      '--config=configs/vit.py:b16,/path/to/photos'
    )
