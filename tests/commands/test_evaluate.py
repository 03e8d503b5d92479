import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import types

import numpy as np
import pytest

from tests import tiny_run
from tests.checkpoint.test_trained_model import write_weights
from tests.run.test_resuming import fixture_watched  # noqa: F401
from vit_jax import base_config
from vit_jax import train
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import trained_model
from vit_jax.commands import arguments
from vit_jax.commands import evaluate
from vit_jax.commands import predict
from vit_jax.data import class_names
from vit_jax.data import data_settings
from vit_jax.data import input_pipeline
from vit_jax.export import formats
from vit_jax.parallel import preemption
from vit_jax.run import evaluation


def make_config(run, **settings):
  """Returns the run's config with eval_only=True and the given settings."""
  config = run.config.copy_and_resolve_references()
  config.update_from_flattened_dict({'eval_only': True, **settings})
  return config


def numbers_of(row):
  return row['accuracy'], row['loss'], row['count']


def contents(folder):
  return {
    path: path.read_bytes()
    for path in pathlib.Path(folder).rglob('*')
    if path.is_file() and path.name != 'evaluations.jsonl'
  }


def test_run_export_and_prediction_have_the_same_accuracy(
  finished_run, tmp_path, capsys
):
  run, before = finished_run, contents(finished_run.workdir)
  expected = run.results['accuracy_test'], run.results['loss_test'], 30

  row = evaluation.evaluate_only(make_config(run), run.workdir)
  assert numbers_of(row) == expected
  assert contents(run.workdir) == before

  trained = trained_model.load_model(run.workdir)
  for name in ('w.npz', 'w'):
    out = str(tmp_path / name)
    formats.export(trained, out)
    numbers = tmp_path / f'numbers_{name}'
    numbers.mkdir()
    row = evaluation.evaluate_only(
      make_config(run, pretrained=out), str(numbers)
    )
    assert numbers_of(row) == expected
    assert f'{100 * expected[0]:.2f} % on 30 test' in capsys.readouterr().err

    assert predict.main([out, str(run.photos / 'test')]) == 0
    accuracy = re.search(r'([\d.]+) % on 30 images', capsys.readouterr().err)
    assert float(accuracy[1]) == pytest.approx(100 * expected[0], abs=0.005)

  # The folder with evaluations.jsonl is not mistaken for a run folder.
  assert os.listdir(numbers) == ['evaluations.jsonl']
  with open(numbers / 'evaluations.jsonl', encoding='utf-8') as file:
    (line,) = file
  assert numbers_of(json.loads(line)) == expected
  train.train_and_evaluate(
    make_config(run, eval_only=False, total_steps=3), str(numbers)
  )


def test_a_run_is_evaluated_by_its_own_command(
  finished_run, tmp_path, monkeypatch
):
  """The command may contain the initial weights of the run."""
  found = []
  monkeypatch.setattr(
    trained_model,
    'load_model',
    lambda source, **_: found.append(source) or 1 / 0,
  )
  shutil.copytree(finished_run.workdir, tmp_path / 'run')
  stored = tmp_path / 'run/config.json'
  stored.write_text(stored.read_text().replace('"scratch"', '"begun/with.npz"'))
  (tmp_path / 'other.npz').write_bytes(b'')
  for pretrained in ('begun/with.npz', 'model', f'{tmp_path}/other.npz'):
    with pytest.raises(ZeroDivisionError):
      evaluation.evaluate_only(
        make_config(finished_run, pretrained=pretrained), str(tmp_path / 'run')
      )
  assert found == [str(tmp_path / 'run')] * 2 + [f'{tmp_path}/other.npz']


def test_classes_are_matched_by_name(finished_run, tmp_path, capsys):
  trained = trained_model.load_model(finished_run.workdir)
  order = [2, 0, 1]
  head = {
    name: array[..., order] for name, array in trained.params['head'].items()
  }
  formats.export(
    dataclasses.replace(
      trained,
      class_names=tuple(tiny_run.CLASSES[i] for i in order),
      params={**trained.params, 'head': head},
    ),
    str(tmp_path / 'w.npz'),
  )
  row = evaluation.evaluate_only(
    make_config(finished_run, pretrained=str(tmp_path / 'w.npz')), str(tmp_path)
  )
  assert row['accuracy'] == finished_run.results['accuracy_test']
  assert row['loss'] == pytest.approx(finished_run.results['loss_test'])
  assert 'matched by name' in capsys.readouterr().err


def test_other_classes_are_rejected(finished_run, tmp_path):
  trained = trained_model.load_model(finished_run.workdir)
  formats.export(
    dataclasses.replace(trained, class_names=('bark', 'moss', 'mud')),
    str(tmp_path / 'w.npz'),
  )
  with pytest.raises(
    ValueError, match="'mud' in the weights, 'sand' in the data"
  ):
    evaluation.evaluate_only(
      make_config(finished_run, pretrained=str(tmp_path / 'w.npz')),
      str(tmp_path),
    )

  shutil.copytree(finished_run.photos, tmp_path / 'photos')
  shutil.copytree(tmp_path / 'photos/train/moss', tmp_path / 'photos/train/tar')
  with pytest.raises(ValueError, match=' has 3 classes, .*photos has 4'):
    evaluation.evaluate_only(
      make_config(finished_run, dataset=str(tmp_path / 'photos')),
      finished_run.workdir,
    )
  assert not (tmp_path / 'evaluations.jsonl').exists()


def test_imagenet_is_matched_by_wordnet_ids_and_bare_files_by_order(capsys):
  head = {'kernel': np.arange(1000.0)[None], 'bias': np.arange(1000.0)}
  model = dataclasses.make_dataclass('Model', ['num_classes'])(1000)
  trained = trained_model.TrainedModel(
    'w', 'ViT-B_16', {}, model, {'head': head}, (8, 8), (8, 8), None
  )

  def matched(names):
    return class_mapping.match(
      trained.params, trained.class_names, names, trained.source, 'data'
    )

  ids = class_names.imagenet_ids(1000)
  for names in (ids[::-1], trained.shown_class_names[::-1]):
    params = matched(names)
    np.testing.assert_array_equal(params['head']['bias'], head['bias'][::-1])
  assert 'warning' not in capsys.readouterr().err
  names = tuple(map(str, range(1000)))
  assert matched(names)['head'] is head
  assert 'warning: w stores no class names' in capsys.readouterr().err


def test_another_resolution(finished_run, tmp_path, capsys):
  row = evaluation.evaluate_only(
    make_config(
      finished_run, **{'pp.crop': 16, 'pretrained': finished_run.workdir}
    ),
    str(tmp_path),
  )
  assert row['image_size'] == (16, 12)
  assert row['loss'] != finished_run.results['loss_test']
  assert 'images of 8 x 12: its position' in capsys.readouterr().err


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'model.name': 'b16'}, 'ViT-B_16 .* the trained model is testing'),
    ({'model.hidden_size': 6}, 'hidden_size=6 .*config.model.hidden_size=12'),
    ({'batch_eval': 20}, 'config.batch_eval=20 is not divisible'),
    ({'pretrained': 'no/such.npz'}, 'no/such.npz'),
  ],
)
def test_mistakes(finished_run, settings, message):
  before = contents(finished_run.workdir)
  with pytest.raises(ValueError, match=message):
    evaluation.evaluate_only(
      make_config(finished_run, **settings), finished_run.workdir
    )
  assert contents(finished_run.workdir) == before


def test_nothing_to_evaluate(finished_run, tmp_path):
  with pytest.raises(
    ValueError, match='nothing to evaluate: workdir=.*config.pretrained'
  ):
    evaluation.evaluate_only(make_config(finished_run), str(tmp_path))


def test_weights_without_a_head_have_no_metrics(finished_run, tmp_path):
  """The data are not read."""
  trained = trained_model.load_model(finished_run.workdir)
  encoder = dataclasses.replace(
    trained, model=trained.model.clone(num_classes=0)
  )
  config = make_config(finished_run, dataset='/nowhere')
  with pytest.raises(ValueError, match='no head, .* the evaluators knn, few'):
    evaluation.evaluate_only(config, str(tmp_path), trained=encoder)


def test_a_published_file_keeps_its_head(tmp_path, capsys):
  """The weights are found by the name of their model."""
  write_weights(tmp_path / 'testing.npz', 'testing', num_classes=10)
  config = base_config.for_dataset('digits')
  config.model.name = 'testing'
  config.pp.crop, config.batch_eval = 32, 128
  config.pretrained_dir = str(tmp_path)
  row = evaluation.evaluate_only(config, str(tmp_path))
  assert row['count'] == 377 and 0 < row['accuracy'] < 0.3
  assert row['weights'] == str(tmp_path / 'testing.npz')


def test_sigterm_stops_the_evaluation_and_nothing_is_written(
  finished_run, tmp_path, monkeypatch, watched
):
  pipeline = input_pipeline.EXAMPLES

  def interrupted(*args):
    for number, batch in enumerate(pipeline.evaluate(*args)):
      if number == 1:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  monkeypatch.setattr(
    input_pipeline, 'EXAMPLES', pipeline._replace(evaluate=interrupted)
  )
  with pytest.raises(preemption.Preempted):
    evaluation.evaluate_only(
      make_config(finished_run, pretrained=finished_run.workdir), str(tmp_path)
    )
  assert 'evaluations.jsonl' not in os.listdir(tmp_path)


# --- the command -------------------------------------------------------------


def evaluate_command(capsys, *args):
  """Returns the JSON object that the command prints."""
  assert evaluate.main([*map(str, args), '--json']) == 0
  (line,) = capsys.readouterr().out.splitlines()
  return json.loads(line)


def test_the_command_on_a_run_uses_its_settings(finished_run, tmp_path, capsys):
  run = shutil.copytree(finished_run.workdir, tmp_path / 'run')
  (run / 'evaluations.jsonl').unlink(missing_ok=True)
  results = finished_run.results
  row = evaluate_command(capsys, run)
  assert numbers_of(row) == (results['accuracy_test'], results['loss_test'], 30)
  assert row['weights'] == str(run / 'checkpoints/20')
  assert row['split'] == 'test' and row['image_size'] == [8, 12]
  row = evaluate_command(
    capsys, run, '--step=10', '--split=train', '--image_size=16', '--batch=8'
  )
  assert row['weights'] == str(run / 'checkpoints/10')
  assert row['split'] == 'train' and row['image_size'] == [16, 16]
  with open(run / 'evaluations.jsonl', encoding='utf-8') as file:
    assert len(list(file)) == 2
  before = contents(run)
  numbers = tmp_path / 'numbers'
  evaluate_command(capsys, run, f'--workdir={numbers}')
  assert (numbers / 'evaluations.jsonl').exists() and contents(run) == before


def test_the_command_on_weights(finished_run, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'config.json').write_text('{"dataset": "of nobody"}')
  formats.export(trained_model.load_model(finished_run.workdir), 'w.npz')
  assert evaluate.main(['w.npz', f'--dataset={finished_run.photos}']) == 0
  shown = capsys.readouterr()
  accuracy = finished_run.results['accuracy_test']
  assert f'{100 * accuracy:.2f} % on 30 test images' in shown.err
  assert not shown.out
  path = tmp_path / 'workdirs/evaluate-w.npz/evaluations.jsonl'
  assert numbers_of(json.loads(path.read_text()))[0] == accuracy


def config_of(monkeypatch, *args):
  """Returns the config and the workdir that `evaluate_only` receives."""
  found = []
  monkeypatch.setattr(
    evaluation,
    'evaluate_only',
    lambda config, workdir, **_: found.append((config, workdir)),
  )
  evaluate.main(list(map(str, args)))
  return found[0]


def test_the_config_of_the_command(finished_run, tmp_path, monkeypatch):
  run = shutil.copytree(finished_run.workdir, tmp_path / 'run')
  stored = json.loads((run / 'config.json').read_text())
  changed = {'test_split': 'validation', 'mesh.fsdp': 7, 'of_later': 1}
  (run / 'config.json').write_text(json.dumps({**stored, **changed}))
  config, workdir = config_of(monkeypatch, run)
  assert workdir == str(run)
  expected = {**stored, 'test_split': 'validation'}
  assert json.loads(json.dumps(base_config.flatten(config))) == expected
  config, _ = config_of(monkeypatch, run, '--dataset=imagenet2012')
  assert config.dataset == 'imagenet2012'
  assert (config.train_split, config.test_split) == (
    'train[:99%]',
    'validation',
  )
  assert config.batch_eval == stored['batch_eval']
  config, _ = config_of(
    monkeypatch,
    *(run, '--batch=24', '--image_size=16x20', '--tfds_data_dir=sets'),
  )
  assert (config.pp.crop, config.pp.crop_width) == (16, 20)
  assert (config.batch_eval, config.tfds_data_dir) == (24, 'sets')
  formats.export(
    trained_model.load_model(finished_run.workdir), str(tmp_path / 'w')
  )
  config, _ = config_of(
    monkeypatch, tmp_path / 'w', '--dataset=digits', f'--workdir={tmp_path}/x'
  )
  assert config.batch_eval == 64 and config.pp.crop_width == 12


@pytest.mark.parametrize(
  'args, message',
  [
    ([], 'required: WEIGHTS'),
    (['{run}', '--batch=20'], '--batch=20 is not divisible by 8 device(s)'),
    (['{run}', '--dataset=./none'], "--dataset='./none': no such folder"),
    (['{run}', '--split=none'], 'none'),
    (['{run}', '--step=3'], 'step=3 has no checkpoint'),
    (['{run}', '--image_size=9'], '9'),
    (['{run}', '--model=b16'], 'the trained model is testing'),
    (['{run}', '--dateset=x'], "'--dateset=x' (did you mean --dataset?)"),
    (['w.npz'], 'Use --dataset=…'),
    (['{run}', '--workdir=w.npz/x'], '--workdir=w.npz/x cannot be written'),
  ],
)
def test_mistakes_of_the_command(
  finished_run, tmp_path, monkeypatch, capsys, args, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'w.npz').write_bytes(b'')
  (tmp_path / 'config.json').write_text('{"dataset": "of another"}')
  before = contents(finished_run.workdir)
  with pytest.raises(SystemExit) as ended:
    evaluate.main([arg.format(run=finished_run.workdir) for arg in args])
  assert ended.value.code == 2
  shown = capsys.readouterr()
  (line,) = (x for x in shown.err.splitlines() if x.startswith('error: '))
  assert message in line and not shown.out
  assert contents(finished_run.workdir) == before


def test_sigterm_ends_the_command(finished_run, tmp_path, monkeypatch, capsys):
  def preempted(*_, **__):
    raise preemption.Preempted

  monkeypatch.setattr(evaluation, 'evaluate_only', preempted)
  status = evaluate.main([finished_run.workdir, f'--workdir={tmp_path}'])
  assert status == 143
  assert 'stopped by SIGTERM' in capsys.readouterr().err


def test_another_dataset_has_the_default_data_settings():
  args = types.SimpleNamespace(batch=8, split=None, tfds_data_dir=None)
  trained = types.SimpleNamespace(
    task='classification',
    image_size=(8, 8),
    exif='auto',
    background='auto',
    resizing=data_settings.DEFAULT_RESIZING,
  )
  stored = {
    'dataset': 'a.npz',
    'data_on': 'device',
    'validation': 'held',
    'sampling': 'balanced',
    'repeats': 3,
  }
  for args.dataset, expected in (
    (None, ('device', 'held', 'uniform', 1)),
    ('photos', ('host', '', 'uniform', 1)),
  ):
    config = arguments.dataset_config(args, trained, stored)
    found = config.data_on, config.validation, config.sampling, config.repeats
    assert found == expected


def test_evaluators_read_the_labels_that_a_run_ignored(finished_run):
  """As after pre-training on a labelled dataset with config.labels=none."""
  trained = trained_model.load_model(finished_run.workdir)
  stored = {'dataset': str(finished_run.photos), 'labels': 'none'}
  for evaluators, labels in ((['knn'], ''), (None, 'none')):
    args = types.SimpleNamespace(
      **dict.fromkeys(('dataset', 'batch', 'split', 'tfds_data_dir')),
      evaluators=evaluators,
    )
    config = arguments.dataset_config(args, trained, stored)
    assert config.labels == labels
