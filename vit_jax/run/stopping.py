"""Ends a run before its last step: `Stop`, and early stopping by a metric.

def enough(step, state, metrics):
  if metrics.get('accuracy_validation', 0) > 0.99:
    raise vit_jax.Stop('the accuracy is above 99 %')

vit_jax.train_and_evaluate(config, workdir, hooks=[enough])
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from vit_jax.parallel import processes
from vit_jax.run.writers import metric_log


class Stop(Exception):
  """Ends the run after this step, when a hook raises it.

  The run evaluates the step, saves it and returns its result. The message of
  the exception is the reason, which the run logs.
  """


def agreed(hook: Callable) -> Callable:
  """Returns a hook that stops all processes of a run if it stops one."""

  @functools.wraps(hook)
  def call(step, state, metrics):
    reason = None
    try:
      hook(step, state, metrics)
    except Stop as stop:
      reason = str(stop) or 'a hook raised Stop'
    reasons = list(filter(None, processes.exchange(reason)))
    if reasons:
      raise Stop(reasons[0])

  return call


@dataclasses.dataclass(frozen=True)
class Patience:
  """A hook that stops when a metric no longer improves.

  Attributes:
    name: the metric, such as 'accuracy_validation'.
    direction: 'max' or 'min', the better direction.
    patience: number of evaluations without improvement before a stop.
    log: the metrics of all steps.
  """

  name: str
  direction: str
  patience: int
  log: metric_log.MetricLog

  def __call__(self, step: int, state: Any, metrics: Mapping[str, Any]) -> None:
    """Raises `Stop` if the last `patience` evaluations did not improve."""
    del step, state
    if self.name not in metrics:
      return
    values = [row[self.name] for row in self.log.rows if self.name in row]
    if not values:  # the log has finite values only
      return
    best = values.index((max if self.direction == 'max' else min)(values))
    if len(values) - 1 - best >= self.patience:
      raise Stop(
        f'{self.name} has not improved in {self.patience} evaluation(s) '
        '(config.patience)'
      )
