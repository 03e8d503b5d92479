"""Rules for imports, TensorFlow, names and type hints in the package."""

import ast
import re
import subprocess
import sys

import pytest

from tests import ROOT
from vit_jax.models import param_paths

# Packages from bottom to top. A package imports only itself and earlier ones.
ORDER = (
  'console',
  'files',
  'parallel',
  'models',
  'augment',
  'data',
  'checkpoint',
  'inference',
  'optim',
  'evaluators',
  'figures',
  'tasks',
  'base_config',
  'config_file',
  'train_state',
  'train_step',
  'run',
  'cost',
  'report',
  'train',
  'export',
  'commands',
  '__main__',
  'main',
)


def modules():
  """Yields (dotted name within vit_jax, syntax tree) of each module."""
  for path in sorted((ROOT / 'vit_jax').rglob('*.py')):
    parts = path.relative_to(ROOT / 'vit_jax').with_suffix('').parts
    if parts != ('__init__',):
      yield '.'.join(parts), ast.parse(path.read_text())


def imports_of(tree):
  """Yields (dotted name, line) of each vit_jax module that is imported."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.startswith('vit_jax'):
      package = node.module.removeprefix('vit_jax').lstrip('.')
      for alias in node.names:
        yield f'{package}.{alias.name}'.lstrip('.'), node.lineno


def test_every_package_is_in_the_order():
  found = {name.partition('.')[0] for name, _ in modules()}
  assert found == set(ORDER)


def test_imports_go_down():
  for name, tree in modules():
    package = name.partition('.')[0]
    for imported, line in imports_of(tree):
      below = imported.partition('.')[0]
      assert below == package or (ORDER.index(below) < ORDER.index(package)), (
        f'{name}, line {line}, imports {imported}'
      )


def test_no_circular_imports_within_a_package():
  imports = {name.removesuffix('.__init__'): set() for name, _ in modules()}
  for name, tree in modules():
    for imported, _ in imports_of(tree):
      if imported not in imports:  # an object in a module
        imported = imported.rpartition('.')[0]
      imports[name.removesuffix('.__init__')].add(imported)
  done = set()

  def visit(name, path):
    assert name not in path, f'a circle: {" > ".join([*path, name])}'
    if name not in done:
      for imported in imports[name]:
        visit(imported, [*path, name])
      done.add(name)

  for name in imports:
    visit(name, [])


def test_every_package_has_a_docstring():
  for path in (ROOT / 'vit_jax').rglob('__init__.py'):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, path


def test_a_package_states_what_it_imports():
  imports = {}
  for name, tree in modules():
    package = name.partition('.')[0]
    imports.setdefault(package, set()).update(
      imported.partition('.')[0] for imported, _ in imports_of(tree)
    )
  for path in (ROOT / 'vit_jax').glob('*/__init__.py'):
    package = path.parent.name
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    sentence = re.search(r'Imports ((?:[^.]|\.py)*)\.', docstring)[1]
    if package != 'commands':  # it imports all other packages
      stated = set(re.findall(r'`(\w+)`', sentence)) - {'vit_jax'}
      assert stated == imports[package] - {package}, package


def test_packages_have_few_modules():
  def entries(folder):
    return [
      path
      for path in folder.iterdir()
      if path.suffix == '.py' or (path / '__init__.py').exists()
    ]

  assert len(entries(ROOT / 'vit_jax')) <= 25
  for path in (ROOT / 'vit_jax').rglob('__init__.py'):
    assert (
      path.parent.name == 'vit_jax'
      or len([p for p in entries(path.parent) if p.name != '__init__.py']) <= 13
    )


def test_modules_are_imported_in_one_way():
  """Checks for `from vit_jax import x`, the form that `imports_of` reads."""
  for name, tree in modules():
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        assert not any(a.name.startswith('vit_jax') for a in node.names), name
      if isinstance(node, ast.ImportFrom):
        assert not node.level, name


def test_tensorflow_is_imported_in_few_places():
  for name, tree in modules():
    for node in ast.walk(tree):
      imported = {
        ast.Import: lambda n: [alias.name for alias in n.names],
        ast.ImportFrom: lambda n: [n.module],
      }.get(type(node), lambda n: [])(node)
      for module in imported:
        if module.partition('.')[0] in ('clu', 'tensorboard'):
          assert name == 'run.writers.events'
        elif module.startswith('tensorflow'):
          assert name.startswith('data.')


def test_tensorflow_text_is_imported_only_by_the_tokenizer():
  for name, tree in modules():
    if name != 'data.tokenizer':
      assert 'tensorflow_text' not in ast.unparse(tree), name


def test_arguments_are_read_only_in_commands():
  for name, tree in modules():
    names = {
      part
      for node in ast.walk(tree)
      if isinstance(node, (ast.Import, ast.ImportFrom))
      for alias in node.names
      for part in alias.name.split('.')
    }
    assert not {'absl', 'flags', 'config_flags'} & names, name
    assert 'argparse' not in names or name in (
      'commands.arguments',
      'commands.parsing.command_line',
      'commands.parsing.config_arguments',
      'main',  # for a type annotation
    ), name
    assert 'sys.argv' not in ast.unparse(tree) or name in (
      '__main__',
      'main',
    ), name


def test_attributes_of_modules_are_passed_by_keyword():
  """With keywords, the position of a new attribute does not matter."""
  classes = {
    node.name: node
    for name, tree in modules()
    if name.startswith('models.')
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
  }
  assert {'EncoderBlock', 'LayerSettings', 'Layout'} <= set(classes)
  for name, tree in modules():
    for node in ast.walk(tree):
      if isinstance(node, ast.Call):
        called = ast.unparse(node.func).rpartition('.')[2]
        # Convolutions of Flax take features and kernel_size by position.
        allowed = {'StdConv': 2, 'conv': 2}.get(called, 0)
        if called in classes or called in ('conv', 'block_class'):
          assert len(node.args) <= allowed, f'{name}: {ast.unparse(node)}'


def test_parameter_paths_are_spelled_once():
  """Checks that only `models/param_paths.py` contains parameter paths."""
  readers = {
    name: tree
    for name, tree in modules()
    if name.startswith('checkpoint.') or name == 'models.architecture'
  }
  paths = {
    value
    for name, value in vars(param_paths).items()
    if name.isupper() and len(value) > len('head')
  } | {'cls'}
  assert {'registers', 'MAPHead_0', 'MultiHeadDotProductAttention_0'} < paths
  for name, tree in readers.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = {node.value, *node.value.rstrip('/').split('/')}
        assert ' ' in node.value or not parts & paths, f'{name}: {node.value}'


def public_functions(body):
  """Yields public functions, and public methods of public classes."""
  for node in body:
    if getattr(node, 'name', '_').startswith('_'):
      continue
    if isinstance(node, ast.ClassDef):
      yield from public_functions(node.body)
    elif isinstance(node, ast.FunctionDef):
      yield node


def test_public_functions_have_type_hints():
  count = 0
  for name, tree in modules():
    for function in public_functions(tree.body):
      count += 1
      signature = function.args
      without = {
        arg.arg
        for arg in (
          *signature.posonlyargs,
          *signature.args,
          *signature.kwonlyargs,
          *filter(None, (signature.vararg, signature.kwarg)),
        )
        if arg.annotation is None
      } - {'self', 'cls'}
      assert not without, f'{name}.{function.name}: {without}'
      assert function.returns is not None, f'{name}.{function.name}'
  assert count > 200


def test_modules_that_can_be_started():
  assert {'__main__', 'main'} == {
    name
    for name, tree in modules()
    if "__name__ == '__main__'" in ast.unparse(tree)
  }


def test_configs_import_the_package_and_never_the_reverse():
  for path in (ROOT / 'vit_jax').rglob('*.py'):
    assert 'import configs' not in path.read_text()
    assert 'from configs' not in path.read_text()


WITHOUT_TENSORFLOW = """
import sys
import vit_jax.train, vit_jax.inference.classify, vit_jax.export.formats
assert 'tensorflow' not in sys.modules, 'imports'

import jax, optax
from vit_jax import models, train_step
from vit_jax.parallel import numerics, sharding
from vit_jax.tasks import classification
train_step.make_update_fn(
    classification.of_model(models.get_model('testing', num_classes=2)),
    optax.sgd(0.1), lambda step: 0.1, sharding.make_mesh(),
    keys=numerics.run_keys(0))
assert 'tensorflow' not in sys.modules, 'a step'

import numpy as np
import vit_jax
from tests.digits_run import make_config
from vit_jax.run import setup
batch = {'image': np.zeros((32, 8, 8, 3)), 'label': np.zeros(32, int)}
given = vit_jax.data.from_batches([batch], test=[batch], num_classes=10)
data = setup.get_datasets(make_config(), given=given)
next(data.train()), next(data.test()), data.spec()
assert 'tensorflow' not in sys.modules, 'batches'
"""


def test_no_tensorflow_is_loaded():
  """Not by imports, a training step or batches of the caller."""
  subprocess.run(
    [sys.executable, '-c', WITHOUT_TENSORFLOW], check=True, cwd=ROOT
  )


@pytest.mark.parametrize('options', [['check'], ['format', '--check']])
def test_ruff_finds_nothing(options):
  subprocess.run(
    [sys.executable, '-m', 'ruff', *options, '--no-cache', '.'],
    check=True,
    cwd=ROOT,
  )
