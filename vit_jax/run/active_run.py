"""The work of a run between updates: logging, evaluating, saving, stopping."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import time
from typing import Any

import jax

from vit_jax import console
from vit_jax import train_state
from vit_jax.run import checkpointing
from vit_jax.run import metric_log
from vit_jax.run import preemption

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


@dataclasses.dataclass(frozen=True)
class Watched:
  """The metric that decides when to stop early."""

  name: str  # such as 'accuracy_validation'
  direction: str  # 'max' or 'min'
  patience: int  # evaluations without improvement before a stop; 0: never

  def is_exhausted(self, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Returns whether the last `patience` evaluations did not improve."""
    values = [row[self.name] for row in rows if self.name in row]
    if not self.patience or not values:
      return False
    best = values.index((max if self.direction == 'max' else min)(values))
    return len(values) - 1 - best >= self.patience


class ActiveRun:
  """A run in progress. The loop calls its methods in order after an update."""

  def __init__(
    self,
    cadence: Cadence,
    watched: Watched,
    evaluators: Sequence[Evaluator],
    at_the_end: Sequence[Evaluator],
    progress: console.Progress,
    checkpoints: checkpointing.Checkpoints,
    metrics: metric_log.MetricLog,
    *,
    num_devices: int,
    skip_nonfinite: int = 0,
    advice: str,
  ):
    """Creates a run in progress.

    Args:
      cadence: intervals of logging, evaluation and saving.
      watched: the metric that decides when to stop early.
      evaluators: functions to call every `eval_every` steps.
      at_the_end: functions to call only after the last step.
      progress: measures and shows the rate.
      checkpoints: checkpoints of the run.
      metrics: the log of metrics by step.
      num_devices: number of devices that share a batch.
      skip_nonfinite: maximum number of skipped updates in a row.
      advice: what to change if the loss is not finite.
    """
    self._cadence = cadence
    self._watched = watched
    self._evaluators = evaluators
    self._at_the_end = at_the_end
    self._progress = progress
    self._checkpoints = checkpoints
    self._metrics = metrics
    self._num_devices = num_devices
    self._skip_nonfinite = skip_nonfinite
    self._advice = advice
    self._start = time.monotonic()
    self._first = True
    self._previous = None  # (step, metrics) of the last update
    self._row, self._results = {}, {}  # to be written after this step
    self._stops_early = watched.is_exhausted(metrics.rows)

  def is_over(self, step: int) -> bool:
    """Returns whether the run ends after `step`, at the end or by patience."""
    return step >= self._cadence.total_steps or self._stops_early

  def catch_up(self, step: int, state: train_state.TrainState) -> None:
    """Repeats an interrupted evaluation of `step` when a run resumes."""
    if (
      not step
      or not self._cadence.is_due(self._cadence.eval_every, step)
      or self._metrics.last(self._watched.name).get('step') == step
    ):
      return
    results = self._evaluate(step, state, self._due(step))
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
    rate = self._progress.measure(step)
    if rate:
      self._row['images_per_second_per_device'] = rate / self._num_devices
    self._progress.show(step, self._row, rate)

  def evaluate(self, step: int, state: train_state.TrainState) -> None:
    """Evaluates the state if evaluation is due."""
    if not self._cadence.is_due(self._cadence.eval_every, step):
      return
    self._check(*self._previous)
    self._results = self._evaluate(step, state, self._due(step))

  def write(self, step: int, state: train_state.TrainState) -> None:
    """Writes the metrics of this step, and decides whether to stop early."""
    row = {**self._row, **self._results}
    if row:
      self._metrics.write(step, row)
    if not self._results:
      return
    if step < self._cadence.total_steps and self._watched.is_exhausted(
      self._metrics.rows
    ):
      self._stops_early = True
      console.log_info(
        f'stopping at step {step}: {self._watched.name} has not improved in '
        f'{self._watched.patience} evaluation(s) (config.patience)'
      )
      rest = self._evaluate(step, state, self._at_the_end)
      if rest:
        self._results.update(rest)
        self._metrics.write(step, rest)
    self._metrics.draw()

  def save(self, step: int, state: train_state.TrainState) -> None:
    """Saves the state if saving is due or a signal requests a stop.

    Raises:
      preemption.Preempted: a stop was requested. The state is saved.
    """
    stop = preemption.requested()
    save = (
      stop
      or self._cadence.is_due(self._cadence.checkpoint_every, step)
      or self.is_over(step)
      or self._checkpoints.is_best(self._results)
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
    is_last = step == self._cadence.total_steps
    return [*self._evaluators, *(self._at_the_end if is_last else [])]

  def _evaluate(self, step, state, evaluators):
    """Returns the metrics of the evaluators; {} if a signal interrupts them."""
    total, results = self._cadence.total_steps, {}
    try:
      for evaluator in evaluators:
        results.update(evaluator(state))
    except preemption.Preempted:
      return {}  # the resumed run repeats this evaluation
    if not results:
      return {}
    console.log_info(
      f'step {step}/{total}  '
      + '  '.join(f'{name} {value:.4f}' for name, value in results.items())
    )
    for name, value in results.items():
      if name.startswith('loss_') and not math.isfinite(value):
        raise ValueError(
          f'{name} is {value} at step {step}. {self._advice}. '
          + self._last_checkpoint()
        )
    return results

  def _check(self, step, metrics):
    """Returns a step's metrics as Python numbers.

    Raises:
      ValueError: a metric is not finite, and the update was not skipped.
    """
    numbers = {name: float(x) for name, x in jax.device_get(metrics).items()}
    in_a_row = numbers.pop('skipped_in_a_row', 0)
    finite = all(map(math.isfinite, numbers.values()))
    if not finite and not 0 < in_a_row <= self._skip_nonfinite:
      raise ValueError(
        f'the loss is {numbers["train_loss"]} at step {step} ('
        + (f'learning rate {numbers["lr"]:.3g}, ' if 'lr' in numbers else '')
        + f'gradient norm {numbers["grad_norm"]:.3g}'
        + (f', {in_a_row:.0f} such updates in a row' if in_a_row else '')
        + f'). {self._advice}, or skip such updates with '
        'config.skip_nonfinite. ' + self._last_checkpoint()
      )
    return numbers

  def _last_checkpoint(self):
    step = self._checkpoints.latest_step() or 0
    return f'The last checkpoint is from step {step}'
