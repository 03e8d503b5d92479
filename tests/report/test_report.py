"""The command `report` on runs with and without labels."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests import tiny_run
from tests.report import test_page
from vit_jax.commands import report


@pytest.fixture(name='run', scope='module')
def fixture_run(finished_run, tmp_path_factory):
  """Returns a copy of a finished run, with a report."""
  run = tmp_path_factory.mktemp('report') / 'tiny <run>'
  shutil.copytree(finished_run.workdir, run)
  assert report.main([str(run)]) == 0
  return run


def test_report_of_a_run(run, finished_run):
  text = (run / 'report.html').read_text(encoding='utf-8')
  reader = test_page.check(text)
  assert 'tiny <run>' in reader.texts
  stored = json.loads((run / 'report.json').read_text(encoding='utf-8'))
  test = stored['test']
  assert stored['notes'] == []
  assert test['accuracy'] == finished_run.results['accuracy_test']
  assert np.sum(test['confusion']['matrix']) == test['count'] == 30
  for row in test['mistakes']:
    assert row['true'] == tiny_run.CLASSES[row['index'] // 10]
  assert stored['changed']['pp.crop_width'] == [12, 0]
  count = sum(np.size(x) for x in _leaves(finished_run.params))
  assert sum(row['parameters'] for row in stored['parameters']) == count
  titles = [
    *('Results', 'Curves', 'Classes, the worst first', 'Confusion matrix'),
    *('Calibration', 'Worst mistakes', 'Correct, but least sure'),
    *('What the model has learned', 'Parameters', 'Settings'),
  ]
  places = [reader.texts.index(title) for title in titles]
  assert places == sorted(places)
  assert not list(run.glob('*.partial'))


def _leaves(tree):
  import jax

  return jax.tree.leaves(tree)


def test_equal_bytes_twice(run):
  before = [(run / f'report.{x}').read_bytes() for x in ('html', 'json')]
  assert report.main([str(run)]) == 0
  assert before == [
    (run / f'report.{x}').read_bytes() for x in ('html', 'json')
  ]


def test_data_that_are_gone(run, tmp_path):
  """The page says so, and has the parts that need no data."""
  other = tmp_path / 'run'
  shutil.copytree(run, other)
  config = json.loads((other / 'config.json').read_text())
  config['dataset'] = str(tmp_path / 'gone')
  (other / 'config.json').write_text(json.dumps(config))
  assert report.main([str(other)]) == 0
  reader = test_page.check((other / 'report.html').read_text(encoding='utf-8'))
  assert any('was not measured' in text for text in reader.texts)
  assert 'Curves' in reader.texts and 'Calibration' not in reader.texts
  assert 'Filters' in reader.texts


def test_run_without_labels(finished_run, tmp_path):
  from vit_jax import train

  config = tiny_run.make_config(finished_run.photos)
  config.task = 'mae'
  config.update(dict(total_steps=1, warmup_steps=0, checkpoint_every=0))
  run = tmp_path / 'run'
  train.train_and_evaluate(config, str(run))
  assert report.main([str(run)]) == 0
  reader = test_page.check((run / 'report.html').read_text(encoding='utf-8'))
  stored = json.loads((run / 'report.json').read_text(encoding='utf-8'))
  assert stored['test'] is None and stored['notes'] == []
  assert 'Curves' in reader.texts and 'Filters' in reader.texts
  assert 'Calibration' not in reader.texts
  assert 'Worst mistakes' not in reader.texts


def test_folder_that_is_no_run(tmp_path, capsys):
  with pytest.raises(SystemExit):
    report.main([str(pathlib.Path(tmp_path))])
  assert 'is not the folder of a run' in capsys.readouterr().err
