"""The notebooks run from top to bottom with small settings."""

import ast
import json
import os
import re
import shutil
import sys

import nbclient
import nbformat
import pytest

from scripts import make_notebook
from scripts import set_repository
from tests import reference
from tests import ROOT
from tests import tiny_lit
import vit_jax
from vit_jax import base_config
from vit_jax import models
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import weights_file
from vit_jax.run import given
from vit_jax.run import setup

NAMES = ('vit_jax', 'vit_jax_augreg', 'lit', 'annotated_vit', 'library')
# A form field of Colab: a list of values, a type, or both.
_PARAM = re.compile(r'^\w+ = .*?  # @param (\[.*?\])? ?(\{.*\})?$')


def read(name):
  return nbformat.read(ROOT / f'colabs/{name}.ipynb', as_version=4)


def cell_with(notebook, tag):
  (cell,) = [c for c in notebook.cells if tag in c.metadata.get('tags', [])]
  return cell


def run(name, folder, /, **settings):
  """Runs a notebook in a copy of the repository; returns its printed text.

  Args:
    name: of the notebook.
    folder: where the notebook finds the folders of the repository.
    **settings: variables that replace those of the cell of settings.
  """
  for part in ('configs', 'vit_jax'):
    if not (folder / part).exists():
      (folder / part).symlink_to(ROOT / part)
  (folder / 'colabs').mkdir(exist_ok=True)
  notebook = read(name)
  cell = cell_with(notebook, 'settings')
  assert set(settings) <= {
    node.id
    for node in ast.walk(ast.parse(cell.source))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  }
  cell.source += ''.join(f'\n{key} = {x!r}' for key, x in settings.items())
  client = nbclient.NotebookClient(
    notebook,
    timeout=None,
    resources={'metadata': {'path': str(folder / 'colabs')}},
  )
  with pytest.MonkeyPatch.context() as patch:  # the notebook sets it
    patch.delenv('TF_CPP_MIN_LOG_LEVEL', raising=False)
    client.execute()
  outputs = [
    output for cell in notebook.cells for output in cell.get('outputs', [])
  ]
  texts = [
    ''.join(output.get('text', output.get('data', {}).get('text/plain', '')))
    for output in outputs
  ]
  text = '\n'.join(texts)
  # A message names the file of the weights exactly. Nothing else is absolute.
  others = re.sub('^starting from .*', '', text, flags=re.M)
  for place in (str(ROOT), str(folder), os.path.expanduser('~'), sys.prefix):
    assert place not in others, text
  # Jupyter shows stderr in red.
  assert not [o for o in outputs if o.get('name') == 'stderr'], text
  return text


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_is_valid_and_contains_no_output(name):
  notebook = read(name)
  nbformat.validate(notebook)
  cells = notebook.cells
  assert len({cell.id for cell in cells}) == len(cells)
  tags = [tag for cell in cells for tag in cell.metadata.get('tags', [])]
  assert tags == ['install', 'settings']
  for cell in cells:
    if cell.cell_type == 'code':
      assert cell.outputs == [] and cell.execution_count is None
  assert notebook.metadata.accelerator == 'GPU'
  assert cells[0].source.startswith('# ')
  assert set_repository.MARKERS in cells[0].source
  assert f'`colabs/{name}.ipynb`' in (ROOT / 'README.md').read_text()


def test_all_notebooks_install_in_the_same_way():
  """Only the requirements differ, and the first cell hides its code."""
  line = re.compile(r'^REQUIREMENTS = .*?}$', re.M | re.S)
  expected = line.sub('', make_notebook.INSTALL).strip()
  assert {path.stem for path in (ROOT / 'colabs').iterdir()} == set(NAMES)
  for name in NAMES:
    cell = cell_with(read(name), 'install')
    assert line.sub('', cell.source).strip() == expected, name
    assert cell.metadata.cellView == 'form'
    requirements = ast.literal_eval(
      line.search(cell.source).group().partition(' = ')[2]
    )
    assert requirements['vit_jax'].startswith('-e .')


@pytest.mark.parametrize('name', NAMES)
def test_links_anchors_and_fields_of_a_notebook(name):
  notebook = read(name)
  text = '\n'.join(
    cell.source for cell in notebook.cells if cell.cell_type == 'markdown'
  )
  anchors = re.findall(r'<a name="([\w-]+)"></a>', text)
  assert re.findall(r'\]\(#([\w-]+)\)', text) == anchors
  for path in re.findall(r'\]\(([^)#]+)', text):
    if not path.startswith('http'):
      assert (ROOT / 'colabs' / path).exists(), path
  code = '\n'.join(
    cell.source for cell in notebook.cells if cell.cell_type == 'code'
  )
  for path in re.findall(r'configs/\w+\.py', text + code):
    assert (ROOT / path).exists()
  for line in code.splitlines():
    if '# @param' in line:
      choices, options = _PARAM.match(line).groups()
      assert choices or options, line
      value = ast.literal_eval(line.partition(' = ')[2].partition('  #')[0])
      if choices:
        assert value in json.loads(choices), line


@pytest.mark.parametrize('name', ['vit_jax', 'vit_jax_augreg', 'lit'])
def test_a_notebook_defines_no_function_and_no_class(name):
  for cell in read(name).cells:
    if cell.cell_type == 'code':
      for node in ast.walk(ast.parse(cell.source)):
        assert not isinstance(node, (ast.FunctionDef, ast.ClassDef))


def test_each_experiment_of_vit_jax_can_start():
  source = cell_with(read('vit_jax'), 'settings').source
  field = re.search(r'^experiment = .*# @param (\[.*\])$', source, re.M)
  for experiment in json.loads(field.group(1)):
    names = {}
    chosen = source.replace(field.group(), f'experiment = {experiment!r}')
    exec(chosen, names)
    config = vit_jax.get_config(names['config_file'])
    config.update(names['changes'])
    setup.check(config, given.Given())


def test_offered_datasets_have_known_splits():
  """Without settings, the splits are train and test, as in the pets of TFDS."""
  for name in ('vit_jax_augreg', 'lit'):
    source = cell_with(read(name), 'settings').source
    offered = re.search(r'^dataset = .*# @param (\[.*?\])', source, re.M)
    assert set(json.loads(offered.group(1))) <= {
      *base_config.DATASETS,
      'oxford_iiit_pet',
    }


@pytest.fixture(name='photos')
def fixture_photos(tmp_path):
  """Two classes of photos, in splits; returns the relative path."""
  for part in ('train', 'test'):
    for name, label in (('0_32x32', 'cat'), ('1_200x300', 'dog')):
      (tmp_path / 'photos' / part / label).mkdir(parents=True)
      shutil.copy(
        reference.JPEGS / f'{name}.jpg', tmp_path / 'photos' / part / label
      )
  return 'photos'


def save_ti16(path, num_classes):
  """Writes random weights of ViT-Ti/16 for 224 pixels, as AugReg's files."""
  model = models.get_model('ti16', num_classes=num_classes)
  params = reference.initial_params(model, (224, 224))
  weights_file.save(str(path), params)
  return str(path)


@pytest.mark.slow
def test_vit_jax(tmp_path):
  """A second run resumes, and does not overwrite exported weights."""
  weights = save_ti16(tmp_path / 'imagenet.npz', 1000)
  described = metadata.Description(name='ViT-Ti_16', image_size=(224, 224))
  path = metadata.path_for(weights)
  (tmp_path / path).write_text(json.dumps(described.to_json()))
  settings = dict(
    imagenet_weights='imagenet.npz',
    changes=dict(
      total_steps=3,
      warmup_steps=1,
      batch=16,
      batch_eval=64,
      checkpoint_every=0,
      model=dict(hidden_size=8, mlp_dim=8, num_heads=2, num_layers=1),
    ),
    workdir='workdirs/run',
  )
  first = run('vit_jax', tmp_path, **settings)
  assert '1420 training images, 377 test images' in first
  assert len(re.findall(r'^ *[\d.]+%  ', first, re.M)) == 10  # ImageNet
  assert 'no attention' in first and 'no rollout' not in first
  out = tmp_path / 'workdirs/run/weights_of_step_3.npz'
  assert (tmp_path / 'workdirs/run/timm_3/model.safetensors').exists()
  assert set(weights_file.load(str(out))) == {
    'Transformer',
    'embedding',
    'head',
  }

  out.write_bytes(out.read_bytes() + b'changed')
  size = out.stat().st_size
  second = run('vit_jax', tmp_path, **settings)
  assert 'weights_of_step_3.npz exists and is left as it is' in second
  assert out.stat().st_size == size
  accuracy = re.compile(r'^[\d.]+% of 377 test images$', re.M)
  assert accuracy.search(first).group() == accuracy.search(second).group()


INDEX = """\
name,ds,aug,wd,do,sd,final_val,adapt_ds,adapt_resolution,adapt_final_val,\
adapt_final_test,params,infer_samples_per_sec,filename,adapt_filename
Ti_16,i21k,none,0.03,0.0,0.0,0.3,imagenet2012,224,0.7,0.71,5.7,9000,a.npz,a224
Ti_16,i21k,none,0.03,0.0,0.0,0.3,imagenet2012,384,0.7,0.79,5.7,2000,a.npz,a384
Ti_16,i21k,light1,0.1,0.1,0.1,0.2,imagenet2012,224,0.6,0.9,5.7,9000,b.npz,b224
Ti_16,i1k,light1,0.1,0.0,0.0,0.2,imagenet2012,224,0.5,0.6,5.7,9000,c.npz,c224
S_16,i21k,none,0.03,0.0,0.0,0.4,imagenet2012,224,0.8,0.77,22,4000,d.npz,d224
S_16,i21k,none,0.03,0.0,0.0,0.4,cifar10,224,0.9,0.95,22,4000,d.npz,dc
"""
BEST = 'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'


def run_augreg(tmp_path, photos):
  """Runs the notebook with an index of five files of random weights."""
  tuned = f'{BEST}--imagenet2012-steps_20k-lr_0.03-res_224'
  index = INDEX.replace('a.npz', f'{BEST}.npz').replace('a224', tuned)
  (tmp_path / 'index.csv').write_text(index)
  save_ti16(tmp_path / f'{BEST}.npz', 10)
  save_ti16(tmp_path / f'{tuned}.npz', 1000)
  return run(
    'vit_jax_augreg',
    tmp_path,
    index='index.csv',
    dataset=photos,
    changes=dict(
      **dict(pp=dict(crop=32), batch=8, batch_eval=8),
      **dict(total_steps=2, warmup_steps=1, accum_steps='auto'),
    ),
    workdir='workdirs/augreg',
  )


@pytest.mark.slow
def test_vit_jax_augreg(tmp_path, photos):
  """The choice uses held-out images: b224 is better on test images only."""
  text = run_augreg(tmp_path, photos)
  assert '6 rows, 4 pre-trained files' in text
  tuned = f'{BEST}--imagenet2012-steps_20k-lr_0.03-res_224'
  assert f'\n{tuned}: ViT-Ti_16, 5,717,416 parameters' in text
  assert re.search(f'^starting from .*/{BEST}.npz: 2 steps', text, re.M)
  assert len(re.findall(r'^ *[\d.]+%  ', text, re.M)) == 5
  assert re.search('nothing was compared|of the largest logit', text)


@pytest.mark.interop
@pytest.mark.slow
def test_vit_jax_augreg_compares_with_timm(tmp_path, photos):
  assert 'of the largest logit' in run_augreg(tmp_path, photos)


@pytest.mark.slow
def test_lit(tmp_path, photos, monkeypatch):
  """The kernel of the notebook gets the tiny model from `sitecustomize`."""
  name, weights = tiny_lit.save(monkeypatch, 'transformer', tmp_path)
  (tmp_path / 'sitecustomize.py').write_text(
    """
import pytest
from tests import tiny_lit
tiny_lit.register(pytest.MonkeyPatch())
"""
  )
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{ROOT}')
  text = run(
    'lit',
    tmp_path,
    name=name,
    weights=os.path.basename(weights),
    dataset=photos,
    batch=8,
  )
  assert re.search(r'% of 2 test images', text)
  assert re.search(r'cat [\d.]+%', text) and re.search(r'dog [\d.]+%', text)


@pytest.mark.slow
def test_annotated_vit(tmp_path):
  """The notebook compares each of its functions with the library itself."""
  text = run(
    'annotated_vit',
    tmp_path,
    steps=4,
    comparison_steps=2,
    seeds=1,
    batch_size=8,
  )
  assert len(re.findall('largest difference', text)) == 8
