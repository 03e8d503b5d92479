"""A run at MLflow."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import time
from typing import Any

import numpy as np

# The largest numbers that a request may have.
_MOST_PARAMS, _MOST_METRICS = 100, 1000
_LONGEST_VALUE = 6000


class Run:
  """A run at MLflow; its environment variables choose store and experiment."""

  def __init__(self, run: Mapping[str, Any], run_id: str | None):
    """Starts or resumes a run; starts another if the store no longer has it.

    Args:
      run: see `tracker_process.Sender`.
      run_id: id of the run to resume, or None.
    """
    import mlflow

    if run_id and _exists(run_id):
      opened = mlflow.start_run(run_id=run_id)
    else:
      name = os.path.basename(os.path.abspath(run['workdir']))
      tags = {'mlflow.source.name': 'vit_jax'}
      opened = mlflow.start_run(run_name=name, tags=tags)
      for part in _parts(list(run['settings'].items()), _MOST_PARAMS):
        mlflow.log_params({k: str(x)[:_LONGEST_VALUE] for k, x in part})
    self.id = opened.info.run_id
    self._experiment = opened.info.experiment_id

  @property
  def address(self) -> str:
    """Where the run is."""
    import mlflow

    return (
      f'MLflow run {self.id} of experiment {self._experiment} in '
      + mlflow.get_tracking_uri()
    )

  def send(
    self,
    rows: Sequence[Mapping[str, float]],
    drawn: Sequence[tuple[int, Mapping[str, np.ndarray]]],
  ) -> None:
    """Sends rows with a `step`, and (step, pictures)."""
    import mlflow
    from mlflow import entities

    now = int(time.time() * 1000)
    metrics = [
      entities.Metric(name, value, now, row['step'])
      for row in rows
      for name, value in row.items()
      if name != 'step'
    ]
    for part in _parts(metrics, _MOST_METRICS):
      mlflow.MlflowClient().log_batch(self.id, metrics=part)
    for step, pictures in drawn:
      for name, picture in pictures.items():
        mlflow.log_image(picture, key=name, step=step)

  def close(self, status: str) -> None:
    """Ends the run."""
    import mlflow

    mlflow.end_run(status.upper())


def _exists(run_id):
  """Returns whether the store has a run that was not deleted."""
  import mlflow

  try:
    run = mlflow.MlflowClient().get_run(run_id)
  except mlflow.MlflowException as error:
    if error.error_code != 'RESOURCE_DOES_NOT_EXIST':
      raise
    return False
  return run.info.lifecycle_stage != 'deleted'


def _parts(items, size):
  return [items[i : i + size] for i in range(0, len(items), size)]
