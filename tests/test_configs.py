import ast
import dataclasses
import importlib.util
import shutil

import pytest

from tests import ROOT
from vit_jax import base_config
from vit_jax import models
from vit_jax.commands import config_arguments
from vit_jax.data.data_settings import Cropping
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.data_settings import Resizing
from vit_jax.tasks import task

CONFIGS = {
  'augreg.py': [
    'R_Ti_16',
    'S_16,/path/to/photos',
    'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0',
  ],
  'quickstart.py': [],
  'b16_cifar10.py': [],
  'linear_probe.py': ['ti16,/path/to/photos', 'mixer-b16,cifar10'],
  'cifar10_scratch.py': ['cpu'],
  'mixer_b16_cifar10.py': [],
  'vit.py': [
    'r50+b16,cifar10',
    'mixer-l16,cifar100',
    's16,cifar100',
    'ti16,/path/to/photos',
    'l16,imagenet2012',
  ],
}


def load(path, *args):
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*args)


def test_every_config_is_tested():
  assert {p.name for p in (ROOT / 'configs').glob('*.py')} == set(CONFIGS)


@pytest.mark.parametrize(
  'name, arg',
  [(name, arg) for name, args in CONFIGS.items() for arg in [None, *args]],
)
def test_a_copy_of_one_file_works_from_anywhere(name, arg, tmp_path):
  shutil.copy(ROOT / 'configs' / name, tmp_path / name)
  config = load(tmp_path / name, *([arg] if arg else []))
  base_config.validate(config)
  assert config.warmup_steps < config.total_steps
  assert config.batch % config.accum_steps == 0
  settings = task.model_settings(config)
  model = models.get_model(settings.pop('name'), num_classes=2, **settings)
  model.grid_size(config.pp.crop, config.pp.crop_width or config.pp.crop)
  with pytest.raises((AttributeError, KeyError), match='batch'):
    config.bach = 3  # locked; the message contains the nearest name


def test_published_settings():
  config = load(ROOT / 'configs/b16_cifar10.py')
  assert (
    config.base_lr,
    config.total_steps,
    config.batch,
    config.accum_steps,
    config.warmup_steps,
    config.pp.crop,
    config.grad_norm_clip,
  ) == (0.01, 10_000, 512, 8, 500, 384, 1.0)
  assert config.train_split == 'train[:98%]'
  config = load(ROOT / 'configs/vit.py', 'l16,imagenet2012')
  assert (
    config.base_lr,
    config.total_steps,
    config.train_split,
    config.test_split,
  ) == (0.03, 20_000, 'train[:99%]', 'validation')


@pytest.mark.parametrize(
  'args',
  [
    [],
    ['b16'],
    ['b16,'],
    ['b16,cifar10'],
    ['B_16,cifar10'],
    ['ViT-B_16,cifar10'],
  ],
)
def test_the_learning_rate_does_not_depend_on_spelling(args):
  assert load(ROOT / 'configs/vit.py', *args).base_lr == 0.01


def test_an_unknown_model_is_named_by_the_config():
  with pytest.raises(ValueError, match="'b17'.*ViT-B"):
    load(ROOT / 'configs/vit.py', 'b17,cifar10')


@pytest.mark.parametrize('model', ['mixer-b16', 'Mixer-L_16'])
def test_mixers_take_images_of_the_size_of_their_weights(model):
  config = load(ROOT / 'configs/vit.py', f'{model},cifar100')
  assert config.pp.crop == 224 and config.model.dropout_rate is None
  config = load(ROOT / 'configs/vit.py', 'l16,cifar100')
  assert config.pp.crop == 384 and config.model.dropout_rate == 0


def test_every_setting_is_read():
  """Each setting is read as an attribute outside of base_config.py.

  Settings of the data are read as fields of `DataSettings`.
  """
  read = set()  # 'config.batch', 'config.pp.crop', …
  for path in (ROOT / 'vit_jax').rglob('*.py'):
    if path.name != 'base_config.py':
      read |= {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
      }
  fields = {
    f.name
    for family in (models.VisionTransformer, models.MlpMixer)
    for f in dataclasses.fields(family)
  }
  of_data = {field.name for field in dataclasses.fields(DataSettings)}
  assert {f'settings.{name}' for name in of_data} <= read
  of_data |= {'crop', 'crop_width'}  # read as image_size
  cropping = {field.name for field in dataclasses.fields(Cropping)}
  assert {f'cropping.{name}' for name in cropping} <= read
  of_data |= cropping | {'train_crop'}  # read as kind
  of_data |= {f'train_{name}' for name in cropping}
  of_data |= {field.name for field in dataclasses.fields(Resizing)}
  for name in base_config.flatten(base_config.get_config()):
    group, _, leaf = name.rpartition('.')
    if group == 'model' and leaf != 'name':
      assert leaf in fields, name
    else:
      assert f'config.{name}' in read or leaf in of_data, name


def test_every_setting_has_a_comment():
  """The comments are the text of --help."""
  meanings = config_arguments.describe_settings()
  settings = base_config.flatten(base_config.get_config())
  assert set(meanings) == set(settings)
  for name, (title, meaning) in meanings.items():
    assert title and meaning.endswith('.') and len(meaning.split()) > 1, name
  titles = [title for title, _ in meanings.values()]
  assert 8 <= len(set(titles)) <= 12
  assert titles == sorted(titles, key=titles.index)  # each group once
