import math
import os

import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util import tensor_util

from vit_jax.run.writers import metric_log
from vit_jax.run.writers import plot


def write(workdir, first_step, steps, offset=0.0):
  with metric_log.MetricLog(str(workdir), first_step) as written:
    for step in steps:
      written.write(step, {'loss': step + offset, 'bad': math.nan})


def rows_of(workdir):
  return [
    (row['step'], row['loss'])
    for row in metric_log.read(f'{workdir}/metrics.jsonl')
  ]


def events_of(workdir, module):
  """Returns [(step, value)] of `loss` in all event files of a folder."""
  read = module.EventAccumulator(str(workdir), size_guidance={'tensors': 0})
  read.Reload()
  return [
    (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
    for event in read.Tensors('loss')
  ]


def event_files(workdir):
  return {path: path.read_bytes() for path in workdir.glob('*tfevents*')}


@pytest.mark.parametrize(
  'module', [event_accumulator, plugin_event_accumulator]
)
def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path, module):
  """The first run is killed while it writes an event."""
  write(tmp_path, 0, range(1, 9))
  (path,) = tmp_path.glob('*tfevents*')
  os.truncate(path, path.stat().st_size - 5)  # the end of step 8
  write(tmp_path, 4, range(5, 8), offset=0.5)
  write(tmp_path, 6, range(7, 10), offset=0.25)
  expected = [
    (1, 1.0),
    (2, 2.0),
    (3, 3.0),
    (4, 4.0),
    (5, 5.5),
    (6, 6.5),
    (7, 7.25),
    (8, 8.25),
    (9, 9.25),
  ]
  assert rows_of(tmp_path) == expected
  # The order of files that were created in one second is not defined.
  assert sorted(events_of(tmp_path, module)) == expected
  assert not list(tmp_path.glob('*.partial'))


def test_event_files_without_later_steps_do_not_change(tmp_path):
  write(tmp_path, 0, range(1, 5))
  before = event_files(tmp_path)
  write(tmp_path, 4, [])
  after = event_files(tmp_path)
  assert before == after
  write(tmp_path, 4, [5])
  assert before.items() < event_files(tmp_path).items()


def test_the_plot_has_a_panel_of_rates_only_if_there_are_rates(tmp_path):
  rows = [{'step': 1, 'train_loss': 2.0, 'lr': 0.1, 'grad_norm': 1.0}]
  titles = [title for title, _ in plot._panels(rows, 'loss')]
  assert titles == ['loss', 'gradient norm', 'learning rate']
  del rows[0]['lr']
  titles = [title for title, _ in plot._panels(rows, 'accuracy')]
  assert titles == ['loss', 'accuracy']
  plot.draw(rows, str(tmp_path / 'plot.png'), 'accuracy')
  assert (tmp_path / 'plot.png').stat().st_size > 1000
