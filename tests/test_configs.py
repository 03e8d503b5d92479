import ast
import dataclasses
import importlib.util
import shutil

import pytest

from tests import ROOT
from vit_jax import base_config
from vit_jax import models
from vit_jax.augment import augreg_levels
from vit_jax.augment.augmentation import Settings
from vit_jax.commands.parsing import config_arguments
from vit_jax.data.data_settings import Cropping
from vit_jax.data.data_settings import DataSettings
from vit_jax.data.data_settings import Resizing
from vit_jax.optim import hyperrule
from vit_jax.optim import run_length
from vit_jax.run import setup
from vit_jax.tasks import task

CONFIGS = {
  'dino.py': ['s16,cifar10', 'ti16'],
  'mae.py': ['s16,cifar10', 'b16'],
  'masked_patches.py': ['b16,cifar10', 's16'],
  'augreg_i1k.py': ['S_16,medium2', 'L_16', 'B_8,none'],
  'augreg_i21k.py': ['Ti_16', 'L_16,/path/to/photos', 'B_8,imagenet21k,none'],
  'bit_hyperrule.py': ['BiT-R50x1,cifar10', 'b16,/path/to/photos'],
  'deit.py': ['ti16', 'b16'],
  'deit3.py': ['s16', 'l16'],
  'plain_s16_i1k.py': ['150'],
  'sam_i1k.py': ['Mixer-B_32', 'S_16,gsam'],
  'augreg.py': [
    'R_Ti_16',
    'S_16,/path/to/photos',
    'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0',
  ],
  'quickstart.py': [],
  'b16_cifar10.py': [],
  'linear_probe.py': ['ti16,/path/to/photos', 'mixer-b16,cifar10'],
  'cifar10_scratch.py': ['cpu', 'gpu,150'],
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
  if config.hyperrule:
    config.update_from_flattened_dict(hyperrule.settings(1000, (32, 32)))
  setup.check(config)
  assert config.total_epochs or config.warmup_steps < config.total_steps
  if config.warmup_epochs:  # the data may have any size
    for num_images in (500, 20_000, 10**7):
      length = run_length.resolve(config, num_images)
      run_length.check_warmup(config, length)
      assert 0 < length.warmup_steps <= 1 + length.total_steps / 10
  assert config.batch % config.accum_steps == 0
  settings = task.model_settings(config)
  model = models.get_model(settings.pop('name'), num_classes=2, **settings)
  model.grid_size(config.pp.crop, config.pp.crop_width or config.pp.crop)
  with pytest.raises((AttributeError, KeyError), match='batch'):
    config.bach = 3  # locked; the message contains the nearest name


def test_recipes_resolve_to_the_numbers_of_their_papers():
  def recipe(name, *args):
    config = load(ROOT / 'configs' / name, *args)
    images = 1_268_355 if '99%' in config.train_split else 1_281_167
    steps, warmup_steps = run_length.resolve(config, images)
    mixing = config.augment.policy, config.augment.mixup, config.augment.cutmix
    assert (
      not config.warmup_epochs
      or abs(warmup_steps / steps - config.warmup_epochs / config.total_epochs)
      < 1e-4
    )
    return config, (config.model.name, steps, config.batch, *mixing)

  config, found = recipe('augreg_i1k.py', 'S_16,medium2')
  assert found == ('ViT-S_16', 92_897, 4096, 'randaug(2,15)', 0.5, 0.0)
  assert (config.loss, config.head_bias) == ('sigmoid', -6.9)
  config, found = recipe('augreg_i1k.py', 'Ti_16')
  assert found == ('ViT-Ti_16', 92_897, 4096, 'randaug(2,0)', 0.0, 0.0)
  for epochs, steps in (('90', 111_477), ('150', 185_794), ('300', 371_588)):
    config, found = recipe('plain_s16_i1k.py', epochs)
    assert found == ('ViT-S_16', steps, 1024, 'randaug(2,10)', 0.2, 0.0)
    assert (config.base_lr, config.weight_decay) == (1e-3, 0.1)
  config, found = recipe('deit3.py')
  assert found == ('s16', 500_456, 2048, '3augment', 0.8, 1.0)
  assert (config.base_lr, config.optimizer, config.repeats) == (4e-3, 'lamb', 3)
  assert config.model.drop_path_schedule == 'constant'
  config, found = recipe('deit.py')
  policy = 'rand-m9-mstd0.5-inc1'
  assert found == ('s16', 375_342, 1024, policy, 0.8, 1.0)
  assert (config.base_lr, config.weight_decay) == (1e-3, 0.05)
  assert (config.label_smoothing, config.augment.erasing) == (0.1, 0.25)
  assert (config.repeats, config.warmup_epochs) == (3, 5)
  for model, level in (
    *(('Ti_16', 'none'), ('S_32', 'none'), ('S_16', 'light1')),
    *(('B_32', 'light2'), ('B_16', 'light2'), ('L_16', 'medium2')),
  ):
    config, found = recipe('augreg_i21k.py', model)
    policy, mixup = augreg_levels.LEVELS[level]
    assert (found[0], *found[2:]) == (f'ViT-{model}', 4096, policy, mixup, 0.0)
    assert (config.loss, config.head_bias) == ('sigmoid', -10.0)
    assert (config.train_split, config.test_split, config.validation) == (
      *('full[51200:]', 'full[:25600]', 'full[25600:51200]'),
    )
    settings = task.model_settings(config)
    built = models.get_model(settings.pop('name'), num_classes=2, **settings)
    assert built.dropout_rate == built.drop_path_rate == 0
  config, found = recipe('sam_i1k.py', 'B_16,gsam')
  assert found == ('ViT-B_16', 92_897, 4096, '', 0.0, 0.0)
  gsam = {name: config.sam[name] for name in ('rho', 'rho_min', 'alpha')}
  assert gsam == {'rho': 0.6, 'rho_min': 0.2, 'alpha': 0.4}
  config, _ = recipe('cifar10_scratch.py', 'gpu,200')
  assert run_length.resolve(config, 50_000) == (9766, 488)
  steps, _ = run_length.resolve(config, 50_000)
  assert config.ema_decay ** (steps / 100) == pytest.approx(0.5, abs=1e-3)
  for name, epochs, warmup_epochs in (('mae', 800, 40), ('dino', 100, 10)):
    config, _ = recipe(f'{name}.py')
    assert (config.total_epochs, config.warmup_epochs) == (
      *(epochs, warmup_epochs),
    )
  assert config.dino.frozen_epochs == 1
  with pytest.raises(
    ValueError, match="'strong3' is not .* nearest one is strong"
  ):
    load(ROOT / 'configs/augreg_i1k.py', 'S_16,strong3')


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
  of_augment = {field.name for field in dataclasses.fields(Settings)}
  assert {f'self.{name}' for name in of_augment} <= read
  of_data |= cropping | {'train_crop'}  # read as kind
  of_data |= {f'train_{name}' for name in cropping}
  of_data |= {field.name for field in dataclasses.fields(Resizing)}
  for name in base_config.flatten(base_config.get_config()):
    group, _, leaf = name.rpartition('.')
    if group == 'model' and leaf != 'name':
      assert leaf in fields, name
    elif group == 'augment':
      assert leaf in of_augment, name
    elif group == 'sam':
      assert name in read or f'config.{name}' in read, name
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
  assert 8 <= len(set(titles)) <= 14
  assert titles == sorted(titles, key=titles.index)  # each group once
