"""Trains what a config says.

  python -m vit_jax.main --config=configs/quickstart.py

Any setting can be given on the command line: --config.total_steps=500. All
settings, with their meaning, are in vit_jax/base_config.py. Run again, the same
command goes on from the newest checkpoint in --workdir. With
--config.eval_only=True that checkpoint, or the weights that
--config.pretrained names, is evaluated instead.
"""

import logging
import os
import re
import signal
import tempfile
import traceback

from absl import app
from absl import flags
from ml_collections import config_flags

from vit_jax import console
from vit_jax.commands import errors

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'The experiment: a Python file, with an argument after a '
  'colon where it takes one.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder for everything the run leaves. Default: a folder '
  'below ./workdirs, named after the config.',
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run',
  False,
  'Builds and compiles everything, trains nothing, and '
  'says what a run would be: sizes, work, layout on the devices, memory.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'HOST:PORT of process 0, the same on every process. '
  'Needed, with the next two, where several processes were not started by '
  'Cloud TPU, SLURM or Open MPI.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes',
  None,
  'Of this run. 1: alone, looking for no others.',
  lower_bound=1,
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, "This process's number, from 0.", lower_bound=0
)


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
    errors.exit_with_error(f'--config={given.group(1)}: no such file')
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    if 'get_config() takes' in str(error):
      errors.exit_with_error(
        f'--config={given.group(1)}: this config takes no argument'
      )
    # A config file says what is wrong by a ValueError.
    said = re.search(r'\nValueError: (.*)', str(error), re.DOTALL)
    errors.exit_with_error(said.group(1).strip() if said else error)
  except AttributeError as error:
    mistyped = _mistyped_setting(error, argv)
    if not mistyped:
      raise
    errors.exit_with_error(mistyped)
  if _CONFIG.value is None:
    errors.exit_with_error(
      '--config is missing, for instance --config=configs/quickstart.py'
    )
  if rest[1:]:
    errors.exit_with_error(
      f'unknown argument {rest[1]!r}: settings are --config.NAME=VALUE'
    )
  return rest


def _mistyped_setting(error, argv):
  """What to say of a setting that ml_collections does not know, else None."""
  source = traceback.extract_tb(error.__traceback__)[-1].filename
  name = re.search(r"\\?'(\w+)\\?'|\"(\w+)\"", str(error))
  if 'ml_collections' not in source or not name:
    return None
  name = name.group(1) or name.group(2)
  given = next(
    (a for a in argv if re.match(rf'--config\..*\b{name}\b', a)),
    f'config.{name}',
  )
  near = re.search(r'Did you mean "(\w+)"', str(error))
  return f'{given}: there is no setting {name!r}' + (
    f'; did you mean {near.group(1)!r}?'
    if near
    else '. All are in vit_jax/base_config.py'
  )


def _start_processes():
  """Joins the other processes of the run; only process 0 is to speak."""
  from jax.experimental import multihost_utils

  from vit_jax.parallel import processes

  # Absl shows what JAX tells of its connections.
  logging.getLogger().setLevel(logging.WARNING)
  try:
    if processes.start(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      console.log_info,
    ):
      with errors.quiet():
        multihost_utils.sync_global_devices('start')  # Gloo tells of each
  except Exception as error:
    errors.exit_with_error(error)
  if not processes.is_main():
    console.be_silent()


def _fail(message, status=2):
  """Ends a process whose run has failed, one of several too."""
  from vit_jax.parallel import processes

  name = processes.name()
  console.write(f'error{" of " * bool(name)}{name}: {message}')
  processes.leave(status)


def _dry_run():
  """Says what the experiment would be."""
  with errors.quiet():
    from vit_jax.cost import dry_run
    from vit_jax.data import tensorflow

    tensorflow.load()
  _start_processes()
  with errors.mistakes_leave(leave_with=_fail):
    dry_run.show(_CONFIG.value)


def _run(config, workdir):
  """Trains or evaluates."""
  from vit_jax import train
  from vit_jax.commands import evaluate
  from vit_jax.parallel import processes
  from vit_jax.run import preemption

  # A run goes on when its terminal is closed, and writes to its log.
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    if config.eval_only:
      evaluate.evaluate_only(config, workdir)
    else:
      train.train_and_evaluate(config, workdir)
  except preemption.Preempted:
    if config.eval_only:
      console.log_info('stopped by SIGTERM: no number is written')
    processes.leave(preemption.EXIT_STATUS)
  except Exception as error:
    if not processes.lost_another(error):
      raise
    console.log_traceback()
    first_line = str(error).partition('\n')[0]
    _fail(
      f'another process of this run is gone ({first_line}). Start all of '
      'them again: the same commands go on from the newest checkpoint',
      processes.EXIT_STATUS,
    )


def main(_):
  """Runs the experiment that the flags name."""
  if _DRY_RUN.value:
    _dry_run()
    return
  workdir = os.path.expanduser(
    _WORKDIR.value or default_workdir(flags.FLAGS['config'].config_filename)
  )
  try:
    os.makedirs(workdir, exist_ok=True)
    tempfile.TemporaryFile(dir=workdir).close()
  except OSError as error:
    errors.exit_with_error(
      f'--workdir={workdir} cannot be written: {error.strerror}'
    )
  with errors.quiet():
    from vit_jax import train  # noqa: F401
    from vit_jax.commands import evaluate  # noqa: F401
    from vit_jax.data import tensorflow
    from vit_jax.parallel import processes

    tensorflow.load()
  _start_processes()
  if processes.is_main():
    console.start_logging(workdir)
  with errors.mistakes_leave(
    disk=f'free some of the disk of {workdir}, and the same command goes on',
    log_path=f'{workdir}/log.txt',
    leave_with=_fail,
  ):
    _run(_CONFIG.value, workdir)


if __name__ == '__main__':
  errors.start(lambda: app.run(main, flags_parser=_parse))
