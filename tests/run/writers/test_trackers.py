"""The process of a tracker, with a package that stands in for W&B."""

import json
import time

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
    while row['step'] == 4 and FAULT == 'hang':
      time.sleep(0.05)
      if os.path.exists(os.environ['CALLS'] + '.continue'):
        break
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
  sent = [{'step': 6, 'names': ['loss']}]
  assert stored == {'wandb': {'id': 'new', 'sent': sent}}
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
  (tmp_path / 'calls.continue').touch()
  output = capfd.readouterr().err
  assert output.count('warning') == 1 and message in output
  assert 'Traceback' not in output
  assert 'Fatal' not in (tmp_path / 'run/tracker.log').read_text()
  if fault == 'log':  # the next start sends what is missing
    monkeypatch.delenv('FAULT')
    (tmp_path / 'run/metrics.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in ROWS)
    )
    track(tmp_path / 'run', [], first_step=6)
    sent = [call[1]['step'] for call in calls() if call[0] == 'log']
    assert sent[-3:] == [4, 6, 6]


def wait_until(is_true):
  end = time.monotonic() + 20
  while not is_true():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_a_run_that_ends_before_its_tracker_is_finished(
  tmp_path, monkeypatch, calls, capfd
):
  """The run writes more than a pipe keeps, while the package hangs.

  A restart waits for the process of the first start, and sends nothing twice.
  """
  monkeypatch.setenv('FAULT', 'hang')
  monkeypatch.setattr(trackers, '_END_SECONDS', 0.2)
  first, second = trackers.Tracker('wandb'), trackers.Tracker('wandb')
  run = {'settings': {}, 'first_step': 0, 'total_steps': 8}
  first.start(str(tmp_path), run)
  for row in ROWS:
    first(row['step'], {'loss': row['loss']}, {})
  first(6, {}, {'drawn': np.zeros((512, 512, 3), np.uint8)})
  first.close('finished')
  wait_until(lambda: first._process.stdin.closed)  # the run can end
  wait_until((tmp_path / 'calls').exists)
  text = ''.join(json.dumps(row) + '\n' for row in ROWS)
  (tmp_path / 'metrics.jsonl').write_text(text)
  second.start(str(tmp_path), {**run, 'first_step': 6})
  second(8, {'loss': 8.0}, {})
  second.close('finished')
  wait_until(lambda: 'waiting for the process' in capfd.readouterr().err)
  (tmp_path / 'calls.continue').touch()
  for tracker in (first, second):
    tracker._reader.join()
  names = [call[0] for call in calls()]
  assert names == ['init', *['log'] * 4, 'finish', 'init', 'log', 'finish']
  rows = [call[1] for call in calls() if call[0] == 'log']
  assert [row['step'] for row in rows] == [2, 4, 6, 6, 8]
  ends = [call for call in calls() if call[0] == 'finish']
  assert ends == [['finish', 0]] * 2


@pytest.mark.parametrize('place', ['settings', 'numbers'])
def test_what_cannot_be_sent_gives_one_message(place, tmp_path, calls, capfd):
  def value():  # pickle refuses it
    pass

  tracker = trackers.Tracker('wandb')
  settings = {'batch': value} if place == 'settings' else {}
  run = {'settings': settings, 'first_step': 0, 'total_steps': 6}
  tracker.start(str(tmp_path), run)
  if place == 'numbers':
    tracker(2, {'loss': value}, {})
  tracker._reader.join()
  tracker.close('finished')
  output = capfd.readouterr().err
  assert output.count('warning') == 1 and 'Traceback' not in output
  assert "config.tracker='wandb': " in output and "Error: Can't " in output


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
