"""Thresholds of a run with several labels, from training to prediction."""

import csv
import json
import os
import shutil

import numpy as np
from PIL import Image
import pytest

from tests.tasks import labelled_digits as digits
import vit_jax
from vit_jax import data as vit_data
from vit_jax import train
from vit_jax.checkpoint import metadata
from vit_jax.commands import export
from vit_jax.commands import predict
from vit_jax.evaluators import thresholds
from vit_jax.files import json_files
from vit_jax.run import evaluation

NAMES = ('even', 'large', 'light', 'never')


def make_config():
  return digits.make_config(
    task='multi_label', total_steps=3, eval_every=2, checkpoint_every=1, keep=3
  )


def make_data(order=(0, 1, 2, 3)):
  images, labels = digits.digits()[0], digits.several_labels()[:, order]
  splits = {
    'validation': (images[200:300], labels[200:300]),
    'test': (images[300:400], labels[300:400]),
  }
  return vit_data.from_arrays(
    images[:200],
    labels[:200],
    class_names=tuple(NAMES[i] for i in order),
    **splits,
  )


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory):
  """Returns (workdir, metrics)."""
  workdir = str(tmp_path_factory.mktemp('thresholds') / 'run')
  result = train.train_and_evaluate(make_config(), workdir, data=make_data())
  return workdir, result.metrics


def test_they_are_chosen_on_validation_and_used_on_test(run):
  workdir, found = run
  loaded = vit_jax.load(workdir)
  labels = digits.several_labels()
  scores = loaded.logits(digits.test_inputs(200, 200))
  expected = thresholds.choose(labels[200:300], scores[:100])
  assert loaded.thresholds == pytest.approx(expected, abs=1e-6)
  assert loaded.thresholds[3] == 0.5  # no examples
  assert set(loaded.thresholds[:3]) != {0.5}
  predicted = thresholds.predicted(
    thresholds.probabilities(scores), loaded.thresholds
  )
  for name, rows in (('validation', slice(100)), ('test', slice(100, 200))):
    matches = (predicted == labels[200:400])[rows].all(-1).mean()
    assert found[f'exact_match_{name}'] == pytest.approx(matches)
  with open(f'{workdir}/classes_test.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  hits = (predicted[100:] & (labels[300:400] > 0)).sum(0)
  for k, row in enumerate(rows[:3]):
    assert float(row['threshold']) == pytest.approx(loaded.thresholds[k])
    recall = hits[k] / labels[300:400, k].sum()
    assert float(row['recall']) == pytest.approx(recall, abs=1e-4)


@pytest.mark.parametrize('order', [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_evaluation_gives_the_numbers_of_the_run(run, order, capsys):
  """Also if the classes of the data are in another order."""
  workdir, expected = run
  row = evaluation.evaluate_only(
    make_config(), workdir, data=make_data(order), by_class=True
  )
  assert row['exact_match'] == expected['exact_match_test']
  stored = vit_jax.load(workdir).thresholds
  found = [x['threshold'] for x in row['classes']]
  assert found == [stored[i] for i in order]
  assert 'thresholds of the validation split' in capsys.readouterr().err


def test_each_step_has_its_own(run, capsys):
  workdir, _ = run
  second, third = (vit_jax.load(workdir, step=i).thresholds for i in (2, 3))
  assert second and third and second != third
  capsys.readouterr()
  assert vit_jax.load(workdir, step=1).thresholds is None
  assert 'nothing for step 1, ' in capsys.readouterr().err


def test_a_run_that_is_started_again_keeps_them(run, tmp_path):
  """A repeated evaluation of the test split uses the stored thresholds."""
  workdir, expected = str(tmp_path / 'run'), run[1]
  shutil.copytree(run[0], workdir)
  path = f'{workdir}/metrics.jsonl'
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  with open(path, 'w', encoding='utf-8') as file:
    for row in rows:
      kept = {k: x for k, x in row.items() if not k.endswith('_test')}
      file.write(json.dumps(kept) + '\n')
  stored = json_files.read_json(metadata.chosen_path(workdir))
  stored['9'] = stored['3']  # of a start that got further
  stored['3']['params']['thresholds'] = [0.0] * 4  # all are predicted
  json_files.write_json(metadata.chosen_path(workdir), stored)
  found = train.train_and_evaluate(make_config(), workdir, data=make_data())
  del stored['9']
  assert json_files.read_json(metadata.chosen_path(workdir)) == stored
  assert vit_jax.load(workdir).thresholds == (0.0,) * 4
  assert found.metrics['exact_match_test'] == 0  # no image has all labels
  loss = found.metrics['loss_test']
  assert loss == pytest.approx(expected['loss_test'])


def test_predictions_are_lists(run, tmp_path, capfd):
  """All predicted classes are listed, also beyond --top."""
  workdir, out = str(tmp_path / 'run'), str(tmp_path / 'w.npz')
  shutil.copytree(run[0], workdir)
  stored = json_files.read_json(metadata.chosen_path(workdir))
  limits = [0.0, 1.0, 0.0, 1.0]
  stored['3']['params']['thresholds'] = limits
  json_files.write_json(metadata.chosen_path(workdir), stored)
  photo = str(tmp_path / '7.png')
  Image.fromarray(digits.digits()[0][300, ..., 0]).save(photo)
  loaded = vit_jax.load(workdir)
  expected = loaded.predicted_classes(photo)
  assert expected.keys() == {'even', 'light'}
  assert loaded.predicted_classes([photo]) == [expected]
  assert list(expected.values()) == sorted(expected.values(), reverse=True)
  assert export.main([workdir, out]) == 0
  assert metadata.of_weights(out).thresholds == tuple(limits)
  capfd.readouterr()
  assert predict.main([out, photo, '--top=1', '--json']) == 0
  row = json.loads(capfd.readouterr().out)
  assert len(row['top']) == 1
  found = {x['name']: x['probability'] for x in row['predicted']}
  assert found == pytest.approx(expected, rel=1e-4)
  assert predict.main([out, photo, '--top=1']) == 0
  line = f'  predicted: {", ".join(expected)}\n'
  assert capfd.readouterr().out.endswith(line)
  table = str(tmp_path / 'out.csv')
  assert predict.main([out, photo, '--top=1', f'--out={table}']) == 0
  with open(table, encoding='utf-8') as file:
    (cells,) = csv.DictReader(file)
  assert cells['predicted'] == ';'.join(expected)
  assert os.path.basename(cells['file']) == '7.png'


def test_a_classifier_has_no_list(run):
  loaded = vit_jax.load(run[0])
  object.__setattr__(loaded, 'output', 'softmax')
  with pytest.raises(ValueError, match='does not predict several labels'):
    loaded.predicted_classes(np.zeros((8, 8, 3), np.uint8))
