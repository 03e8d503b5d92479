"""Trains what a config says.

  python -m vit_jax.main --config=configs/quickstart.py

Any setting can be given on the command line: --config.total_steps=500. All
settings, with their meaning, are in vit_jax/base_config.py. Run again, the same
command goes on from the newest checkpoint in --workdir.
"""

import contextlib
import os
import re
import sys
import tempfile
import traceback

from absl import app
from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The experiment: a Python file, with an argument after a '
    'colon where it takes one.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for everything the run leaves. Default: a folder '
    'below ./workdirs, named after the config.')


def default_workdir(config_path):
  """'workdirs/vit-b16-cifar10' for 'configs/vit.py:b16,cifar10'."""
  path, _, argument = config_path.partition('.py')
  name = os.path.basename(path) + re.sub(r'[^\w.+-]+', '-', argument)
  return os.path.join('workdirs', name.rstrip('-'))


@contextlib.contextmanager
def _quiet():
  """Holds back what libraries write to the terminal while they load."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  sys.stderr.flush()
  terminal = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(terminal, held.read())
      raise
    finally:
      sys.stderr.flush()
      os.dup2(terminal, 2)
      os.close(terminal)


def _parse(argv):
  """Parses flags; a mistake gives one line and leaves with status 2."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise ValueError('--config is missing, for instance '
                       '--config=configs/quickstart.py')
    return rest
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
          OSError) as error:
    sys.exit(f'error: {_one_line(error)}')


def _one_line(error):
  return str(error)


def main(argv):
  if len(argv) > 1:
    sys.exit(f'error: unknown argument {argv[1]!r}; settings are given as '
             '--config.NAME=VALUE')
  workdir = _WORKDIR.value or default_workdir(
      flags.FLAGS['config'].config_filename)
  with _quiet():
    from vit_jax import report  # pylint: disable=g-import-not-at-top
    from vit_jax import train  # pylint: disable=g-import-not-at-top
  try:
    os.makedirs(workdir, exist_ok=True)
    report.start_logging(workdir)
    train.train_and_evaluate(_CONFIG.value, workdir)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('stopped')


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
