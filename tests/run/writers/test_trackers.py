"""The process of a tracker, with a package that stands in for W&B."""

import json

import numpy as np
import pytest

from tests.digits_run import assert_equal
from tests.digits_run import interrupt_at
from tests.digits_run import Interrupted
from tests.digits_run import make_config
from tests.digits_run import rows_of
from tests.digits_run import without_rates
from tests.run.writers.test_writers import Recorder
import vit_jax
from vit_jax.run.writers import tracker_process
from vit_jax.run.writers import trackers

# It writes each call as a line of JSON, and fails as FAULT says.
PACKAGE = """
import json, os, sys, time
FAULT = os.environ.get('FAULT')
if FAULT == 'import':
  raise RuntimeError('damaged\\nmore')
print('W&B prints this')
def note(name, *values):
  with open(os.environ['CALLS'], 'a') as file:
    print(json.dumps([name, *values]), file=file)
class Settings:
  def __init__(self, **settings):
    pass
class Run:
  step, offline, url = 0, False, 'https://wandb/run'
  def define_metric(self, name, **settings):
    pass
  def log(self, row, step=None):
    if row['step'] == 4 and FAULT == 'log':
      raise ConnectionError('no network')
    if row['step'] == 4 and FAULT == 'exit':
      os._exit(3)
    if row['step'] == 4 and FAULT == 'hang':
      time.sleep(5)
    note('log', row, step)
  def finish(self, exit_code):
    note('finish', exit_code)
def init(id, config, **settings):
  run = Run()
  run.id = id or 'new'
  note('init', id, config, settings['name'])
  return run
def Image(picture):
  return picture.shape
"""


@pytest.fixture(name='calls')
def fixture_calls(tmp_path, monkeypatch):
  """Returns a function that reads what the package was asked to do."""
  (tmp_path / 'packages').mkdir()
  (tmp_path / 'packages/wandb.py').write_text(PACKAGE)
  monkeypatch.syspath_prepend(tmp_path / 'packages')
  monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))

  def read():
    with open(tmp_path / 'calls', encoding='utf-8') as file:
      return [json.loads(line) for line in file]

  return read


def track(folder, rows, first_step=0, total_steps=6):
  """Sends rows as a run does; returns after the process has ended."""
  folder.mkdir(exist_ok=True)
  with trackers.opened('wandb') as (tracker,):
    settings = {'batch': 8, 'targets.names': ('a', 'b')}
    trackers.start(
      *((tracker,), str(folder)),
      settings=settings,
      first_step=first_step,
      total_steps=total_steps,
    )
    for row in rows:
      numbers = dict(row)
      tracker(numbers.pop('step'), numbers, {})
    tracker(6, {}, {'drawn': np.zeros((2, 3, 3), np.uint8)})


ROWS = [{'step': i, 'loss': 1 / i} for i in (2, 4, 6)]


def test_everything_is_sent(tmp_path, calls, capfd):
  track(tmp_path / 'run', ROWS)
  assert calls() == [
    ['init', None, {'batch': 8, 'targets.names': ['a', 'b']}, 'run'],
    *(['log', row, row['step']] for row in ROWS),
    ['log', {'step': 6, 'drawn': [2, 3, 3]}, 6],
    ['finish', 0],
  ]
  stored = json.loads((tmp_path / 'run/tracker.json').read_text())
  assert stored == {'wandb': {'id': 'new', 'step': 6}}
  output = capfd.readouterr()
  assert output.out == ''
  assert output.err == 'tracker: W&B run new, https://wandb/run\n'
  assert (tmp_path / 'run/tracker.log').read_text() == 'W&B prints this\n'


@pytest.mark.parametrize(
  ('fault', 'message'),
  [
    ('import', "config.tracker='wandb': RuntimeError: damaged. "),
    ('log', "config.tracker='wandb': ConnectionError: no network. "),
    ('exit', 'its process ended with status 3. '),
    ('hang', 'not everything was sent within 0.2 seconds after the run. '),
  ],
)
def test_a_tracker_that_fails_gives_one_warning(
  fault, message, tmp_path, monkeypatch, calls, capfd
):
  monkeypatch.setenv('FAULT', fault)
  if fault == 'hang':
    monkeypatch.setattr(trackers, '_END_SECONDS', 0.2)
  track(tmp_path / 'run', ROWS)
  output = capfd.readouterr().err
  assert output.count('warning') == 1 and message in output
  assert 'Traceback' not in output
  if fault == 'log':  # the next start sends what is missing
    monkeypatch.delenv('FAULT')
    (tmp_path / 'run/metrics.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in ROWS)
    )
    track(tmp_path / 'run', [], first_step=6)
    sent = [call[1]['step'] for call in calls() if call[0] == 'log']
    assert sent[-3:] == [4, 6, 6]


def test_writers_and_trackers_get_what_the_run_writes(
  finished, tmp_path, calls, capfd
):
  """They do not change the run. A resumed run may have another tracker."""
  workdir = str(tmp_path / 'run')
  writer, failing = Recorder(), Recorder(fails_at=4)
  with pytest.raises(Interrupted):
    vit_jax.train_and_evaluate(
      *(make_config(), workdir),
      hooks=[interrupt_at(7)],
      writers=[failing, writer],
    )
  assert failing.calls == 2 and list(failing.rows) == [2]
  printed = capfd.readouterr().err
  assert printed.count('warning: the writer Recorder failed at step 4') == 1
  assert 'OSError: the network is down)' in printed
  config = make_config(tracker='wandb')
  result = vit_jax.train_and_evaluate(config, workdir, writers=[writer])
  assert_equal(result.state, finished[1])
  rows = rows_of(workdir)
  assert [{'step': k, **row} for k, row in writer.rows.items()] == rows
  assert without_rates(rows) == without_rates(rows_of(finished[0]))
  first, *logged, last = calls()
  assert first[2]['tracker'] == 'wandb' and last == ['finish', 0]
  assert [row for _, row, _ in logged] == rows


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
    assert stored == {'mlflow': {'id': run_id, 'step': 6}}
  sent = []
  sender, asked = sender_of(tmp_path, sent, rows, 9, 'second')
  assert not sender.has_work
  sender.close('finished')  # a complete run that has sent everything
  assert sent == asked == []
  sender, asked = sender_of(tmp_path, sent, rows, 0, 'third')
  sender.send([(2, {'loss': 7}, {})])  # a start from step 0 is another run
  assert asked == [None] and sent == [{'step': 2, 'loss': 7}]
