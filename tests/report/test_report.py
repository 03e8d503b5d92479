"""The command `report` on runs with and without labels."""

import io
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator

from tests import tiny_run
from tests.report import test_page
from vit_jax import main
from vit_jax.commands import report
from vit_jax.report import run_record
from vit_jax.report import test_pass
from vit_jax.report import writing


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


def test_equal_bytes_twice_and_no_pictures_again(run):
  before = [(run / f'report.{x}').read_bytes() for x in ('html', 'json')]
  got = []
  main._write_report(str(run), 1e9, [lambda *x: got.append(x)])
  assert before == [
    (run / f'report.{x}').read_bytes() for x in ('html', 'json')
  ]
  assert not got and not list(run.glob('*tfevents*.v2'))[1:]


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


def test_nothing_of_labels_without_labels(run, monkeypatch):
  monkeypatch.setattr(test_pass.TestPass, 'kind', '')
  assert report.main([str(run)]) == 0
  check_unlabelled(run)


def check_unlabelled(run):
  reader = test_page.check((run / 'report.html').read_text(encoding='utf-8'))
  stored = json.loads((run / 'report.json').read_text(encoding='utf-8'))
  assert stored['test'] is None and stored['notes'] == []
  assert {'Curves', 'Filters', 'Attention distance'} < set(reader.texts)
  assert not {'Calibration', 'Worst mistakes'} & set(reader.texts)
  assert not any('Omitted' in text for text in reader.texts)


@pytest.mark.slow
def test_masked_autoencoder(finished_run, tmp_path):
  from vit_jax import train

  config = tiny_run.make_config(finished_run.photos)
  config.task, config.labels, config.mae.mask_ratio = 'mae', 'none', 0.5
  config.update(dict(total_steps=1, warmup_steps=0, checkpoint_every=0))
  run = tmp_path / 'run'
  train.train_and_evaluate(config, str(run))
  assert report.main([str(run)]) == 0
  check_unlabelled(run)


def test_the_log_has_command_versions_and_time(tmp_path):
  lines = [
    '2026-01-02 03:04:05,678 INFO vit_jax: command: python <x>',
    'a line of a traceback',
    '2026-01-02 03:04:06,678 INFO vit_jax: versions: jax 1.2',
    '2026-01-02 04:04:05,678 INFO vit_jax: done: accuracy 12 %',
    '2026-01-03 04:04:05,678 INFO vit_jax: report: later',
  ]
  (tmp_path / 'log.txt').write_text('\n'.join(lines))
  found = run_record.read(str(tmp_path))
  assert found['command'] == 'python <x>' and found['versions'] == 'jax 1.2'
  assert found['ended'] == '2026-01-02 04:04:05' and found['seconds'] == 3600
  (tmp_path / 'log.txt').write_text('\n'.join(lines[:3]))  # it was stopped
  found = run_record.read(str(tmp_path))
  assert found['ended'] == '2026-01-02 03:04:06' and found['seconds'] == 1
  command, versions = run_record.describe_start('c')
  assert command == 'command: c' and ' jax ' in versions


def test_the_better_direction_of_a_metric_is_known_or_left_out():
  first = {
    'accuracy_greece': 0.3,
    'mean_absolute_error_test': 2.0,
    'ece_top': 0.2,
    'balanced_accuracy_test': 0.5,
    'luck_mine': 4.0,
    'distance_mine': 4.0,
  }
  rows = [{'step': i, **{k: i * x for k, x in first.items()}} for i in (1, 2)]
  config = {'best_metric': 'distance_mine', 'best_direction': 'min'}
  found = run_record.best_and_last({'metrics': rows, 'config': config})
  assert {x['metric']: x['best_step'] for x in found} == {
    'accuracy_greece': 2,
    'mean_absolute_error_test': 1,
    'ece_top': 1,
    'balanced_accuracy_test': 2,
    'luck_mine': None,
    'distance_mine': 1,
  }


def test_a_report_at_the_end_of_a_run_never_fails(tmp_path, capsys):
  (tmp_path / 'metrics.jsonl').write_text('damaged\n')
  main._write_report(str(tmp_path), 100.0)
  assert 'warning: the run is complete, but its rep' in capsys.readouterr().err
  (tmp_path / 'metrics.jsonl').write_text(
    '{"step": 1, "images_per_second_per_device": 1}\n'
  )
  (tmp_path / 'data.json').write_text('{"test images": 1000}')
  assert writing.expected_seconds(str(tmp_path)) == 10 + 2100 / 8
  main._write_report(str(tmp_path), 2724.0)
  assert 'for a report: python -m vit_jax report' in capsys.readouterr().err
  assert not list(tmp_path.glob('report*'))


def test_tensorboard_and_writers_get_the_pictures(
  finished_run, tmp_path, capsys
):
  run, got = tmp_path / 'run', []
  shutil.copytree(finished_run.workdir, run)

  def failing(step, numbers, pictures):
    raise OSError('no network')

  main._write_report(str(run), 1e9, [failing, lambda *x: got.append(x)])
  ((step, numbers, pictures),) = got
  assert step == finished_run.results['step'] and numbers == {}
  assert list(pictures) == ['confusion_matrix', 'worst_mistakes']
  assert all(x.dtype == np.uint8 and x.ndim == 3 for x in pictures.values())
  stored = json.loads((run / 'report.json').read_text(encoding='utf-8'))
  rows = -(-len(stored['test']['mistakes']) // 6)
  assert pictures['worst_mistakes'].shape == (rows * (64 + 34), 6 * 100, 3)
  events = event_accumulator.EventAccumulator(str(run))
  events.Reload()
  for name, picture in pictures.items():
    (event,) = events.Tensors(name)
    assert event.step == step
    png = event.tensor_proto.string_val[2]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), picture)
  printed = capsys.readouterr().err
  assert printed.count('warning') == 1 and printed.count('report.html') == 1


def test_folder_that_is_no_run(tmp_path, capsys):
  with pytest.raises(SystemExit):
    report.main([str(pathlib.Path(tmp_path))])
  assert 'is not the folder of a run' in capsys.readouterr().err
