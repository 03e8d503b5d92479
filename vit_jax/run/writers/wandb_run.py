"""A run at Weights & Biases (W&B)."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

import numpy as np

_LONGEST_NAME = 100


class Run:
  """A run at W&B; its environment variables choose project, mode and folder."""

  def __init__(self, run: Mapping[str, Any], run_id: str | None):
    """Starts or resumes a run.

    Args:
      run: see `tracker_process.Sender`.
      run_id: id of the run to resume, or None.
    """
    import wandb

    folder = os.path.abspath(run['workdir'])
    name = os.path.basename(folder)[:_LONGEST_NAME]
    self._run = wandb.init(
      id=run_id,
      resume='allow' if run_id else None,
      config=run['settings'],
      name=None if os.environ.get('WANDB_NAME') else name,
      dir=None if os.environ.get('WANDB_DIR') else folder,
      settings=wandb.Settings(console='off', silent=True),
    )
    self.id = self._run.id
    # The curves have our step as their axis: W&B drops rows whose own step is
    # lower than that of an earlier row, as in a resumed run.
    self._run.define_metric('step')
    self._run.define_metric('*', step_metric='step', step_sync=True)
    self._next = self._run.step

  @property
  def address(self) -> str:
    """Where the run is."""
    if self._run.offline:
      return (
        f'W&B run {self.id}, offline. To upload it: wandb sync '
        + os.path.dirname(self._run.dir)
      )
    return f'W&B run {self.id}, {self._run.url}'

  def _log(self, step, values):
    explicit = {'step': step} if step >= self._next else {}
    self._run.log({'step': step, **values}, **explicit)
    self._next = max(step, self._next + (not explicit))

  def send(
    self,
    rows: Sequence[Mapping[str, float]],
    drawn: Sequence[tuple[int, Mapping[str, np.ndarray]]],
  ) -> None:
    """Sends rows with a `step`, and (step, pictures)."""
    import wandb

    values = [(row['step'], row) for row in rows]
    for step, pictures in drawn:
      images = {name: wandb.Image(x) for name, x in pictures.items()}
      values.append((step, images))
    for step, row in sorted(values, key=lambda item: item[0]):
      self._log(step, row)

  def close(self, status: str) -> None:
    """Ends the run, and waits until everything is sent."""
    self._run.finish(exit_code=int(status != 'finished'))
