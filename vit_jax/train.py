"""One supervised run as a straight line.

Data, model, optimizer, state, weights, steps, numbers, report: each uses only
what came before it.
"""

import contextlib
import functools
import math
import os
import time

import jax

from vit_jax import base_config
from vit_jax import console
from vit_jax import train_state
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint.pretrained import search
from vit_jax.cost import memory
from vit_jax.evaluators import accuracy
from vit_jax.models import variants
from vit_jax.optim import loss_functions
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import checkpointing
from vit_jax.run import metric_log
from vit_jax.run import preemption
from vit_jax.run import run_files
from vit_jax.run import run_lock
from vit_jax.run import setup


@numerics.fixed()
def train_and_evaluate(
  config,
  workdir,
  *,
  loss_fn=loss_functions.softmax_cross_entropy,
  evaluators=None,
  hooks=(),
):
  """Trains as `config` says, going on from the newest checkpoint in `workdir`.

  Messages go to stderr, and to a log where `console.start_logging` opened one.

  Args:
    config: from `base_config`.
    workdir: folder for everything the run leaves.
    loss_fn: (logits, labels) -> loss of each example [B].
    evaluators: more numbers, {name: function from a TrainState to {metric:
      value}}; they are reported as `metric_name`. 'test' is taken.
    hooks: functions (step, state, metrics), called after each step; a hook
      must not keep the state, whose memory the next step uses again.

  Returns:
    (final TrainState, the scalars of the last evaluation).

  Raises:
    ValueError: a setting or a file is not fit for the run, or another run
      writes into `workdir`.
    OSError: `workdir` cannot be written, or was removed.
    preemption.Preempted: SIGTERM came, and the last step is saved.
    KeyboardInterrupt: Ctrl-C came, and the last step is saved.
  """
  if 'test' in (evaluators or {}):
    raise ValueError("evaluators: the name 'test' is taken by the test split")
  # What can be wrong is looked at before anything takes long.
  planned = setup.make_plan(config, evaluators or {})
  setup.use_compilation_cache(config.compilation_cache_dir)
  workdir = os.path.expanduser(workdir)
  with run_lock.RunLock(workdir) as lock:
    processes.main_only(lock.acquire)
    return _run(
      config, workdir, planned, loss_fn, evaluators or {}, hooks, lock
    )


def _run(config, workdir, planned, loss_fn, evaluators, hooks, lock):
  """`train_and_evaluate` in a folder that no other run uses."""
  mesh = planned.mesh
  processes.check_shared(workdir)
  checkpoints = checkpointing.Checkpoints(
    os.path.join(workdir, 'checkpoints'),
    config.keep,
    config.best_metric,
    metric_log.read(os.path.join(workdir, 'metrics.jsonl')),
  )
  if checkpoints.latest_step():
    run_files.check_config(workdir, config)
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
  begin_with = (
    None
    if first_step
    else processes.main_first(
      lambda: search.find(
        config.pretrained,
        config.pretrained_dir,
        model_name=variants.resolve(config.model.name),
        sources=config.weights_sources,
      )
    )
  )
  loaded = (
    init_weights.read(
      begin_with, setup.model_settings(config), config.pretrained_head == 'keep'
    )
    if begin_with
    else None
  )

  data = setup.load_data(config, mesh)
  if first_step:
    run_files.check_data(workdir, data)

  parts = setup.make_parts(config, planned, data, loss_fn)
  accum_steps = memory.find_accum_steps(config, planned, data, parts)
  explained = functools.partial(
    memory.explain_oom, config, accum_steps, parts.abstract_state, mesh
  )
  with explained():
    state = _first_state(
      config, planned, parts, data, checkpoints, first_step, loaded
    )
  del loaded  # hundreds of megabytes

  evaluators = {
    'test': _test_evaluator(parts.model, mesh, data, config, loss_fn),
    **evaluators,
  }
  update = parts.make_update(accum_steps)
  _announce(config, workdir, data, state, mesh, first_step, begin_with)
  if processes.is_main():
    run_files.save(workdir, config, data)
  hooks = [*hooks, lambda *_: lock.check(), lambda *_: checkpoints.check()]
  with metric_log.MetricLog(
    workdir, first_step, writes=processes.is_main()
  ) as written:
    with _explained_stop(lock, checkpoints):
      with preemption.watching(), explained(), checkpoints:
        state = _steps(
          config,
          state,
          first_step,
          data,
          mesh,
          update,
          evaluators,
          hooks,
          checkpoints,
          written,
        )
    results = written.last('accuracy_test') or {
      'step': int(state.step),
      **_numbers(evaluators, state),
    }
    lock.check()
  _conclude(config, workdir, data, results, checkpoints.best_step())
  return state, results


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


def _first_state(config, planned, parts, data, checkpoints, first_step, loaded):
  """The state that a run begins with, or goes on with after `first_step`."""
  if first_step:
    state = checkpoints.restore(first_step, parts.init_fn)
  else:
    state = parts.init_fn(parts.init_key)
  checkpoints.check_room(state)
  if loaded:
    state = train_state.with_params(
      state,
      init_weights.fit(
        loaded,
        parts.model,
        sharding.gather(state.params),
        planned.image_size,
        data.class_names,
        config.dataset,
        resize_patches=config.model.patch_size is not None,
      ),
    )
  return state


def _steps(
  config,
  state,
  first_step,
  data,
  mesh,
  update,
  evaluators,
  hooks,
  checkpoints,
  written,
):
  """The loop: updates, and what is due after some of them."""
  progress = console.Progress(config.total_steps, config.batch)
  batches = data.train(first_step)
  start = time.monotonic()
  metrics = None

  def due(every, step):
    return step == config.total_steps or every and step % every == 0

  def evaluated(step):
    """The numbers of an evaluation, {} if it was cut short."""
    try:
      results = _numbers(evaluators, state)
    except preemption.Preempted:
      return {}  # the resumed run makes up for it
    console.log_info(
      f'step {step}/{config.total_steps}  '
      + '  '.join(f'{name} {value:.4f}' for name, value in results.items())
    )
    if not math.isfinite(results['loss_test']):
      raise ValueError(
        f'the test loss is {results["loss_test"]} at step {step}: lower '
        'config.base_lr. The last checkpoint is that of step '
        f'{checkpoints.latest_step() or 0}'
      )
    return results

  if (
    first_step
    and due(config.eval_every, first_step)
    and written.last('accuracy_test').get('step') != first_step
  ):
    results = evaluated(first_step)
    if preemption.requested():
      raise preemption.Preempted
    written.write(first_step, results)
    checkpoints.save(first_step, state, results)  # which only notes the results

  for step in range(first_step + 1, config.total_steps + 1):
    batch = sharding.put_batch(next(batches), mesh)
    previous = metrics
    state, metrics = update(state, batch)
    for hook in hooks:
      hook(step, state, metrics)

    if step == first_step + 1:
      jax.block_until_ready(metrics)
      console.log_info(
        f'first step done after {time.monotonic() - start:.1f} s, '
        'compiling included'
      )
      progress.start_clock(step)
    else:  # waits: at most two batches are on the device
      _checked(previous, step - 1, config, checkpoints)

    row, results = {}, {}
    if due(config.log_every, step):
      row.update(_checked(metrics, step, config, checkpoints))
      rate = progress.measure(step)
      if rate:
        row['images_per_second_per_device'] = rate / mesh.size
      progress.show(step, row, rate)
    if due(config.eval_every, step):
      _checked(metrics, step, config, checkpoints)
      results = evaluated(step)
      row.update(results)
    if row:
      written.write(step, row)
    if results:
      written.draw()
    stop = preemption.requested()
    save = (
      stop or due(config.checkpoint_every, step) or checkpoints.is_best(results)
    )
    if save:
      _checked(metrics, step, config, checkpoints)
      checkpoints.save(step, state, results)
    if stop:
      console.log_info(f'stopped by {preemption.cause()}: saving step {step}')
      raise preemption.Preempted
    if results or save:
      progress.start_clock(step)
  return state


def _numbers(evaluators, state):
  """{'metric_name': value} of all evaluators."""
  return {
    f'{metric}_{name}': float(value)
    for name, evaluator in evaluators.items()
    for metric, value in evaluator(state).items()
  }


def _checked(metrics, step, config, checkpoints):
  """A step's metrics as Python numbers, if the run may go on with them."""
  numbers = {name: float(x) for name, x in jax.device_get(metrics).items()}
  in_a_row = numbers.pop('skipped_in_a_row', 0)
  finite = all(map(math.isfinite, numbers.values()))
  if not finite and not 0 < in_a_row <= config.skip_nonfinite:
    raise ValueError(
      f'the loss is {numbers["train_loss"]} at step {step} (learning rate '
      f'{numbers["lr"]:.3g}, gradient norm {numbers["grad_norm"]:.3g}'
      + (f', {in_a_row:.0f} in a row' if in_a_row else '')
      + '): lower config.base_lr, set config.grad_norm_clip, or have such '
      'updates skipped with config.skip_nonfinite. The last checkpoint is '
      f'that of step {checkpoints.latest_step() or 0}'
    )
  return numbers


def _test_evaluator(model, mesh, data, config, loss_fn):
  """The evaluator of the test split: accuracy and loss."""
  eval_fn = accuracy.make_eval_fn(model, mesh, loss_fn)
  num_batches = math.ceil(data.num_test / config.batch_eval)

  def test(state):
    batches = console.counting(
      preemption.checked(data.test()), num_batches, 'evaluating'
    )
    numbers = accuracy.evaluate(
      eval_fn, state.params, batches, mesh, data.num_test
    )
    del numbers['count']
    return numbers

  return test


def _announce(config, workdir, data, state, mesh, first_step, begin_with):
  """Says what is about to run."""
  console.log_info(setup.describe_model(config, state.params, mesh))
  console.log_info(
    f'{config.dataset}: {data.num_train} training and '
    f'{data.num_test} test images in {len(data.class_names)} classes'
  )
  if first_step:
    console.log_info(
      f'going on from step {first_step} of {config.total_steps} in {workdir}'
    )
  else:
    epochs = config.total_steps * config.batch / data.num_train
    console.log_info(
      f'starting from {begin_with or "random weights"}: '
      f'{config.total_steps} steps of {config.batch} images, '
      f'{epochs:.1f} epochs'
    )


def _conclude(config, workdir, data, results, best_step):
  """Says how it went, where everything is, and what to do next."""
  console.log_info(
    f'done: {100 * results["accuracy_test"]:.2f} % of {data.num_test} '
    f'test images right, loss {results["loss_test"]:.4f}, after '
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
