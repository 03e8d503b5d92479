"""Writers of the caller, and settings of trackers."""

import importlib.machinery
import importlib.util

import numpy as np
import pytest

from tests.digits_run import make_config
import vit_jax
from vit_jax.run import setup
from vit_jax.run.writers import metric_log
from vit_jax.run.writers import trackers


class Recorder:
  """A writer that keeps what it gets, and changes its own copy."""

  def __init__(self, fails_at=None):
    self.rows, self.pictures, self.calls = {}, [], 0
    self._fails_at = fails_at

  def __call__(self, step, numbers, pictures):
    self.calls += 1
    if step == self._fails_at:
      raise OSError('the network is down\nmore')
    self.rows.setdefault(step, {}).update(numbers)
    self.pictures += [(step, name, x) for name, x in pictures.items()]
    numbers.clear()
    pictures.clear()


def test_a_writer_gets_pictures(tmp_path):
  writer, picture = Recorder(), np.zeros((2, 3, 3), np.uint8)
  with metric_log.MetricLog(str(tmp_path), 0, writers=[writer]) as log:
    log.write(7, {}, {'drawn': picture})
  ((step, name, got),) = writer.pictures
  assert (step, name) == (7, 'drawn') and got is picture
  assert (tmp_path / 'drawn.png').exists() and log.rows == []


def test_wrong_settings_name_the_value_and_what_to_do(monkeypatch, tmp_path):
  config = make_config(tracker='mlfow')
  with pytest.raises(ValueError, match="tracker='mlfow' .* name is mlflow$"):
    setup.check(config, setup.NOTHING_GIVEN)
  with pytest.raises(ValueError, match='writers has 3, which cannot be called'):
    vit_jax.train_and_evaluate(make_config(), str(tmp_path), writers=[3])


def test_missing_packages_name_the_extra(monkeypatch):
  """A folder `wandb`, as W&B makes it, is not the package."""
  folder = importlib.machinery.ModuleSpec('wandb', None)
  monkeypatch.setattr(
    *(importlib.util, 'find_spec'),
    lambda name: {'wandb': folder, 'mlflow': pytest.__spec__}.get(name),
  )
  for settings, missing, extra in (
    ({'tracker': 'wandb'}, 'wandb', 'wandb'),
    ({'tracker': 'mlflow'}, 'sqlalchemy, alembic', 'mlflow'),
  ):
    with pytest.raises(ValueError) as error:
      setup.check(make_config(**settings), setup.NOTHING_GIVEN)
    assert f'not installed: {missing}. ' in str(error.value)
    assert f"pip install -e '.[{extra}]'" in str(error.value)
  monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://host:5000')
  trackers.check('mlflow')  # a server needs no store here
