"""Writes the report of a run: one page with results and mistakes.

Examples:
  Write report.html and report.json into the folder of a run:
    python -m vit_jax report workdirs/quickstart
  Use the images of the run in another place:
    python -m vit_jax report workdirs/flowers --dataset=/mnt/flowers
  Measure on the validation split:
    python -m vit_jax report workdirs/flowers --split=validation

The newest checkpoint of the run predicts the test split once. The page has the
results with their interval, curves, the accuracy of each class, confusions,
calibration, the worst mistakes with attention, figures of the model, and all
settings. For a run without labels, it has what applies.

The page is one file. It needs no network and no scripts. docs/report.md
explains its parts.

Exit status:
  0    the report is written
  1    out of memory, or an unexpected error
  2    a wrong argument or file, missing data, or a full disk
  130  Ctrl-C interrupted the command
"""

from collections.abc import Callable
from collections.abc import Sequence
import os
from typing import Any

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser('vit_jax report', 'RUN [options]', __doc__)
  parser.add('Arguments', 'run', metavar='RUN', help='folder of a run')
  arguments.add_dataset_arguments(parser, '--split', "the run's, or test")
  arguments.add_batch_argument(parser, default=None)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Writes a report and returns the exit status."""
  parser = make_parser()
  args = parser.parse_args(argv)
  with errors.exit_on_error(memory=arguments.LESS_MEMORY, flags=parser.flags):
    with errors.quiet():
      from vit_jax import figures
      from vit_jax.data import tensorflow

      figures.check_installed()
      tensorflow.preload()
    console.log_info(f'written to {write(args)}')
  return 0


def of_run(run: str) -> Any:
  """Returns the arguments for the report of a run without other options."""
  return make_parser().parse_args([run])


def write(args: Any, writers: Sequence[Callable] = ()) -> str:
  """Writes the report of the run `args.run`; returns the path of the page.

  Args:
    args: arguments of the command line; see `of_run`.
    writers: see `writing.write`.

  Raises:
    ValueError: there is no finished checkpoint in the folder.
  """
  from vit_jax.checkpoint import metadata
  from vit_jax.checkpoint import trained_model
  from vit_jax.report import writing

  run = os.path.expanduser(args.run)
  stored = metadata.read_config(run) if trained_model.is_run(run) else {}
  if not stored:
    raise ValueError(
      f'{run} is not the folder of a run with a checkpoint. Use the '
      'workdir of a run, such as workdirs/quickstart.'
    )

  def make_config(trained):
    return arguments.dataset_config(args, trained, stored)

  return writing.write(run, make_config, writers)
