"""Trains the model of a config.

  python -m vit_jax.main --config=configs/quickstart.py

Each setting of the config is an argument: --config.total_steps=500. The
settings and their meaning are in vit_jax/base_config.py. The same command, run
again, goes on from the newest checkpoint in --workdir. With
--config.eval_only=True, that checkpoint is evaluated instead, or the weights
that --config.pretrained names.
"""

import argparse
from collections.abc import Sequence
import logging
import os
import signal
import sys

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import config_arguments
from vit_jax.commands import errors
from vit_jax.commands import workdir as workdirs


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the arguments of a command line, its config among them.

  Raises:
    ValueError: the config file or a setting is wrong.
  """
  parser = config_arguments.Parser('vit_jax.main', __doc__)
  parser.add_argument(
    '--workdir',
    metavar='FOLDER',
    help='folder for all files of the run (default: a folder in ./workdirs '
    'that is named after the config)',
  )
  arguments.add_switch(
    parser,
    'dry_run',
    default=False,
    metavar='BOOL',
    help='build and compile everything, but do not train; print the size of '
    'the model, FLOPs, sharding and memory',
  )
  parser.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='address of process 0, the same on every process; needed, like the '
    'next two, unless Cloud TPU, SLURM or Open MPI starts the processes',
  )
  parser.add_argument(
    '--num_processes',
    type=arguments.positive,
    metavar='N',
    help='number of processes of this run; 1: do not look for others',
  )
  parser.add_argument(
    '--process_id',
    type=arguments.number,
    metavar='I',
    help='number of this process, from 0',
  )
  return parser.parse_args(argv)


def default_workdir(config_name: str) -> str:
  """Returns 'workdirs/vit-b16-cifar10' for 'configs/vit.py:b16,cifar10'."""
  path, argument = config_arguments.split(config_name)
  name = os.path.basename(path).removesuffix('.py')
  return workdirs.default_path(f'{name}-{argument}')


def _start_processes(args):
  """Joins the other processes of the run; only process 0 prints messages."""
  from jax.experimental import multihost_utils

  from vit_jax.parallel import processes

  logging.getLogger().setLevel(logging.WARNING)
  try:
    if processes.start(
      args.coordinator, args.num_processes, args.process_id, console.log_info
    ):
      with errors.quiet():  # Gloo prints each connection
        multihost_utils.sync_global_devices('start')
  except Exception as error:
    errors.exit_with_error(error)
  if not processes.is_main():
    console.be_silent()


def _fail(message, status=2):
  """Ends the process of a run that has failed, whether or not it is alone."""
  from vit_jax.parallel import processes

  name = processes.name()
  console.write(f'error{" of " * bool(name)}{name}: {message}')
  processes.leave(status)


def _dry_run(args):
  """Prints what a run of the config needs."""
  with errors.quiet():
    from vit_jax.cost import dry_run
    from vit_jax.data import tensorflow

    tensorflow.load()
  _start_processes(args)
  with errors.exit_on_error(exit_with=_fail):
    dry_run.show(args.config)


def _run(config, workdir):
  """Trains or evaluates."""
  from vit_jax import train
  from vit_jax.parallel import processes
  from vit_jax.run import evaluation
  from vit_jax.run import preemption

  # A run goes on when its terminal is closed, and writes to its log.
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    if config.eval_only:
      evaluation.evaluate_only(config, workdir)
    else:
      train.train_and_evaluate(config, workdir)
  except preemption.Preempted:
    if config.eval_only:
      console.log_info('stopped by SIGTERM: no result is written')
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


def main(argv: Sequence[str]) -> None:
  """Runs the experiment that the arguments name."""
  with errors.exit_on_error():
    args = parse_arguments(argv)
    if args.dry_run:
      return _dry_run(args)
    workdir = workdirs.make(args.workdir or default_workdir(args.config_name))
    with errors.quiet():
      from vit_jax import train  # noqa: F401
      from vit_jax.data import tensorflow
      from vit_jax.parallel import processes
      from vit_jax.run import evaluation  # noqa: F401

      tensorflow.load()
    _start_processes(args)
    if processes.is_main():
      console.start_logging(workdir)
    with errors.exit_on_error(
      disk=f'free some of the disk of {workdir}, and the same command goes on',
      log_path=f'{workdir}/log.txt',
      exit_with=_fail,
    ):
      _run(args.config, workdir)


if __name__ == '__main__':
  errors.start(lambda: main(sys.argv[1:]))
