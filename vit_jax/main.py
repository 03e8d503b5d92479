"""Trains the model of an experiment, and evaluates it.

Examples:
  Train a small model on handwritten digits, in about 90 seconds on a CPU:
    python -m vit_jax.main --config=configs/quickstart.py
  Fine-tune ViT-B/16 on CIFAR-10 with smaller images and batches:
    python -m vit_jax.main --config=configs/vit.py:b16,cifar10 \\
      --config.pp.crop=224 --config.batch=64
  Print the memory, parameters and FLOPs of a run without training:
    python -m vit_jax.main --config=configs/vit.py:l16,imagenet2012 --dry_run

An experiment is a Python file with all settings. Each setting is also an option
on the command line: --config.NAME=VALUE. To list the settings, their meanings
and the values of an experiment:
  python -m vit_jax.main --config=configs/quickstart.py --help

The same command resumes a stopped run from the newest checkpoint in --workdir.
With --config.eval_only=True, the command does not train. It evaluates the run,
or the weights in --config.pretrained.

Exit status:
  0    the run is complete
  1    out of memory, or an unexpected error: the traceback is in log.txt
  2    a wrong argument or setting, missing data, or a full disk
  75   another process of the run is gone: start all processes again
  130  Ctrl-C stopped the run: the same command resumes
  143  SIGTERM stopped the run: the same command resumes
"""

from vit_jax.parallel import interrupts

if __name__ == '__main__':
  interrupts.end_at_once()  # before these imports, which take a moment

import argparse
from collections.abc import Sequence
import logging
import os
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING

from vit_jax import console
from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line

if TYPE_CHECKING:
  from vit_jax.commands.parsing import config_arguments

_REPORT_SECONDS = 20


def make_parser() -> 'config_arguments.Parser':
  """Returns the parser of this program."""
  # `errors.start` handles Ctrl-C during this import, which takes half a second.
  from vit_jax.commands.parsing import config_arguments

  parser = config_arguments.Parser('vit_jax.main', __doc__)
  parser.add(
    'Run',
    '--workdir',
    names=('workdir',),
    metavar='DIR',
    help='folder for all files of the run (default: a folder in ./workdirs, '
    'named after the experiment)',
  )
  command_line.add_switch(
    parser.group('Run'),
    'dry_run',
    default=False,
    metavar='BOOL',
    help='build and compile everything, but do not train; print parameters, '
    'FLOPs, sharding and memory',
  )
  command_line.add_switch(
    parser.group('Run'),
    'report',
    default=True,
    metavar='BOOL',
    help='write report.html at the end of the run, if this takes at most 20 '
    'seconds or a tenth of the run (default: True)',
  )
  title = 'Several processes (detected on Cloud TPU, SLURM and Open MPI)'
  parser.add(
    title,
    '--coordinator',
    names=('coordinator',),
    metavar='HOST:PORT',
    help='address of process 0; use the same value for all processes',
  )
  parser.add(
    title,
    '--num_processes',
    names=('num_processes',),
    type=command_line.positive,
    metavar='N',
    help='number of processes of this run; 1 disables the detection',
  )
  parser.add(
    title,
    '--process_id',
    names=('process_id',),
    type=command_line.number,
    metavar='N',
    help='index of this process, from 0',
  )
  # Python arguments in messages about weights.
  parser.flags |= {
    'model_name': '--config.model.name',
    'image_size': '--config.pp.crop',
    'folder': '--config.pretrained_dir',
    'pretrained_dir': '--config.pretrained_dir',
    'sources': '--config.weights_sources',
    'weights_sources': '--config.weights_sources',
  }
  return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the arguments of a command line, including the config.

  Raises:
    ValueError: the config file or a setting is wrong.
  """
  return make_parser().parse_args(argv)


def default_workdir(config_name: str) -> str:
  """Returns 'workdirs/vit-b16-cifar10' for 'configs/vit.py:b16,cifar10'."""
  from vit_jax import config_file

  path, argument = config_file.split(config_name)
  name = os.path.basename(path).removesuffix('.py')
  return command_line.default_workdir(f'{name}-{argument}')


def _start_processes(args, flags):
  """Connects the processes of the run. Only process 0 prints messages."""
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
    errors.exit_with_error(errors.with_flags(error, flags))
  if not processes.is_main():
    console.be_silent()


def _fail(message, status=2):
  """Ends this process after an error. The run may have several processes."""
  from vit_jax.parallel import processes

  name = processes.name()
  console.write(f'error{" of " * bool(name)}{name}: {message}')
  processes.leave(status)


def _dry_run(args, flags):
  """Prints the memory and the computation that the run needs."""
  with errors.quiet():
    from vit_jax.cost import dry_run
    from vit_jax.data import tensorflow

    tensorflow.preload()
  _start_processes(args, flags)
  with errors.exit_on_error(flags=flags, exit_with=_fail):
    dry_run.show(args.config)


def _write_report(workdir, seconds, writers=()):
  """Writes the report of a complete run that took some seconds.

  TensorBoard and the other writers of the run get its pictures. An error is
  only a warning, because the run itself is complete.
  """
  try:
    import jax

    from vit_jax import figures
    from vit_jax.commands import report

    figures.check_installed()
    from vit_jax.report import writing
    from vit_jax.run.writers import metric_log

    limit = max(_REPORT_SECONDS, seconds / 10)
    if jax.process_count() > 1 or writing.expected_seconds(workdir) > limit:
      console.log_info(f'for a report: python -m vit_jax report {workdir}')
    else:
      with metric_log.reopened(workdir, writers) as opened:
        path = report.write(report.of_run(workdir), opened)
      console.log_info(f'report: {path}')
  except (Exception, KeyboardInterrupt) as error:
    console.log_traceback()
    console.log_info(
      'warning: the run is complete, but its report was not written: '
      + (str(error) or type(error).__name__).partition('\n')[0]
    )


def _run(config, workdir, with_report):
  """Trains or evaluates the model."""
  from vit_jax import train
  from vit_jax.parallel import preemption
  from vit_jax.parallel import processes
  from vit_jax.run import evaluation
  from vit_jax.run.writers import trackers

  # A run continues after its terminal is closed, and writes to its log.
  if hasattr(signal, 'SIGHUP'):  # Windows has no such signal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    if config.eval_only:
      evaluation.evaluate_only(config, workdir)
    else:
      with trackers.opened(config.tracker) as writers:
        start = time.monotonic()
        train.train_and_evaluate(config, workdir, writers=writers)
        if with_report:
          _write_report(workdir, time.monotonic() - start, writers)
  except preemption.Preempted:
    if config.eval_only:
      console.log_info('stopped by SIGTERM; no result was written')
    processes.leave(preemption.EXIT_STATUS)
  except Exception as error:
    if not processes.lost_another(error):
      raise
    console.log_traceback()
    first_line = str(error).partition('\n')[0]
    _fail(
      f'another process of this run is gone ({first_line}). Start all '
      'processes again: the same commands resume from the newest checkpoint.',
      processes.EXIT_STATUS,
    )


def main(argv: Sequence[str]) -> None:
  """Runs the experiment of a command line."""
  from vit_jax import base_config

  parser = make_parser()
  with errors.exit_on_error(flags=parser.flags):
    args = parser.parse_args(argv)
    base_config.check_complete(args.config, f'--config={args.config_name}')
    if args.dry_run:
      return _dry_run(args, parser.flags)
    workdir = command_line.make_folder(
      args.workdir or default_workdir(args.config_name)
    )
    with errors.quiet():
      from vit_jax import train  # noqa: F401
      from vit_jax.data import tensorflow
      from vit_jax.parallel import processes
      from vit_jax.report import run_record
      from vit_jax.run import evaluation  # noqa: F401

      tensorflow.preload()
    _start_processes(args, parser.flags)
    if processes.is_main():
      console.start_logging(workdir)
      command = shlex.join(['python', '-m', 'vit_jax.main', *argv])
      for line in run_record.describe_start(command):
        console.log(line)
    with errors.exit_on_error(
      disk=f'Free space on the disk of {workdir}, and run the command again',
      log_path=f'{workdir}/log.txt',
      flags=parser.flags,
      exit_with=_fail,
    ):
      _run(args.config, workdir, args.report)


if __name__ == '__main__':
  errors.start(lambda: main(sys.argv[1:]))
