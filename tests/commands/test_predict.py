import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tensorflow as tf

from tests import ROOT
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.commands import predict
from vit_jax.commands.output import prediction_file
from vit_jax.data import preprocess
from vit_jax.inference import classify


@pytest.fixture(name='trained', scope='module')
def fixture_trained(finished_run):
  return trained_model.load_model(finished_run.workdir)


def expected(trained, paths):
  """Returns probabilities [B, K]; each image is decoded separately."""
  images = [
    preprocess.for_evaluation(tf.io.read_file(path), trained.image_size)
    for path in paths
  ]
  logits = trained.model.apply(
    {'params': trained.params}, np.stack(images), train=False
  )
  return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize('batch', [3, 100])
def test_probabilities_equal_the_model_in_the_given_order(
  finished_run, trained, batch
):
  paths = sorted(map(str, finished_run.photos.rglob('test/*/*.png')))[::-1][:17]
  found = list(classify.classify(trained, paths, top=2, batch=batch))
  assert [p.path for p in found] == paths
  for prediction, probabilities in zip(
    found, expected(trained, paths), strict=True
  ):
    assert prediction.classes == np.argsort(-probabilities)[:2].tolist()
    np.testing.assert_allclose(
      prediction.probabilities, np.sort(probabilities)[::-1][:2], rtol=1e-4
    )


def test_undecodable_images_are_listed_and_the_others_predicted(
  finished_run, tmp_path, capsys
):
  good = finished_run.photos / 'test/moss/0.png'
  (tmp_path / 'z').mkdir()
  (tmp_path / 'a.jpg').write_text('not an image')
  (tmp_path / 'b.png').write_bytes(b'')
  (tmp_path / 'c.png').write_bytes(good.read_bytes()[:200])
  (tmp_path / 'd.PNG').write_bytes(good.read_bytes())
  (tmp_path / 'z/e.png').write_bytes(good.read_bytes())
  (tmp_path / 'z/f.gif').symlink_to('/no/such/file')
  (tmp_path / 'notes.txt').write_text('no image')
  assert predict.main([finished_run.workdir, str(tmp_path), '--json']) == 1
  said = capsys.readouterr()
  rows = [json.loads(line) for line in said.out.splitlines()]
  assert [row['file'] for row in rows] == [
    str(tmp_path / 'd.PNG'),
    str(tmp_path / 'z/e.png'),
  ]
  assert rows[0]['top'] == rows[1]['top'] and len(rows[0]['top']) == 3
  not_decodable = 'not an image'
  warnings = [line for line in said.err.splitlines() if 'warning' in line]
  assert warnings == [
    f'warning: {tmp_path}/a.jpg: {not_decodable}',
    f'warning: {tmp_path}/b.png: empty',
    f'warning: {tmp_path}/c.png: truncated',
    f'warning: {tmp_path}/z/f.gif: No such file or directory',
    'warning: 4 of 6 images could not be decoded',
  ]
  assert 'right' not in said.err  # z is not a class: no accuracy is logged


def test_text_and_json_contain_the_same_predictions(
  finished_run, trained, capsys
):
  path = str(finished_run.photos / 'test/sand/3.png')
  assert predict.main([finished_run.workdir, path, '--top=2']) == 0
  text = capsys.readouterr().out.splitlines()
  assert predict.main([finished_run.workdir, path, '--top=2', '--json']) == 0
  row = json.loads(capsys.readouterr().out)
  assert row['file'] == path == text[0]
  (probabilities,) = expected(trained, [path])
  for line, top in zip(text[1:], row['top'], strict=True):
    assert top['name'] == trained.class_names[top['class']]
    assert top['probability'] == pytest.approx(
      probabilities[top['class']], rel=1e-4
    )
    assert line == f'  {100 * top["probability"]:6.2f} %  {top["name"]}'


def test_predictions_in_a_file(finished_run, tmp_path, capsys):
  photos = tmp_path / 'photos'
  shutil.copytree(finished_run.photos / 'test', photos)
  (photos / '@eaDir').mkdir()
  shutil.copy(photos / 'moss/0.png', photos / '@eaDir/0.png')
  (photos / 'moss/bad.png').write_text('not an image')
  for name in ('answers.csv', 'answers.jsonl'):
    arguments = [str(photos), '--top=2', f'--out={tmp_path}/{name}']
    assert predict.main([finished_run.workdir, *arguments]) == 1
    said = capsys.readouterr()
    assert (
      not said.out and f'30 predictions are written to {tmp_path}' in said.err
    )
    assert f'folders of runs: 1 ({photos}/@eaDir)' in said.err
    assert 'accuracy ' in said.err and f'{photos}/moss/bad.png' in said.err
  with open(tmp_path / 'answers.csv', encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  lines = (tmp_path / 'answers.jsonl').read_text().splitlines()
  assert len(rows) == len(lines) == 30
  for row, line in zip(rows, map(json.loads, lines), strict=True):
    first, second = line['top']
    assert row == {
      'file': line['file'],
      'class': first['name'],
      'probability': str(first['probability']),
      'class_2': second['name'],
      'probability_2': str(second['probability']),
    }
  assert sorted(os.listdir(tmp_path)) == [
    'answers.csv',
    'answers.jsonl',
    'photos',
  ]


def test_values_in_a_file(tmp_path):
  targets = metadata.Targets(
    ('height', 'age'), ('cm', ''), (1.0, 2.0), (2.0, 1)
  )
  trained = types.SimpleNamespace(
    output='identity', targets=targets, shown_class_names=targets.names
  )
  path = str(tmp_path / 'answers.csv')
  with prediction_file.opened(path, trained) as write:
    write(classify.Prediction('a,b.png', [0, 1], [0.5, -1.0]))
  assert pathlib.Path(path).read_text().splitlines() == [
    'file,height (cm),age',
    '"a,b.png",2.0,1.0',
  ]
  with pytest.raises(KeyError), prediction_file.opened(path, trained):
    raise KeyError
  assert os.listdir(tmp_path) == ['answers.csv']


def test_options_of_jax_change_no_prediction(finished_run, capsys):
  arguments = [finished_run.workdir, str(finished_run.photos / 'test/sand')]
  assert predict.main([*arguments, '--json']) == 0
  before = capsys.readouterr().out
  with (
    jax.enable_x64(True),
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
  ):
    assert predict.main([*arguments, '--json']) == 0
  assert capsys.readouterr().out == before != ''


def test_each_image_is_found_once_and_in_order(finished_run, tmp_path):
  photos = finished_run.photos / 'test'
  single = str(photos / 'sand/0.png')
  found = classify.find_images([single, str(photos)])
  assert len(found) == 30 and next(iter(found)) == single
  assert found[single] == 'sand'
  assert set(classify.find_images([str(photos / 'sand')]).values()) == {None}
  for argument, message in (
    (str(tmp_path), 'no images in this folder'),
    (f'{tmp_path}/x.jpg', 'no such file or folder'),
    ('-', '-: no such file or folder'),
  ):
    with pytest.raises(ValueError, match=message):
      classify.find_images([argument])


def test_a_file_with_several_links_is_predicted_once(
  finished_run, tmp_path, capsys
):
  photos = finished_run.photos / 'test'
  for name in ('sand', 'moss', 'best'):
    (tmp_path / name).mkdir()
  (tmp_path / 'moss/up').symlink_to('..')
  (tmp_path / 'moss/a.png').symlink_to(photos / 'moss/1.png')
  (tmp_path / 'best/a.png').symlink_to('../moss/a.png')
  (tmp_path / 'sand/b.png').symlink_to(photos / 'sand/2.png')
  (tmp_path / 'sand/c.png').symlink_to('b.png')
  assert classify.find_images([str(tmp_path), str(tmp_path / 'sand')]) == {
    f'{tmp_path}/best/a.png': None,
    f'{tmp_path}/sand/b.png': 'sand',
  }
  said = capsys.readouterr().err
  assert 'moss/up is a link to ' in said
  assert (
    f'4 path(s) repeat images of the list, such as {tmp_path}/moss/a.png;'
  ) in said


def test_weights_without_a_head(trained):
  headless = dict(trained.params)
  del headless['head']
  import dataclasses

  bare = dataclasses.replace(
    trained, params=headless, model=trained.model.clone(num_classes=0)
  )
  with pytest.raises(ValueError, match='no head'):
    next(classify.classify(bare, ['x.png']))


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], 'the following arguments are required: WEIGHTS, IMAGE; see'),
    (['w.npz', '.', '--top=0'], "--top: '0' is not an integer of 1 or more"),
    (['w.npz', '.', '--out=a.txt'], "'a.txt' must end in .csv or .jsonl"),
    (['w.npz', '.', '--out=no/a.csv'], 'the folder no does not exist'),
    (['w.npz', '.', '--image_size=9x'], "'9x' is neither a number of pixels"),
    (
      ['w.npz', '.', '--tip=3'],
      "unrecognized argument '--tip=3' (did you mean --top?)",
    ),
  ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit) as left:
    predict.main(arguments)
  said = capsys.readouterr()
  assert left.value.code == 2 and not said.out
  assert said.err.startswith('error: ') and said.err.count('\n') == 1
  assert message in said.err


def test_help_loads_no_tensorflow():
  code = """
import sys
from vit_jax.commands import predict
try:
  predict.main(["--help"])
except SystemExit as left:
  assert left.code == 0
assert "tensorflow" not in sys.modules and "jax" not in sys.modules"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert 'Exit status' in done.stdout
