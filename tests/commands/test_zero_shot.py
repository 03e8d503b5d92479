import json
import os
import subprocess
import sys
import time

import jax
import pytest

from tests import reference
from tests import ROOT
from tests import tiny_lit
from vit_jax.commands import zero_shot
from vit_jax.inference import classify
from vit_jax.inference import lit_embeddings

IMAGES = [
  str(reference.JPEGS / name) for name in ('0_32x32.jpg', '1_200x300.jpg')
]


@pytest.fixture(name='model')
def fixture_model(tmp_path, monkeypatch):
  """Returns the arguments of a tiny model."""
  name, weights = tiny_lit.save(monkeypatch, 'bert', tmp_path)
  return [name, f'--weights={weights}']


def test_images_are_optional_arguments(capsys):
  with pytest.raises(SystemExit):
    zero_shot.main([])
  message = capsys.readouterr().err
  assert 'MODEL' in message and 'IMAGE' not in message


def test_images_text_and_json(model, capsys):
  classes = ['cat', 'dog', 'fire truck']
  given = '--classes=cat, dog,fire truck'
  assert zero_shot.main([*model, given, '--top=2', *IMAGES]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == IMAGES[0] and lines[3] == IMAGES[1] and len(lines) == 6
  assert zero_shot.main([*model, given, '--json', *IMAGES]) == 0
  for i, line in enumerate(capsys.readouterr().out.splitlines()):
    row = json.loads(line)
    assert row['file'] == IMAGES[i]
    assert {c['name'] for c in row['top']} == {'cat', 'dog', 'fire truck'}
    shares = [c['probability'] for c in row['top']]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert lines[3 * i + 1] == (
      f'  {100 * shares[0]:6.2f} %  {row["top"][0]["name"]}'
    )
    assert [classes[c['class']] for c in row['top']] == [
      c['name'] for c in row['top']
    ]


def test_options_of_jax_change_no_answer(model, capsys):
  arguments = [*model, '--classes=cat,dog', '--json', *IMAGES]
  assert zero_shot.main(arguments) == 0
  before = capsys.readouterr().out
  with (
    jax.enable_x64(True),
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
  ):
    assert zero_shot.main(arguments) == 0
  assert capsys.readouterr().out == before != ''


def test_names_in_a_file_prompts_and_imagenet(model, tmp_path, capsys):
  (tmp_path / 'names').write_text('cat\ndog\nfire truck\n')
  (tmp_path / 'names.json').write_text(
    json.dumps(['cat', 'dog', 'fire truck'], indent=2)
  )
  results = []
  for args in (
    ['--classes=cat,dog,fire truck'],
    [f'--classes_file={tmp_path}/names'],
    [f'--classes_file={tmp_path}/names.json'],
    [f'--classes_file={tmp_path}/names', '--prompt=the {}', '--prompt={}'],
  ):
    zero_shot.main([*model, *args, '--json', IMAGES[0]])
    results.append(capsys.readouterr().out)
  assert results[0] == results[1] == results[2] != results[3]


@pytest.mark.parametrize(
  'places',
  [
    ['--weights_sources=/nowhere,{}'],
    ['--pretrained_dir={}/vit_models/lit', '--weights_sources='],
  ],
)
def test_weights_and_vocabulary_from_a_mirror(
  places, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  (tmp_path / 'vit_models/lit').mkdir(parents=True)
  name, path = tiny_lit.save(monkeypatch, 'bert', tmp_path / 'vit_models/lit')
  loaded = []
  monkeypatch.setattr(
    lit_embeddings, '_check_weights', lambda *args: loaded.append(args[-1])
  )
  monkeypatch.setattr(zero_shot, '_classify', lambda *args: 0)
  zero_shot.main(
    [
      name,
      '--classes=cat,dog',
      IMAGES[0],
      *(place.format(tmp_path) for place in places),
    ]
  )
  assert loaded == [path]


def test_an_undecodable_image_does_not_stop_the_others(model, tmp_path, capsys):
  (tmp_path / 'broken.jpg').write_text('x')
  args = [*model, '--classes=cat,dog', f'{tmp_path}/broken.jpg', IMAGES[1]]
  assert zero_shot.main(args) == 1
  done = capsys.readouterr()
  assert 'broken.jpg: not an image' in done.err
  assert done.out.startswith(IMAGES[1])


def test_running_out_of_memory_gives_advice(model, monkeypatch, capsys):
  def fail(*args, **kwargs):
    raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(classify, 'classify', fail)
  with pytest.raises(SystemExit):
    zero_shot.main([*model, '--classes=cat,dog', IMAGES[0]])
  assert 'A smaller --batch needs less memory' in capsys.readouterr().err


@pytest.mark.parametrize(
  'args, message',
  [
    ([], 'required: MODEL'),
    (['LiT-B16B'], 'Use image files or folders. To measure the accuracy'),
    (['LiT-B16B', IMAGES[0]], "--classes=cat,dog,'fire truck'"),
    (
      ['LiT-B16B', '--classes=cat', '--classes_file=x', IMAGES[0]],
      '--classes and --classes_file cannot be combined',
    ),
    (
      ['LiT-B16B', '--classes=cat,dog', '--top=0', IMAGES[0]],
      "--top: '0' is not an integer of 1 or more",
    ),
    (
      ['LiT-B16B', '--classes=cat,dog', 'a.jpg'],
      'a.jpg: no such file or folder',
    ),
    (['LiT-B16B', '--classes=cat,dog', '.'], '.: no images in this folder'),
    (
      ['LiT-B16B', '--classes=', IMAGES[0]],
      "--classes='' contains no class name",
    ),
    (['LiT-B16B', '--classes=cat,', IMAGES[0]], 'a class name is empty'),
    (
      ['LiT-B16B', '--classes=cat,dog', '--prompt=a', IMAGES[0]],
      "prompt 'a' has no {}",
    ),
    (
      ['LiT-B17', '--classes=cat,dog', IMAGES[0]],
      "no model is named 'LiT-B17'",
    ),
    (
      ['LiT-B16B', '--clases=cat,dog', IMAGES[0]],
      "unrecognized argument '--clases=cat,dog' (did you mean --classes?)",
    ),
  ],
)
def test_a_mistake_is_one_line(args, message, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as left:
    zero_shot.main(args)
  said = capsys.readouterr().err
  assert left.value.code == 2
  assert message in said
  assert said.startswith('error: ') and said.count('\n') == 1


def test_help_is_quick(tmp_path):
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-m', 'vit_jax', 'zero_shot', '--help'],
    cwd=tmp_path,
    text=True,
    capture_output=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert time.monotonic() - start < 2
  assert 'python -m vit_jax zero_shot LiT-B16B' in done.stdout
