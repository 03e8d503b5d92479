"""Writes the weights of a run, or of a file, for other programs to read.

  python -m vit_jax export workdirs/quickstart digits.npz
  python -m vit_jax export workdirs/quickstart digits.safetensors
  python -m vit_jax export workdirs/quickstart digits/

The three are: the layout of the published files; timm's names; and a folder
that timm loads whole, by timm.create_model('local-dir:digits'). Beside the
arrays lies what they cannot tell: the sizes of the model, the size of its
images and the names of its classes (digits.npz.json, digits.safetensors.json,
or the config.json in the folder), with which vit_jax evaluates and predicts as
from the run itself. Every bit of the parameters is kept.
"""

import os

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors
from vit_jax.export import formats


def main(argv=None):
  """Exports what the arguments name."""
  parser = arguments.Parser('export', __doc__)
  arguments.add_model_arguments(parser)
  parser.add_argument(
    'out',
    type=os.path.expanduser,
    help='path to write: FILE.npz, FILE.safetensors or FOLDER/',
  )
  args = parser.parse_args(argv)
  with errors.mistakes_leave():
    formats.check_free(args.out)
    trained = arguments.load_model(args)
    console.log_info(f'{trained.source}: {trained}')
    for path in formats.export(trained, args.out):
      console.log_info(f'written: {path} ({os.path.getsize(path):,} bytes)')
