"""The notebooks run from top to bottom with small settings."""

import ast
import json
import os
import shutil

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests import reference
from tests import ROOT
from tests import tiny_lit
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import weights_file

NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))


def read(path):
  return json.loads(path.read_text())


def run(name, settings):
  """Runs the cells of a notebook with new settings; returns its variables."""
  names = {}
  for cell in read(ROOT / 'colabs' / f'{name}.ipynb')['cells']:
    tags = cell['metadata'].get('tags', [])
    if cell['cell_type'] == 'code' and 'install' not in tags:
      exec(''.join(cell['source']), names)
      if 'settings' in tags:
        assert set(settings) <= set(names)
        names.update(settings)
  return names


@pytest.fixture(autouse=True)
def no_window():
  matplotlib.use('agg')
  yield
  plt.close('all')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_contains_no_output(path):
  notebook = read(path)
  assert notebook['nbformat'] == 4
  cells = notebook['cells']
  assert len({cell['id'] for cell in cells}) == len(cells)
  tags = [tag for cell in cells for tag in cell['metadata'].get('tags', [])]
  assert tags == ['install', 'settings']
  for cell in cells:
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None
  assert f'`colabs/{path.name}`' in (ROOT / 'README.md').read_text()


@pytest.mark.parametrize('name', ['vit_jax', 'lit'])
def test_a_notebook_defines_no_function_and_no_class(name):
  for cell in read(ROOT / 'colabs' / f'{name}.ipynb')['cells']:
    if cell['cell_type'] == 'code' and 'install' not in cell['metadata'].get(
      'tags', []
    ):
      for node in ast.walk(ast.parse(''.join(cell['source']))):
        assert not isinstance(node, (ast.FunctionDef, ast.ClassDef))


@pytest.mark.slow
def test_vit_jax(tmp_path, capsys):
  workdir = str(tmp_path / 'run')
  settings = dict(
    config_file=str(ROOT / 'configs/quickstart.py'),
    workdir=workdir,
    changes=dict(
      total_steps=3,
      warmup_steps=1,
      batch=16,
      batch_eval=64,
      checkpoint_every=0,
      model=dict(hidden_size=8, mlp_dim=8, num_layers=1),
    ),
  )
  names = run('vit_jax', settings)
  assert names['last']['step'] == 3 == names['results']['step']
  assert names['logits'].shape == (64, 10)
  out = f'{workdir}/weights_of_step_3.npz'
  assert names['out'] == out
  adaptation.adapt(
    weights_file.load(out), names['state'].params, (4, 4), keep_head=True
  )

  # A second run must not overwrite weights that the user has changed.
  with open(out, 'ab') as file:
    file.write(b'changed')
  size = os.path.getsize(out)
  capsys.readouterr()
  again = run('vit_jax', settings)
  assert again['results']['step'] == 3
  assert f'{out} exists and is left as it is' in capsys.readouterr().out
  assert os.path.getsize(out) == size


@pytest.mark.slow
def test_lit(tmp_path, monkeypatch):
  name, weights = tiny_lit.save(monkeypatch, 'transformer', tmp_path)
  photos = [
    str(reference.JPEGS / '0_32x32.jpg'),
    str(reference.JPEGS / '1_200x300.jpg'),
  ]
  for part in ('train', 'test'):
    for photo, label in zip(photos, ('cat', 'dog'), strict=True):
      (tmp_path / 'photos' / part / label).mkdir(parents=True)
      shutil.copy(photo, tmp_path / 'photos' / part / label)
  names = run(
    'lit',
    dict(
      name=name,
      weights=weights,
      photos=photos,
      dataset=str(tmp_path / 'photos'),
      dataset_settings=dict(batch_eval=8),
      workdir=str(tmp_path / 'run'),
    ),
  )
  assert names['probabilities'].shape == (2, len(names['class_names']))
  assert names['numbers']['count'] == 2
