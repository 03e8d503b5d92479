"""Which numbers a tracker gets at each start, and a deleted run of MLflow."""

import json
import sys
from unittest import mock

import pytest

from vit_jax.run.writers import mlflow_run
from vit_jax.run.writers import tracker_process


class Opened:
  """A run at a tracker that keeps what it gets."""

  def __init__(self, run_id, sent):
    self.id, self.sent, self.status = run_id, sent, None

  def send(self, rows, drawn):
    self.sent += [dict(row) for row in rows]
    self.sent += [(step, *pictures) for step, pictures in drawn]

  def close(self, status):
    self.status = status


def sender_of(folder, sent, rows, first_step, run_id='id'):
  run = {'tracker': 'mlflow', 'workdir': str(folder), 'rows': rows}
  run |= {'first_step': first_step, 'total_steps': 9}
  asked = []

  def open_run(run, known_id):
    asked.append(known_id)
    return Opened(run_id, sent)

  return tracker_process.Sender(run, open_run), asked


def test_a_resumed_run_sends_each_number_once(tmp_path):
  """The run was killed at step 6, after a checkpoint of step 4."""
  sent = []
  sender, asked = sender_of(tmp_path, sent, [], 0)
  sender.send([(i, {'loss': i}, {}) for i in (2, 4)] + [(4, {}, {'p': 0})])
  sender.send([(6, {'loss': 6}, {})])
  rows = [{'step': i, 'loss': i} for i in (2, 4, 6)]
  assert sent == [rows[0], rows[1], (4, 'p'), rows[2]] and asked == [None]
  sender, asked = sender_of(tmp_path, sent, rows, 4)
  sent.clear()
  assert sender.has_work
  sender.send([(4, {'accuracy': 1}, {}), (4, {}, {'p': 0})])
  sender.send([(6, {'loss': 6, 'accuracy': 2}, {}), (8, {'loss': 8}, {})])
  sender.close('finished')
  assert asked == ['id']
  assert sent == [
    {'step': 4, 'accuracy': 1},
    {'step': 6, 'accuracy': 2},
    {'step': 8, 'loss': 8},
  ]


def test_a_new_tracker_gets_the_rows_of_earlier_starts(tmp_path):
  """So does a tracker that no longer has the run."""
  rows = [{'step': i, 'loss': i} for i in (2, 4, 6)]
  for run_id in ('first', 'second'):
    sent = []
    sender, _ = sender_of(tmp_path, sent, rows, 4, run_id)
    sender.send([(6, {'loss': 6.5}, {})])
    assert sent == [*rows[:2], {'step': 6, 'loss': 6.5}]
    stored = json.loads((tmp_path / 'tracker.json').read_text())
    sent_last = [{'step': 6, 'names': ['loss']}]
    assert stored == {'mlflow': {'id': run_id, 'sent': sent_last}}
  sent = []
  sender, asked = sender_of(tmp_path, sent, rows, 9, 'second')
  assert not sender.has_work
  sender.close('finished')  # a complete run that has sent everything
  assert sent == asked == []
  sender, asked = sender_of(tmp_path, sent, rows, 0, 'third')
  sender.send([(2, {'loss': 7}, {})])  # a start from step 0 is another run
  assert asked == [None] and sent == [{'step': 2, 'loss': 7}]


def test_a_row_that_was_sent_in_part_is_completed(tmp_path):
  """The run was killed between the picture of a step and its numbers."""
  sent = []
  rows = [{'step': 2, 'loss': 2}, {'step': 4, 'loss': 4, 'accuracy': 1}]
  sender, _ = sender_of(tmp_path, sent, [], 0)
  sender.send([(2, {'loss': 2}, {}), (4, {}, {'p': 0})])
  sender, _ = sender_of(tmp_path, sent, rows[:1] + [{'step': 4, 'loss': 4}], 4)
  assert sender.has_work
  sender.send([])
  assert sent == [rows[0], (4, 'p'), {'step': 4, 'loss': 4}]
  sent.clear()
  for _ in range(2):  # the second start has nothing to send
    sender, _ = sender_of(tmp_path, sent, rows, 4)
    sender.close('finished')
    assert sent == [{'step': 4, 'accuracy': 1}]


def test_a_repeated_part_that_is_killed_again_loses_no_number(tmp_path):
  """The run resumes from step 4 with another cadence, and then from step 6."""
  sent = []
  rows = [{'step': i, 'loss': i} for i in (2, 8)]
  sender, _ = sender_of(tmp_path, sent, [], 0)
  sender.send([(row['step'], {'loss': row['loss']}, {}) for row in rows])
  sender, _ = sender_of(tmp_path, sent, rows, 4)
  sender.open()  # killed before it sends step 6
  rows.insert(1, {'step': 6, 'loss': 6})
  sent.clear()
  sender, _ = sender_of(tmp_path, sent, rows, 6)
  sender.send([(8, {'loss': 8, 'accuracy': 1}, {})])
  assert sent == [{'step': 6, 'loss': 6}, {'step': 8, 'accuracy': 1}]


@pytest.mark.parametrize('stage', ['active', 'deleted', 'unknown'])
def test_a_run_that_mlflow_no_longer_has_starts_again(stage, monkeypatch):
  class Error(Exception):
    error_code = 'RESOURCE_DOES_NOT_EXIST'

  def get_run(run_id):
    if stage == 'unknown':
      raise Error
    return mock.Mock(**{'info.lifecycle_stage': stage})

  def start_run(run_id='new', **_):
    if run_id == 'old' and stage != 'active':
      raise ValueError('Cannot start run with ID old because it is deleted')
    return mock.Mock(**{'info.run_id': run_id})

  package = mock.Mock(MlflowException=Error, start_run=start_run)
  package.MlflowClient().get_run = get_run
  monkeypatch.setitem(sys.modules, 'mlflow', package)
  opened = mlflow_run.Run({'workdir': 'run', 'settings': {}}, 'old')
  assert opened.id == ('old' if stage == 'active' else 'new')
