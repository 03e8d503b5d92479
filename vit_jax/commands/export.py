"""Writes the weights of a run or of a file for other programs.

Examples:
  Write the format of the published files:
    python -m vit_jax export workdirs/quickstart digits.npz
  Write a safetensors file with timm's parameter names:
    python -m vit_jax export workdirs/quickstart digits.safetensors
  Write a folder for timm.create_model('local-dir:digits', pretrained=True), or
  for transformers, if the weights came from its layouts:
    python -m vit_jax export workdirs/quickstart digits/

The exported parameters are exactly those of the run. A JSON file next to the
weights contains the sizes of the model, the image size and the class names. It
is digits.npz.json, digits.safetensors.json, or config.json in the folder. With
this file, `evaluate` and `predict` give the same results as for the run.

Exit status:
  0    the weights were written
  1    out of memory, or an unexpected error
  2    a wrong argument or file, or a full disk
  130  Ctrl-C interrupted the command
"""

from collections.abc import Sequence
import os

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.commands.parsing import command_line


def make_parser() -> command_line.Parser:
  """Returns the parser of this command."""
  parser = command_line.Parser(
    'vit_jax export', 'WEIGHTS OUTPUT [options]', __doc__
  )
  arguments.add_weights_argument(parser)
  parser.add(
    'Arguments',
    'out',
    type=os.path.expanduser,
    metavar='OUTPUT',
    help='path to write: FILE.npz, FILE.safetensors or FOLDER/',
  )
  parser.add(
    'Arguments',
    '--vit_pytorch_version',
    metavar='VERSION',
    help='version of vit-pytorch that reads a model of its kind; default: the '
    'installed one, or that of the weights',
  )
  arguments.add_model_arguments(parser)
  arguments.add_search_arguments(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Exports weights and returns the exit status."""
  parser = make_parser()
  args = parser.parse_args(argv)
  with errors.exit_on_error(flags=parser.flags):
    from vit_jax.export import formats

    formats.check_free(args.out)
    trained = arguments.load_model(args)
    console.log_info(f'{trained.source}: {trained}')
    for path in formats.export(trained, args.out, args.vit_pytorch_version):
      console.log_info(f'written: {path} ({os.path.getsize(path):,} bytes)')
  return 0
