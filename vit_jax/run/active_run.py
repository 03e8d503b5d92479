"""What a run does between its updates: log, evaluate, save, stop."""

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

Evaluator = Callable  # TrainState -> {'metric_name': number}


@dataclasses.dataclass(frozen=True)
class Cadence:
  """After which updates things are due, in steps; 0 is never."""

  total_steps: int
  log_every: int
  eval_every: int
  checkpoint_every: int

  def is_due(self, every: int, step: int) -> bool:
    """Whether something is due after `step` updates; it is after the last."""
    return step == self.total_steps or bool(every) and step % every == 0


@dataclasses.dataclass(frozen=True)
class Watched:
  """The number of evaluations by which a run is judged."""

  name: str  # such as 'accuracy_validation'
  direction: str  # 'max' or 'min'
  patience: int  # evaluations without a better one, then stop; 0: never

  def is_exhausted(self, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the last evaluations, rows of the metrics, are none better."""
    values = [row[self.name] for row in rows if self.name in row]
    if not self.patience or not values:
      return False
    best = values.index((max if self.direction == 'max' else min)(values))
    return len(values) - 1 - best >= self.patience


class ActiveRun:
  """A run that goes on; its methods are called after each update, in order."""

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
  ):
    """Takes what the run needs.

    Args:
      cadence: when things are due.
      watched: the number that decides when to stop early.
      evaluators: those that are due at `eval_every`.
      at_the_end: those that are due after the last step alone.
      progress: measures and shows the rate.
      checkpoints: of the run.
      metrics: numbers by step.
      num_devices: that share a batch.
      skip_nonfinite: updates in a row that may be skipped.
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
    self._start = time.monotonic()
    self._first = True
    self._previous = None  # (step, metrics) of the last update
    self._row, self._results = {}, {}  # to be written after this step
    self._stops_early = watched.is_exhausted(metrics.rows)

  def is_over(self, step: int) -> bool:
    """Whether `step` was the last one, by its number or by `patience`."""
    return step >= self._cadence.total_steps or self._stops_early

  def catch_up(self, step: int, state: train_state.TrainState) -> None:
    """Makes up for an evaluation that was cut short, where a run goes on."""
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
    self._checkpoints.save(step, state, results)  # which only notes the results

  def updated(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Waits until at most two batches are on the device, and checks a loss."""
    if self._first:
      self._first = False
      jax.block_until_ready(metrics)
      console.log_info(
        f'first step done after {time.monotonic() - self._start:.1f} s, '
        'compiling included'
      )
      self._progress.start_clock(step)
    else:
      self._check(*self._previous)
    self._previous = step, metrics
    self._row, self._results = {}, {}

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Shows and notes the numbers of the update, where that is due."""
    if not self._cadence.is_due(self._cadence.log_every, step):
      return
    self._row = self._check(step, metrics)
    rate = self._progress.measure(step)
    if rate:
      self._row['images_per_second_per_device'] = rate / self._num_devices
    self._progress.show(step, self._row, rate)

  def evaluate(self, step: int, state: train_state.TrainState) -> None:
    """Evaluates the state, where that is due; the last step does it in full."""
    if not self._cadence.is_due(self._cadence.eval_every, step):
      return
    self._check(*self._previous)
    self._results = self._evaluate(step, state, self._due(step))

  def write(self, step: int, state: train_state.TrainState) -> None:
    """Writes the numbers of this step, and sees whether to stop early."""
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
    """Saves the state where that is due, or the run is asked to stop.

    Raises:
      preemption.Preempted: after saving, if it was asked to stop.
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
    """The evaluators that are due where evaluation is."""
    is_last = step == self._cadence.total_steps
    return [*self._evaluators, *(self._at_the_end if is_last else [])]

  def _evaluate(self, step, state, evaluators):
    """The numbers of evaluators, {} if they were cut short."""
    total, results = self._cadence.total_steps, {}
    try:
      for evaluator in evaluators:
        results.update(evaluator(state))
    except preemption.Preempted:
      return {}  # the resumed run makes up for it
    if not results:
      return {}
    console.log_info(
      f'step {step}/{total}  '
      + '  '.join(f'{name} {value:.4f}' for name, value in results.items())
    )
    for name, value in results.items():
      if name.startswith('loss_') and not math.isfinite(value):
        raise ValueError(
          f'{name} is {value} at step {step}: lower config.base_lr. '
          + self._last_checkpoint()
        )
    return results

  def _check(self, step, metrics):
    """A step's metrics as Python numbers, if the run may go on with them."""
    numbers = {name: float(x) for name, x in jax.device_get(metrics).items()}
    in_a_row = numbers.pop('skipped_in_a_row', 0)
    finite = all(map(math.isfinite, numbers.values()))
    if not finite and not 0 < in_a_row <= self._skip_nonfinite:
      raise ValueError(
        f'the loss is {numbers["train_loss"]} at step {step} (learning rate '
        f'{numbers["lr"]:.3g}, gradient norm {numbers["grad_norm"]:.3g}'
        + (f', {in_a_row:.0f} in a row' if in_a_row else '')
        + '): lower config.base_lr, set config.grad_norm_clip, or have such '
        'updates skipped with config.skip_nonfinite. ' + self._last_checkpoint()
      )
    return numbers

  def _last_checkpoint(self):
    step = self._checkpoints.latest_step() or 0
    return f'The last checkpoint is that of step {step}'
