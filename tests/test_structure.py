"""The floors of the house: imports go down only, and TensorFlow stays out."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = ('export', 'main', 'predict', 'zero_shot')
FLOORS = (
    ('augreg', 'checkpoint_paths', 'class_names', 'integrity', 'layouts',
     'models.bert', 'models.bit', 'models.dropout', 'models.fractal',
     'models.layers', 'models.linear', 'models.patches', 'models.resnet',
     'models.variants', 'numerics', 'optimizer', 'preprocess', 'report',
     'scalars', 'sharding', 'tokenizer', 'torch_names'),
    ('cache', 'models.mlp', 'models.positions', 'preemption', 'processes',
     'published', 'run_lock', 'torch_layouts'),
    ('base_config', 'download', 'models.attention', 'models.mixer',
     'models.recognition'),
    ('hub', 'models.encoder', 'models.pooling'),
    ('models.lit', 'models.vit'),
    ('adaptation', 'checkpoint', 'models.__init__', 'run_folder',
     'train_state', 'train_step', 'weights'),
    ('class_order', 'description', 'evaluate', 'flops', 'image_folder'),
    ('trained_model',),
    ('classify', 'predictions', 'pretrained', 'program', 'sources',
     'timm_config'),
    ('input_pipeline', 'lit_embeddings', 'memory'),
    ('eval_only', 'lit_classifier', 'plan'),
    ('dry_run', 'train'),
    PROGRAMS,
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS)
            for name in names}


def modules():
  for path in sorted((ROOT / 'vit_jax').rglob('*.py')):
    name = '.'.join(path.relative_to(ROOT / 'vit_jax').with_suffix('').parts)
    if name != '__init__':
      yield name, ast.parse(path.read_text())


def imports_of(tree):
  """Names of our modules that a module imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.startswith('vit_jax'):
      package = node.module.removeprefix('vit_jax').lstrip('.')
      for alias in node.names:
        name = f'{package}.{alias.name}' if package else alias.name
        if name in FLOOR_OF:
          yield name
        elif f'{name}.__init__' in FLOOR_OF:
          yield f'{name}.__init__'
        else:
          yield package


def test_every_module_has_a_floor():
  assert {name for name, _ in modules()} == set(FLOOR_OF)


def test_imports_go_down():
  for name, tree in modules():
    for imported in imports_of(tree):
      assert FLOOR_OF[imported] < FLOOR_OF[name], f'{name} imports {imported}'


def test_modules_are_imported_in_one_way():
  """`from vit_jax import x`, which is what the tests above read."""
  for name, tree in modules():
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        assert not any(a.name.startswith('vit_jax') for a in node.names), name
      if isinstance(node, ast.ImportFrom):
        assert not node.level, name


def test_tensorflow_text_is_imported_by_the_tokenizer_alone():
  for name, tree in modules():
    if name != 'tokenizer':
      assert 'tensorflow_text' not in ast.unparse(tree), name


def test_arguments_are_read_in_programs_alone():
  for name, tree in modules():
    names = {part for node in ast.walk(tree)
             if isinstance(node, (ast.Import, ast.ImportFrom))
             for alias in node.names for part in alias.name.split('.')}
    assert 'flags' not in names or name == 'main', name
    assert 'argparse' not in names or name == 'program', name
    assert ('program' in names) == (name in PROGRAMS), name
    assert 'sys.argv' not in ast.unparse(tree), name


def test_programs_are_what_can_be_started():
  assert set(PROGRAMS) == {
      name for name, tree in modules() if '__main__' in ast.unparse(tree)}


def test_configs_import_the_package_and_never_the_reverse():
  for path in (ROOT / 'vit_jax').rglob('*.py'):
    assert 'import configs' not in path.read_text()
    assert 'from configs' not in path.read_text()


@pytest.mark.parametrize('code', [
    'import vit_jax.models, vit_jax.train_state, vit_jax.optimizer, '
    'vit_jax.sharding, vit_jax.checkpoint, vit_jax.evaluate, '
    'vit_jax.trained_model, vit_jax.export',
    '''
import jax, optax
from vit_jax import models, sharding, train_step
train_step.make_update_fn(
    models.get_model('testing', num_classes=2), optax.sgd(0.1),
    lambda step: 0.1, sharding.make_mesh(), key=jax.random.key(0))'''])
def test_no_tensorflow_is_loaded(code):
  subprocess.run(
      [sys.executable, '-c',
       f'{code}\nimport sys\nassert "tensorflow" not in sys.modules'],
      check=True, cwd=ROOT)

def test_lines_are_80_columns_or_fewer():
  for folder in ('vit_jax', 'configs', 'tests', 'benchmarks', 'scripts'):
    for path in (ROOT / folder).rglob('*.py'):
      for number, line in enumerate(path.read_text().splitlines(), start=1):
        # A path, or a word to a checker, cannot be broken.
        assert len(line) <= 80 or 'pylint:' in line or 'http' in line, (
            f'{path}:{number}')
