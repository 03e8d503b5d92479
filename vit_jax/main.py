"""Trains what a config says.

  python -m vit_jax.main --config=configs/quickstart.py

Any setting can be given on the command line: --config.total_steps=500. All
settings, with their meaning, are in vit_jax/base_config.py. Run again, the same
command goes on from the newest checkpoint in --workdir. With
--config.eval_only=True that checkpoint, or the weights that
--config.pretrained names, is evaluated instead.
"""

import os
import re
import sys
import tempfile
import traceback

from absl import app
from absl import flags
from ml_collections import config_flags

from vit_jax import program
from vit_jax import report

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


def _parse(argv):
  """Parses flags; a mistake gives one line and leaves with status 2."""
  given = re.search(r'(?:^|\0)--?config[=\0]([^\0]*)', '\0'.join(argv))
  if given and not os.path.isfile(_split(given.group(1))[0]):
    program.leave(f'--config={given.group(1)}: no such file')
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    if 'get_config() takes' in str(error):
      program.leave(
          f'--config={given.group(1)}: this config takes no argument')
    # A config file says what is wrong by a ValueError.
    said = re.search(r'\nValueError: (.*)', str(error), re.DOTALL)
    program.leave(said.group(1).strip() if said else error)
  except AttributeError as error:
    mistyped = _mistyped_setting(error, argv)
    if not mistyped:
      raise
    program.leave(mistyped)
  if _CONFIG.value is None:
    program.leave(
        '--config is missing, for instance --config=configs/quickstart.py')
  if rest[1:]:
    program.leave(
        f'unknown argument {rest[1]!r}: settings are --config.NAME=VALUE')
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


def main(_):
  """Runs the experiment that the flags name."""
  workdir = _WORKDIR.value or default_workdir(
      flags.FLAGS['config'].config_filename)
  try:
    os.makedirs(workdir, exist_ok=True)
    tempfile.TemporaryFile(dir=workdir).close()
  except OSError as error:
    program.leave(f'--workdir={workdir} cannot be written: {error.strerror}')
  with program.quiet():
    from vit_jax import eval_only  # pylint: disable=g-import-not-at-top
    from vit_jax import preemption  # pylint: disable=g-import-not-at-top
    from vit_jax import train  # pylint: disable=g-import-not-at-top
  report.start_logging(workdir)
  config = _CONFIG.value
  with program.mistakes_leave(
      memory='Less memory: a larger config.accum_steps, a smaller '
      'config.batch_eval',
      disk=f'free some of the disk of {workdir}, and the same command goes on',
      log_path=f'{workdir}/log.txt'):
    try:
      if config.eval_only:
        eval_only.evaluate_only(config, workdir)
      else:
        train.train_and_evaluate(config, workdir)
    except preemption.Preempted:
      sys.exit(preemption.EXIT_STATUS)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
