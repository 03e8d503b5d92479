"""One run as a straight line.

Settings, folder, weights, data, task and optimizer, state, steps, numbers: each
uses only what stands before it.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import os
from typing import NamedTuple

from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import console
from vit_jax import train_state
from vit_jax.cost import memory
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import active_run
from vit_jax.run import checkpointing
from vit_jax.run import metric_log
from vit_jax.run import preemption
from vit_jax.run import run_files
from vit_jax.run import run_lock
from vit_jax.run import setup
from vit_jax.tasks import classification


class Result(NamedTuple):
  """What a run ends with."""

  state: train_state.TrainState
  metrics: dict[str, float]  # of the last evaluation


@numerics.fixed()
def train_and_evaluate(
  config: ConfigDict,
  workdir: str,
  *,
  make_task: Callable | None = None,
  loss_fn: Callable | None = None,
  make_direction: Callable | None = None,
  evaluators: Mapping[str, Callable] | None = None,
  hooks: Sequence[Callable] = (),
) -> Result:
  """Trains as `config` says, going on from the newest checkpoint in `workdir`.

  Messages go to stderr, and to a log where `console.start_logging` opened one.

  Args:
    config: from `base_config`.
    workdir: folder for everything the run leaves.
    make_task: (config, data) -> `task.Task`; None: as `config.task` names it.
    loss_fn: of a classifier, in place of the cross-entropy: (logits, rows of
      labels) -> loss of each example [B].
    make_direction: an optimizer, in place of that of `config.optimizer`; see
      `optimizer.make_optimizer`.
    evaluators: more numbers, {name: function from a TrainState to {metric:
      value}}; they are reported as `metric_name`.
    hooks: functions (step, state, metrics), called after each step; a hook
      must not keep the state, whose memory the next step uses again.

  Returns:
    `Result`: the final TrainState, and the numbers of the last evaluation.

  Raises:
    ValueError: a setting or a file is not fit for the run, or another run
      writes into `workdir`.
    OSError: `workdir` cannot be written, or was removed.
    preemption.Preempted: SIGTERM came, and the last step is saved.
    KeyboardInterrupt: Ctrl-C came, and the last step is saved.
  """
  # What can be wrong is looked at before anything takes long.
  mesh = setup.check(config, evaluators or {}, make_task)
  if loss_fn:
    make_task = _with_loss(config, make_task, loss_fn)
  setup.use_compilation_cache(config.compilation_cache_dir)
  workdir = os.path.expanduser(workdir)
  with run_lock.RunLock(workdir) as lock:
    processes.main_only(lock.acquire)
    given = _Given(make_task, make_direction, evaluators or {}, hooks)
    return _run(config, workdir, mesh, given, lock)


class _Given(NamedTuple):
  """What a caller has of its own."""

  make_task: Callable | None
  make_direction: Callable | None
  evaluators: dict[str, Callable]
  hooks: Sequence[Callable]


def _with_loss(config, make_task, loss_fn):
  """The maker of a classifier with another loss."""
  if make_task or config.task != 'classification':
    raise ValueError(
      'loss_fn is the loss of a classifier; a task of its own has its own loss'
    )
  return functools.partial(classification.make, loss_fn=loss_fn)


def _run(config, workdir, mesh, given, lock):
  """`train_and_evaluate` in a folder that no other run uses."""
  checkpoints, first_step = _open(config, workdir)
  loaded = None if first_step else setup.find_weights(config)[0]
  data = setup.load_data(config, mesh)
  if first_step:
    run_files.check_data(workdir, data)
  parts = setup.make_parts(
    config, mesh, data, given.make_task, given.make_direction
  )
  frozen, fingerprint = setup.load_frozen(parts)
  if first_step:
    run_files.check_frozen(workdir, fingerprint)
  evaluators = _make_evaluators(parts, frozen, given.evaluators)
  setup.check_best_metric(config, parts.task, evaluators.regular)

  accum_steps = memory.find_accum_steps(config, parts, frozen)
  explain_oom = functools.partial(
    memory.explain_oom, config, accum_steps, parts.abstract_state, mesh
  )
  source = loaded.source if loaded else 'random weights'
  with explain_oom():
    state = _first_state(config, parts, checkpoints, first_step, loaded)
  del loaded  # hundreds of megabytes
  update = parts.make_update(accum_steps)
  _announce(config, workdir, parts, state, first_step, source)
  if processes.is_main():
    run_files.save(workdir, config, data, parts.task, fingerprint)

  with metric_log.MetricLog(
    workdir, first_step, processes.is_main(), parts.task.main_metric
  ) as metrics:
    run = _make_active_run(config, parts, evaluators, checkpoints, metrics)
    checks = [lambda *_: lock.check(), lambda *_: checkpoints.check()]
    with _explained_stop(lock, checkpoints):
      with preemption.watching(), explain_oom(), checkpoints:
        state = _steps(
          run, state, parts, update, frozen, [*given.hooks, *checks], first_step
        )
    results = metrics.last(f'{parts.task.main_metric}_test')
    if not results:  # the run was whole before, and has lost its numbers
      results = {'step': int(state.step), **evaluators.all(state)}
    lock.check()
  _conclude(config, workdir, parts, results, checkpoints.best_step())
  return Result(state, results)


def _steps(run, state, parts, update, frozen, hooks, first_step):
  """The loop: an update, and what is due after it."""
  batches = parts.data.train(first_step)
  run.catch_up(first_step, state)
  for step in range(first_step + 1, parts.total_steps + 1):
    if run.is_over(step - 1):
      break
    batch = sharding.put_batch(next(batches), parts.mesh)
    state, metrics = update(state, batch, frozen)
    for hook in hooks:
      hook(step, state, metrics)
    run.updated(step, metrics)
    run.log(step, metrics)
    run.evaluate(step, state)
    run.write(step, state)
    run.save(step, state)
  return state


# --- before the steps --------------------------------------------------------


def _open(config, workdir):
  """(checkpoints in the folder of the run, the step to go on from or 0)."""
  processes.check_shared(workdir)
  checkpoints = checkpointing.Checkpoints(
    os.path.join(workdir, 'checkpoints'),
    config.keep,
    config.best_metric,
    best_direction=config.best_direction,
    rows=metric_log.read(os.path.join(workdir, 'metrics.jsonl')),
  )
  if checkpoints.latest_step():
    run_files.check_config(workdir, config, checkpoints.latest_step())
  first_step = processes.main_only(checkpoints.set_damaged_aside) or 0
  checkpoints.reload()
  processes.check_same(
    {
      'the steps of the newest and of the best checkpoint': [
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


class _Evaluators(NamedTuple):
  """Functions from a TrainState to {'metric_name': number}, by name.

  Where there is a validation part, the test part is read once, at the end.
  """

  regular: dict[str, active_run.Evaluator]  # at `eval_every`
  at_the_end: dict[str, active_run.Evaluator]  # after the last step alone

  def all(self, state):
    """The numbers of all of them."""
    numbers = {}
    for evaluator in (*self.regular.values(), *self.at_the_end.values()):
      numbers.update(evaluator(state))
    return numbers


def _make_evaluators(parts, frozen, others):
  """The `_Evaluators` of a task, and of a caller."""
  data = dataclasses.replace(parts.data, watch=preemption.checked)

  def of_task(name, evaluator):
    def evaluate(state):
      context = setup.eval_context(state, frozen)
      sets = {'': state.params}
      if state.ema is not None:
        sets = {'': state.ema, '_raw': state.params}
      return {
        f'{metric}_{name}{suffix}': float(value)
        for suffix, params in sets.items()
        for metric, value in evaluator(params, context).numbers.items()
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
  regular.update({name: of_caller(name, x) for name, x in others.items()})
  return _Evaluators(regular, at_the_end)


def _make_active_run(config, parts, evaluators, checkpoints, metrics):
  """What the loop calls after each update."""
  return active_run.ActiveRun(
    active_run.Cadence(
      parts.total_steps,
      config.log_every,
      config.eval_every,
      config.checkpoint_every,
    ),
    _watched(config, parts.task, evaluators.regular),
    list(evaluators.regular.values()),
    list(evaluators.at_the_end.values()),
    console.Progress(parts.total_steps, config.batch),
    checkpoints,
    metrics,
    num_devices=parts.mesh.size,
    skip_nonfinite=config.skip_nonfinite,
  )


def _watched(config, task, regular):
  """The number that `config.patience` looks at."""
  split = 'validation' if 'validation' in regular else 'test'
  name, direction = f'{task.main_metric}_{split}', task.metric_direction
  if config.best_metric:
    name = config.best_metric
    direction = config.best_direction or checkpointing.direction_of(name)
  return active_run.Watched(name, direction, config.patience)


def _first_state(config, parts, checkpoints, first_step, loaded):
  """The state that a run begins with, or goes on with after `first_step`."""
  if first_step:
    state = checkpoints.restore(first_step, parts.init_fn)
  else:
    state = parts.init_fn(parts.keys.init)
  checkpoints.check_room(state)
  if loaded:
    params = setup.fit_weights(
      loaded, config, parts, sharding.gather(state.params)
    )
    state = train_state.with_params(state, params, parts.task)
  return state


@contextlib.contextmanager
def _explained_stop(lock, checkpoints):
  """Says what an exception leaves, and names its first cause."""
  try:
    yield
  except OSError:
    lock.check()  # files cannot be written to a folder that is gone
    raise
  except (KeyboardInterrupt, preemption.Preempted):
    console.log_info(
      f'the same command goes on from step {checkpoints.latest_step() or 0}'
    )
    raise


# --- messages ----------------------------------------------------------------


def _announce(config, workdir, parts, state, first_step, source):
  """Says what is about to run."""
  data, total_steps = parts.data, parts.total_steps
  console.log_info(setup.describe_model(config, state.params, parts.mesh))
  console.log_info(setup.describe_data(config, data))
  if first_step:
    console.log_info(
      f'going on from step {first_step} of {total_steps} in {workdir}'
    )
  else:
    epochs = total_steps * config.batch / data.num_train
    console.log_info(
      f'starting from {source}: {total_steps} steps of {config.batch} images, '
      f'{epochs:.1f} epochs'
    )


def _conclude(config, workdir, parts, results, best_step):
  """Says how it went, where everything is, and what to do next."""
  numbers = {
    name.removesuffix('_test'): value
    for name, value in results.items()
    if name.endswith('_test')
  }
  console.log_info(
    f'done: {parts.task.summarize(numbers, parts.data.num_test)}, after '
    f'{results["step"]} steps'
  )
  if best_step:
    console.log_info(
      f'best {config.best_metric} after {best_step} steps: '
      f'{workdir}/checkpoints/{best_step}'
    )
  console.log_info(
    f'written to {workdir}: checkpoints, metrics.jsonl, progress.png, log.txt'
  )
  console.log_info(f'see the curves: tensorboard --logdir={workdir}')
  if config.pretrained == 'scratch':
    console.log_info(
      'next, fine-tune published weights (see README) on your own '
      'images: python -m vit_jax.main '
      '--config=configs/vit.py:b16,/path/to/photos'
    )
