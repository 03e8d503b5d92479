"""The commands of README do what README says."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tests import ROOT
from tests import tiny_run
from vit_jax import __main__
from vit_jax import main
from vit_jax import train

README = (ROOT / 'README.md').read_text()


def block(name):
  """Returns the lines of the code block after a mark."""
  return re.search(
    rf'<!-- {name} -->\n```\w+\n(.*?)```', README, re.DOTALL
  ).group(1)


@pytest.mark.parametrize(
  'overrides, least',
  [
    (['--config.total_steps=150'], 50),
    pytest.param([], 97, marks=pytest.mark.slow),
  ],
)
def test_the_first_command_trains(overrides, least, tmp_path):
  _, command = block('quickstart').splitlines()
  done = subprocess.run(
    [
      sys.executable,
      *shlex.split(command)[1:],
      *overrides,
      f'--workdir={tmp_path}',
    ],
    cwd=ROOT,
    text=True,
    capture_output=True,
    check=True,
    env={**os.environ, 'XLA_FLAGS': ''},  # one device, as for a newcomer
  )
  accuracy = re.search(
    r'done: accuracy ([\d.]+) % on 377 test images', done.stderr
  )
  assert float(accuracy.group(1)) >= least
  for part in (
    'left',
    str(tmp_path),
    'tensorboard --logdir',
    '--config=configs/vit.py:',
  ):
    assert part in done.stderr
  assert done.stderr.count('\n') < 40 and not done.stdout


def test_the_three_commands_for_photographs(tmp_path, monkeypatch, capsys):
  """With a tiny model, because the published weights are not here."""
  tiny_run.write_photos(tmp_path / 'photos')
  (tmp_path / 'photos/test/moss/0.png').rename(tmp_path / 'new_photo.jpg')
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  train_command, *others = map(shlex.split, block('photographs').splitlines())
  args = main.parse_arguments(train_command[3:])
  config = args.config
  config.model.update(dict(hidden_size=12, mlp_dim=8, num_layers=1))
  config.pp.crop = 32
  config.update(dict(pretrained='scratch', batch=16, accum_steps=1))
  config.update(dict(total_steps=2, warmup_steps=1, batch_eval=16))
  _, metrics, *_ = train.train_and_evaluate(
    config, main.default_workdir(args.config_name)
  )
  for command in others:
    assert __main__.main(command[3:]) == 0
  shown = capsys.readouterr()
  accuracy = (
    f'accuracy {100 * metrics["accuracy_test"]:.2f} % on 29 test images'
  )
  assert shown.err.count(accuracy) == 2
  assert 'new_photo.jpg' in shown.out
  assert all(name in shown.out for name in tiny_run.CLASSES)


def test_the_lines_of_the_library(finished_run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'workdirs').mkdir()
  (tmp_path / 'workdirs/quickstart').symlink_to(finished_run.workdir)
  photo = next(finished_run.photos.glob('test/*/*.png'))
  (tmp_path / 'photo.jpg').symlink_to(photo)
  config = finished_run.config.copy_and_resolve_references()
  config.update(dict(total_steps=2, warmup_steps=1))
  names = dict(images=np.zeros((2, 8, 12, 3)), config=config)
  exec(block('library'), names)
  assert names['logits'].shape == (2, 3) and names['features'].shape == (2, 12)
  assert set(names['model'].class_names) == set(tiny_run.CLASSES)
  assert 'accuracy_test' in names['result'].metrics
  assert (tmp_path / 'workdirs/mine/metrics.jsonl').exists()


def test_the_test_command_is_what_ci_calls():
  assert 'python -m pytest -q tests' in block('tests')
  ci = (ROOT / '.ci/run').read_text()
  assert '<!-- tests -->' in ci and 'pytest' not in ci


def test_readme_fits_on_two_screens():
  assert README.count('\n') <= 120
  text = re.sub('```.*?```', '', README, flags=re.DOTALL)
  assert len(text.split()) <= 1300
