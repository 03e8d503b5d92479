"""Config files, which `vit_jax.get_config` and the command line read."""

import pytest

from tests import ROOT
import vit_jax
from vit_jax import config_file
from vit_jax.commands.parsing import config_arguments


@pytest.mark.parametrize(
  'text, parts',
  [
    ('a/b.py', ('a/b.py', '')),
    ('a/b.py:x', ('a/b.py', 'x')),
    ('a/b.py:x,/c.py:y', ('a/b.py', 'x,/c.py:y')),
    ('/.pyenv/b.py:x', ('/.pyenv/b.py', 'x')),
    ('b', ('b', '')),
  ],
)
def test_split(text, parts):
  assert config_file.split(text) == parts


@pytest.mark.parametrize('name', ['vit.py:ti16,digits', 'quickstart.py'])
def test_the_config_of_the_command_line(name):
  path = f'{ROOT}/configs/{name}'
  config = vit_jax.get_config(path)
  parser = config_arguments.Parser('vit_jax.main', 'Trains.')
  assert config == parser.parse_args([f'--config={path}']).config
  config.batch = 7
  config.pp.crop = 96
  with pytest.raises(AttributeError, match='bach'):
    config.bach = 7
  assert vit_jax.get_config(path).batch != 7


@pytest.mark.parametrize(
  'name, message',
  [
    ('nope.py', 'nope.py: no such file. Use a path such as'),
    ('nope.py:x', 'nope.py:x: no such file'),
    (
      f'{ROOT}/configs/quickstart.py:cpu',
      f'takes no argument. Use config_file={ROOT}/configs/quickstart.py',
    ),
    (f'{ROOT}/configs/vit.py:s99', 's99'),
  ],
)
def test_wrong_names(name, message):
  with pytest.raises(ValueError) as caught:
    vit_jax.get_config(name)
  assert message in str(caught.value) and '--' not in str(caught.value)


@pytest.mark.parametrize(
  'code, message',
  [
    ('def get_config():\n  return None', 'needs a function get_config()'),
    ('x = 1', 'needs a function get_config()'),
    ('get_config = 3', 'needs a function get_config()'),
    ('def get_config(x): pass', 'needs an argument. Use config_file='),
    ('def get_config():\n  return y', ', line 2: NameError: '),
    ('\n1 / 0', ', line 2: ZeroDivisionError: division by zero'),
    ('def f():\n  return y\nx = f()', ', line 2: NameError: '),
    ('def get_config(:', ': SyntaxError: invalid syntax'),
    ('def get_config():\n  raise ValueError("choose a or b")', 'choose a or b'),
    ('def get_config():\n  return int("64x")', ', line 2: ValueError: invalid'),
    (
      'from vit_jax import base_config\ndef get_config():\n'
      '  config = base_config.get_config()\n  config.bach = 3\n',
      ', line 4: AttributeError: ',
    ),
  ],
)
def test_config_files_that_fail(tmp_path, code, message):
  (tmp_path / 'bad.py').write_text(code)
  with pytest.raises(ValueError) as caught:
    vit_jax.get_config(f'{tmp_path}/bad.py')
  assert message in str(caught.value)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 400
  assert 'bad.py' in str(caught.value) or message == 'choose a or b'
