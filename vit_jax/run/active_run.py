"""The work of a run between updates: logging, evaluating, saving, stopping."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import math
import time
from typing import Any

import jax

from vit_jax import console
from vit_jax import train_state
from vit_jax.parallel import preemption
from vit_jax.parallel import processes
from vit_jax.run import checkpointing
from vit_jax.run import fingerprints
from vit_jax.run import stopping
from vit_jax.run.writers import metric_log

Evaluator = Callable  # TrainState -> {'metric_name': value}


@dataclasses.dataclass(frozen=True)
class Cadence:
  """Intervals of logging, evaluation and saving in steps; 0: only the last."""

  total_steps: int
  log_every: int
  eval_every: int
  checkpoint_every: int

  def is_due(self, every: int, step: int) -> bool:
    """Returns whether `step` is a multiple of `every`, or the last step."""
    return step == self.total_steps or bool(every) and step % every == 0


_MAX_FAULTS = 3  # logged steps in a row with a fault


@dataclasses.dataclass(frozen=True)
class Evaluators:
  """Functions from a TrainState to {'metric_NAME': value}, by NAME.

  If there is a validation split, the test split is evaluated once, at the end.
  """

  regular: Mapping[str, Evaluator]  # at `eval_every`
  at_the_end: Mapping[str, Evaluator]  # only after the last step
  # {name: picture} that the evaluators drew and nobody has written yet
  pictures: dict[str, Any] = dataclasses.field(default_factory=dict)
  # {name: steps between calls} of those that are not called at `eval_every`
  every: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def all(self) -> dict[str, Evaluator]:
    return {**self.regular, **self.at_the_end}

  def missing(self, row: Mapping[str, Any]) -> dict[str, Evaluator]:
    """Returns the evaluators that have no metric in a row of metrics."""
    found = set()
    for metric in row:
      names = [
        name
        for name in self.all
        if metric.removesuffix('_raw').endswith(f'_{name}')
      ]
      found |= {max(names, key=len, default='')}  # 'my_test', not 'test'
    return {name: x for name, x in self.all.items() if name not in found}


class ActiveRun:
  """A run in progress. The loop calls its methods in order after an update."""

  def __init__(
    self,
    cadence: Cadence,
    evaluators: Evaluators,
    hooks: Sequence[Callable],
    progress: console.Progress,
    checkpoints: checkpointing.Checkpoints,
    metrics: metric_log.MetricLog,
    *,
    num_devices: int,
    skip_nonfinite: int = 0,
    advice: str,
    find_fault: Callable = lambda step, metrics: '',
  ):
    """Creates a run in progress.

    Args:
      cadence: intervals of logging, evaluation and saving.
      evaluators: functions that return metrics of a state.
      hooks: functions to call after each step; see `train_and_evaluate`.
      progress: measures and shows the rate.
      checkpoints: checkpoints of the run.
      metrics: the log of metrics by step.
      num_devices: number of devices that share a batch.
      skip_nonfinite: maximum number of skipped updates in a row.
      advice: what to change if the loss is not finite.
      find_fault: see `task.Task`.
    """
    self._cadence = cadence
    self._evaluators = evaluators
    self._hooks = hooks
    self._progress = progress
    self._checkpoints = checkpoints
    self._metrics = metrics
    self._num_devices = num_devices
    self._skip_nonfinite = skip_nonfinite
    self._advice = advice
    self._find_fault, self._num_faults = find_fault, 0
    self._start = time.monotonic()
    self._first = True
    self._previous = None  # (step, metrics) of the last update
    self._row, self._results = {}, {}  # to be written after this step
    self._is_stopped = False

  def is_over(self, step: int) -> bool:
    """Returns whether the run ends after `step`, at the end or by a hook."""
    return step >= self._cadence.total_steps or self._is_stopped

  def catch_up(self, step: int, state: train_state.TrainState) -> None:
    """Does what is missing for `step` when a run resumes.

    An interrupted evaluation is repeated. If this step has metrics, hooks are
    called with these metrics, so that a hook that ended the run ends it again.
    """
    if not step:
      return
    self._complete(step, state, self._due(step))
    row = self._metrics.at(step)
    if row and step < self._cadence.total_steps:
      self.call_hooks(step, state, row)

  def complete(self, step: int, state: train_state.TrainState) -> None:
    """Evaluates what is missing in the metrics of the last step of a run."""
    self._complete(step, state, self._evaluators.all)

  def _complete(self, step, state, evaluators):
    missing = self._evaluators.missing(self._metrics.at(step))
    missing = {name: x for name, x in evaluators.items() if name in missing}
    if not missing:
      return
    results = self._evaluate(step, state, missing)
    if preemption.requested():
      raise preemption.Preempted
    self._metrics.write(step, results)
    self._checkpoints.save(step, state, results)  # only records the results

  def updated(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Checks the previous update, so that at most two updates run at a time."""
    if self._first:
      self._first = False
      jax.block_until_ready(metrics)
      console.log_info(
        f'first step done after {time.monotonic() - self._start:.1f} s, '
        'including compilation'
      )
      self._progress.start_clock(step)
    else:
      self._check(*self._previous)
    self._previous = step, metrics
    self._row, self._results = {}, {}

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Shows the metrics of the update if logging is due, and keeps them."""
    if not self._cadence.is_due(self._cadence.log_every, step):
      return
    self._row = self._check(step, metrics)
    self._stop_at_fault(step)
    rate = self._progress.measure(step)
    if rate:
      self._row['images_per_second_per_device'] = rate / self._num_devices
    self._progress.show(step, self._row, rate)

  def evaluate(self, step: int, state: train_state.TrainState) -> None:
    """Calls the evaluators that are due."""
    evaluators = self._due(step)
    if evaluators:
      self._check(*self._previous)
      self._results = self._evaluate(step, state, evaluators)

  def write(self, step: int, state: train_state.TrainState) -> None:
    """Writes the metrics of this step; saves the state if this fails."""
    row = {**self._row, **self._results}
    with self.keeping(step, state, 'writing the metrics'):
      if row:
        self._metrics.write(step, row)
      if self._results:
        self._metrics.draw()

  def call_hooks(
    self, step: int, state: train_state.TrainState, metrics: Mapping[str, Any]
  ) -> None:
    """Calls the hooks; if one raises `Stop`, evaluates and ends the run."""
    metrics, reason = {**metrics, **self._results}, None
    for hook in self._hooks:
      try:
        with self.keeping(
          step, state, f'the hook {fingerprints.name_of(hook)}'
        ):
          hook(step, state, metrics)
      except stopping.Stop as stop:
        reason = reason or str(stop) or fingerprints.name_of(hook)
    if reason is None or self.is_over(step):
      return
    console.log_info(f'stopping at step {step}: {reason}')
    self._is_stopped = True
    row = self._metrics.at(step)
    results = self._evaluate(step, state, self._evaluators.missing(row))
    if results:
      self._results.update(results)
      self._metrics.write(step, results)
      self._metrics.draw()

  @contextlib.contextmanager
  def keeping(
    self, step: int, state: train_state.TrainState, source: str
  ) -> Iterator[None]:
    """Saves the state of `step` if the data, a hook or an evaluator fails.

    Several processes must save together. They do not save if the error may be
    in only one of them.
    """
    try:
      yield
    except (stopping.Stop, preemption.Preempted):
      raise
    except Exception as error:
      if self._previous:
        self._check(*self._previous)
      if step and processes.is_shared(error):
        self._checkpoints.save(step, state)
        self._checkpoints.wait()  # it may fail, too
      error.add_note(
        f'{source} failed at step {step}. {self._last_checkpoint()}: correct '
        'the error, then start again to resume'
      )
      console.log_info(error.__notes__[-1])
      raise

  def save(self, step: int, state: train_state.TrainState) -> None:
    """Saves the state if saving is due or a signal requests a stop.

    Raises:
      preemption.Preempted: a stop was requested. The state is saved.
    """
    stop, regular = preemption.requested(), self._evaluators.regular
    save = (
      stop
      or self._cadence.is_due(self._cadence.checkpoint_every, step)
      or self.is_over(step)
      or self._checkpoints.is_best(
        self._results, is_complete=self._due(step).keys() >= regular.keys()
      )
    )
    if save:
      self._check(*self._previous)
      self._checkpoints.save(step, state, self._results)
    if stop:
      console.log_info(f'stopped by {preemption.cause()}: saving step {step}')
      raise preemption.Preempted
    if self._results or save:
      self._progress.start_clock(step)

  def _due(self, step):
    """Returns the evaluators to call at `step`."""
    if step == self._cadence.total_steps:
      return self._evaluators.all
    every, usual = self._evaluators.every, self._cadence.eval_every
    return {
      name: evaluator
      for name, evaluator in self._evaluators.regular.items()
      if self._cadence.is_due(every.get(name, usual), step)
    }

  def _evaluate(self, step, state, evaluators):
    """Returns the metrics of the evaluators; {} if a signal interrupts them."""
    total, results = self._cadence.total_steps, {}
    try:
      for name, evaluator in evaluators.items():
        with self.keeping(step, state, f'the evaluator {name!r}'):
          results.update(evaluator(state))
    except preemption.Preempted:
      return {}  # the resumed run repeats this evaluation
    if not results:
      return {}
    pictures = self._evaluators.pictures
    while pictures:
      name, picture = pictures.popitem()
      self._metrics.write(step, {}, {name: picture})
    console.log_info(
      f'step {step}/{total}  '
      + '  '.join(f'{name} {_shown(value)}' for name, value in results.items())
    )
    for name, value in results.items():
      if name.startswith('loss_') and not math.isfinite(value):
        raise ValueError(
          f'{name} is {value} at step {step}. {self._advice}. '
          + self._last_checkpoint()
        )
    return results

  def _stop_at_fault(self, step):
    """Raises ValueError if the task finds a fault for the third time."""
    fault = self._find_fault(step, self._row)
    self._num_faults = self._num_faults + 1 if fault else 0
    if self._num_faults == _MAX_FAULTS:
      raise ValueError(f'at step {step}, {fault}. {self._last_checkpoint()}')

  def _check(self, step, metrics):
    """Returns a step's metrics as Python numbers.

    Raises:
      ValueError: a metric is not finite, and the update was not skipped.
    """
    numbers = {name: float(x) for name, x in jax.device_get(metrics).items()}
    in_a_row = numbers.pop('skipped_in_a_row', 0)
    bad = [name for name, x in numbers.items() if not math.isfinite(x)]
    if not bad or 0 < in_a_row <= self._skip_nonfinite:
      return numbers
    if not in_a_row and not {'train_loss', 'grad_norm'} & set(bad):
      raise ValueError(
        f'the metric {bad[0]} of the task is {numbers[bad[0]]} at step {step}, '
        'but the loss is finite. Correct the task. ' + self._last_checkpoint()
      )
    raise ValueError(
      f'the loss is {numbers["train_loss"]} at step {step} ('
      + (f'learning rate {numbers["lr"]:.3g}, ' if 'lr' in numbers else '')
      + f'gradient norm {numbers["grad_norm"]:.3g}'
      + (f', {in_a_row:.0f} such updates in a row' if in_a_row else '')
      + f'). {self._advice}, or skip such updates with '
      'config.skip_nonfinite. ' + self._last_checkpoint()
    )

  def _last_checkpoint(self):
    step = self._checkpoints.latest_step() or 0
    return f'The last checkpoint is from step {step}'


def _shown(value):
  """Returns a metric with four decimals, or more if it would be shown as 0."""
  return f'{value:.4f}' if not 0 < abs(value) < 5e-5 else f'{value:.3g}'
