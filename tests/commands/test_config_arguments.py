"""Config files and `--config.NAME=VALUE` on the command line."""

import pytest

from vit_jax.commands.parsing import config_arguments

CONFIG = """
import ml_collections
from ml_collections import config_dict

def get_config(name='plain'):
  config = ml_collections.ConfigDict()
  config.name = name
  config.batch = 512
  config.rate = 0.5
  config.flip = True
  config.sources = ('a', 'b')
  config.steps = config_dict.FieldReference(8, field_type=object)
  config.pp = dict(crop=384, width=config_dict.placeholder(int))
  config.numbers = [1, 2]
  return config
"""


@pytest.fixture(name='path')
def fixture_path(tmp_path):
  (tmp_path / 'my.py').write_text(CONFIG)
  return str(tmp_path / 'my.py')


def parse(*args):
  parser = config_arguments.Parser('vit_jax.main', 'Trains.')
  parser.add_argument('--workdir')
  return parser.parse_args(args)


def test_help_lists_settings_that_base_config_lacks(path, capsys):
  with pytest.raises(SystemExit):
    parse(f'--config={path}', '--help')
  shown = capsys.readouterr().out
  assert 'Training examples per step, over all devices. (default: 512)' in shown
  other = shown[shown.index('Other settings:') :]
  assert '--config.rate FLOAT\n        (default: 0.5)' in other
  assert '--config.pp.width INT\n' in other  # None: no default is shown


def test_flags_of_settings():
  flags = config_arguments.Parser('vit_jax.main', 'Trains.').flags
  assert flags['config.batch'] == '--config.batch'
  assert flags['config.pp.crop'] == '--config.pp.crop'
  assert flags['config.mesh'] == '--config.mesh'
  assert not {'config.json', 'config.crop', 'batch'} & set(flags)


def test_an_argument_of_the_config(path):
  assert parse(f'--config={path}').config.name == 'plain'
  args = parse('--config', f'{path}:other', '--workdir=w')
  assert args.config.name == 'other' and args.workdir == 'w'
  assert args.config_name == f'{path}:other'
  assert args.config.is_locked


@pytest.mark.parametrize(
  'args, changes',
  [
    ([], {}),
    (['--config.batch=3'], {'batch': 3}),
    (['--config.batch', '3'], {'batch': 3}),
    (['-config.batch=3'], {'batch': 3}),
    (['--config.batch', '-3'], {'batch': -3}),
    (['--config.batch=3', '--config.batch=07'], {'batch': 7}),
    (['--config.rate=1e-3'], {'rate': 1e-3}),
    (['--config.rate=2'], {'rate': 2.0}),
    (['--config.pp.crop=8', '--config.pp.width=9'], {'crop': 8, 'width': 9}),
    (['--config.flip=False'], {'flip': False}),
    (['--noconfig.flip'], {'flip': False}),
    (['--noconfig.flip', '--config.flip'], {'flip': True}),
    (['--config.name=a b: c=d,e'], {'name': 'a b: c=d,e'}),
    (['--config.name='], {'name': ''}),
    (['--config.name=None'], {'name': 'None'}),
    (['--config.pp.width=9', '--config.pp.width=None'], {'width': None}),
    (['--config.steps=4'], {'steps': 4}),
    (['--config.steps=auto'], {'steps': 'auto'}),
    (['--config.steps=true'], {'steps': True}),
    (['--config.numbers=[3]'], {'numbers': [3]}),
    (["--config.sources=('/a', 'hf://')"], {'sources': ('/a', 'hf://')}),
    (['--config.sources=/a,hf://'], {'sources': ('/a', 'hf://')}),
    (['--config.sources=/a b'], {'sources': ('/a b',)}),
    (['--config.sources=x', '--config.sources=y'], {'sources': ('x', 'y')}),
  ],
)
def test_changes_of_settings(path, args, changes):
  """Settings may precede --config."""
  for argv in ([f'--config={path}', *args], [*args, f'--config={path}']):
    config = parse(*argv).config
    expected = parse(f'--config={path}').config
    for name, value in changes.items():
      (expected.pp if name in expected.pp else expected)[name] = value
    assert config.to_dict() == expected.to_dict()
    for name, value in changes.items():
      found = (config.pp if name in config.pp else config)[name]
      assert type(found) is type(value)


def test_none_unsets_a_setting_of_the_experiment():
  config = parse(
    '--config=configs/cifar10_scratch.py:cpu',
    *('--config.model.stem_units=None', '--config.model.rotary=None'),
    *('--config.model.num_layers=None', '--config.model.qk_norm=False'),
  ).config
  assert config.model.stem_units is config.model.rotary is None
  assert config.model.num_layers is None and config.model.qk_norm is False


@pytest.mark.parametrize(
  'args, message',
  [
    (['--config.batch=1.5'], "'1.5' is not an integer"),
    (['--config.batch='], "'' is not an integer"),
    (['--config.rate=x'], "'x' is not a number"),
    (['--config.flip=2'], "'2' is neither true nor false"),
    (['--config.numbers=3'], "'3' is not a list"),
    (['--config.batch'], '--config.batch: expected one argument'),
  ],
)
def test_values_of_another_type(path, args, message, capsys):
  with pytest.raises(SystemExit):
    parse(f'--config={path}', *args)
  shown = capsys.readouterr().err
  assert shown.startswith('error: argument --config.') and message in shown
  assert shown.count('\n') == 1


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--config.bach=3', "'bach'; did you mean 'batch'?"),
    ('--noconfig.flop', "'flop'; did you mean 'flip'?"),
    ('--config.crop=3', "'crop'; did you mean 'pp.crop'?"),
    ('--config.pp=3', "there is no setting 'pp'"),
    ('--config.zzz=3', "'zzz'. All settings are in vit_jax/base_config.py"),
  ],
)
def test_settings_that_do_not_exist(path, argument, message):
  with pytest.raises(ValueError, match='there is no setting') as caught:
    parse(f'--config={path}', argument)
  assert str(caught.value).startswith(f'{argument}: ')
  assert message in str(caught.value)


def test_help_lists_evaluators_and_their_options(capsys):
  with pytest.raises(SystemExit):
    parse(
      *('--config=configs/quickstart.py', '--config.evaluators.near.type=knn'),
      '--help',
    )
  page = capsys.readouterr().out
  for name in ('NAME.type', 'NAME.every', 'NAME.shots', 'near.k', 'near.every'):
    assert f'--config.evaluators.{name} ' in page
  assert page.count('numbers of neighbors (default: (10, 20))') == 2
