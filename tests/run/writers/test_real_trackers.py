"""A killed and resumed run at the real W&B, offline, and at the real MLflow."""

import glob
import json
import re
import struct

import numpy as np
import pytest

from vit_jax.run.writers import mlflow_run
from vit_jax.run.writers import trackers

pytestmark = pytest.mark.interop
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
OLD = [{'step': step, 'loss': 1 / step} for step in (2, 4, 6, 8)]
# The run resumes from step 4, and repeats steps 6 and 8.
EXPECTED = [*OLD, {'step': 10, 'loss': 0.1, 'accuracy_test': 0.5}]


@pytest.fixture(name='slow', autouse=True)
def fixture_slow(monkeypatch):
  """Waits as long as it takes: MLflow needs half a minute for a new store."""
  monkeypatch.setattr(trackers, '_END_SECONDS', 300)


def track_twice(name, folder):
  """Sends EXPECTED and two pictures, in two starts."""
  pictures = {'drawn': PICTURE}
  for rows, first_step, step in ((OLD, 0, 1), (EXPECTED[2:], 4, 10)):
    with trackers.opened(name) as (tracker,):
      trackers.start(
        *((tracker,), str(folder)),
        settings={'batch': 8, 'seed': None, 'names': ('a', 'b'), 'empty': ''},
        first_step=first_step,
        total_steps=10,
      )
      tracker(step, {}, pictures)
      for row in rows:
        tracker(row['step'], {k: x for k, x in row.items() if k != 'step'}, {})
    text = ''.join(json.dumps(row) + '\n' for row in OLD)
    (folder / 'metrics.jsonl').write_text(text)
  return json.loads((folder / 'tracker.json').read_text())[name]['id']


def records_of(path):
  """Yields the records of a file of W&B, which has the form of LevelDB's logs.

  A block has 32768 bytes. A part of a record has a checksum, its length and its
  kind: all, first, middle or last.
  """
  with open(path, 'rb') as file:
    data = file.read()
  place, record = 7, b''
  while place + 7 <= len(data):
    left = 32768 - place % 32768
    if left < 7:
      place += left
      continue
    _, length, kind = struct.unpack('<IHB', data[place : place + 7])
    record += data[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):
      yield record
      record = b''


def test_wandb_offline(tmp_path, monkeypatch, capfd):
  reason = "needs pip install -e '.[wandb]'"
  wandb_internal_pb2 = pytest.importorskip(
    'wandb.proto.wandb_internal_pb2', reason=reason
  )
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_PROJECT', 'digits')
  run_id = track_twice('wandb', tmp_path)
  rows, drawn, ends = {}, [], []
  pattern = f'{tmp_path}/wandb/offline-run-*-{run_id}/*.wandb'
  for path in sorted(glob.glob(pattern)):
    for data in records_of(path):
      record = wandb_internal_pb2.Record.FromString(data)
      if record.HasField('run'):
        run = record.run
        assert (run.run_id, run.project) == (run_id, 'digits')
        assert run.display_name == tmp_path.name
        found = {x.key: json.loads(x.value_json) for x in run.config.update}
        assert found.items() >= {'batch': 8, 'names': ['a', 'b']}.items()
      if record.HasField('exit'):
        ends.append(record.exit.exit_code)
      if record.HasField('history'):
        values = {
          (*x.nested_key, x.key)[0]: json.loads(x.value_json)
          for x in record.history.item
        }
        assert values['_step'] == values['step']
        if 'drawn' in values:
          drawn.append(values['step'])
        for name in set(values) & {'loss', 'accuracy_test'}:
          key = values['step'], name
          assert key not in rows
          rows[key] = values[name]
  assert rows == {
    (row['step'], k): x
    for row in EXPECTED
    for k, x in row.items()
    if k != 'step'
  }
  assert drawn == [1, 10] and ends == [0, 0]
  assert len(glob.glob(f'{tmp_path}/wandb/offline*/files/media/images/*')) == 2
  assert capfd.readouterr().err.count('offline. To upload it: wandb sync') == 2


def test_mlflow_with_a_local_store(tmp_path, monkeypatch, capfd):
  reason = "needs pip install -e '.[mlflow]'"
  mlflow = pytest.importorskip('mlflow', reason=reason)
  pytest.importorskip('sqlalchemy', reason=reason)
  address = f'sqlite:///{tmp_path}/store.db'
  monkeypatch.setenv('MLFLOW_TRACKING_URI', address)
  monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'digits')
  monkeypatch.chdir(tmp_path)  # for the pictures
  run_id = track_twice('mlflow', tmp_path)
  client = mlflow.MlflowClient(address)
  run = client.get_run(run_id)
  experiment = client.get_experiment_by_name('digits')
  assert run.info.experiment_id == experiment.experiment_id
  assert (run.info.status, run.info.run_name) == ('FINISHED', tmp_path.name)
  params = {'batch': '8', 'seed': 'None', 'names': "('a', 'b')", 'empty': ''}
  assert run.data.params == params
  found = [
    (metric.step, name, metric.value)
    for name in run.data.metrics
    for metric in client.get_metric_history(run_id, name)
  ]
  assert sorted(found) == sorted(
    (row['step'], k, x)
    for row in EXPECTED
    for k, x in row.items()
    if k != 'step'
  )
  paths = [x.path for x in client.list_artifacts(run_id, 'images')]
  steps = {re.split('[%+]', x)[2] for x in paths if x.endswith('.png')}
  assert steps == {'1', '10'}
  assert capfd.readouterr().err.count('tracker: MLflow run') == 2
  client.delete_run(run_id)  # as on MLflow's page
  other = mlflow_run.Run({'workdir': str(tmp_path), 'settings': {}}, run_id)
  other.close('finished')
  assert client.get_run(other.id).info.status == 'FINISHED'
  assert other.id != run_id
