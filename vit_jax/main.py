"""Trains what a config says.

  python -m vit_jax.main --config=configs/quickstart.py

Any setting can be given on the command line: --config.total_steps=500. All
settings, with their meaning, are in vit_jax/base_config.py. Run again, the same
command goes on from the newest checkpoint in --workdir.
"""

import contextlib
import errno
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


def _split(config):
  """(path, argument) of 'path.py:argument'."""
  match = re.fullmatch(r'(.*?\.py)(?::(.*))?', config, re.DOTALL)
  return match.groups(default='') if match else (config, '')


def default_workdir(config):
  """'workdirs/vit-b16-cifar10' for 'configs/vit.py:b16,cifar10'."""
  path, argument = _split(config)
  name = os.path.basename(path).removesuffix('.py') + '-' + argument
  return os.path.join('workdirs', re.sub(r'[^\w.+-]+', '-', name).strip('-'))


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
  given = re.search(r'(?:^|\0)--?config[=\0]([^\0]*)', '\0'.join(argv))
  if given and not os.path.isfile(_split(given.group(1))[0]):
    _leave(f'--config={given.group(1)}: no such file')
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    if 'get_config() takes' in str(error):
      _leave(f'--config={given.group(1)}: this config takes no argument')
    # A config file says what is wrong by a ValueError.
    said = re.search(r'\nValueError: (.*)', str(error), re.DOTALL)
    _leave(said.group(1).strip() if said else error)
  except AttributeError as error:
    mistyped = _mistyped_setting(error, argv)
    if not mistyped:
      raise
    _leave(mistyped)
  if _CONFIG.value is None:
    _leave('--config is missing, for instance --config=configs/quickstart.py')
  if rest[1:]:
    _leave(f'unknown argument {rest[1]!r}: settings are --config.NAME=VALUE')
  return rest


def _mistyped_setting(error, argv):
  """What to say of a setting that ml_collections does not know, else None."""
  source = traceback.extract_tb(error.__traceback__)[-1].filename
  name = re.search(r"\\?'(\w+)\\?'|\"(\w+)\"", str(error))
  if 'ml_collections' not in source or not name:
    return None
  name = name.group(1) or name.group(2)
  given = next((a for a in argv if re.match(rf'--config\..*\b{name}\b', a)),
               f'config.{name}')
  near = re.search(r'Did you mean "(\w+)"', str(error))
  return f'{given}: there is no setting {name!r}' + (
      f'; did you mean {near.group(1)!r}?' if near
      else '. All are in vit_jax/base_config.py')


def _leave(message, status=2):
  print(f'error: {message}', file=sys.stderr)
  sys.exit(status)


def main(_):
  """Runs the experiment that the flags name."""
  workdir = _WORKDIR.value or default_workdir(
      flags.FLAGS['config'].config_filename)
  try:
    os.makedirs(workdir, exist_ok=True)
    tempfile.TemporaryFile(dir=workdir).close()
  except OSError as error:
    _leave(f'--workdir={workdir} cannot be written: {error.strerror}')
  with _quiet():
    from vit_jax import preemption  # pylint: disable=g-import-not-at-top
    from vit_jax import report  # pylint: disable=g-import-not-at-top
    from vit_jax import train  # pylint: disable=g-import-not-at-top
  report.start_logging(workdir)
  try:
    train.train_and_evaluate(_CONFIG.value, workdir)
  except (ValueError, OSError) as error:  # a user's mistake, or a full disk
    report.log_traceback()
    full = getattr(error, 'errno', None) == errno.ENOSPC
    _leave(f'{error}' + (f': free some of the disk of {workdir}, and the same '
                         'command goes on' if full else ''))
  except KeyboardInterrupt:
    report.log_traceback()
    _leave('interrupted', status=130)
  except preemption.Preempted:
    sys.exit(preemption.EXIT_STATUS)
  except Exception as error:  # pylint: disable=broad-exception-caught
    report.log_traceback()
    first_line = str(error).partition('\n')[0]
    hint = ('. Less memory: a larger config.accum_steps, a smaller '
            'config.batch_eval' if 'RESOURCE_EXHAUSTED' in str(error) else '')
    _leave(f'{type(error).__name__}: {first_line}{hint} (the trace is in '
           f'{workdir}/log.txt)', status=1)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
