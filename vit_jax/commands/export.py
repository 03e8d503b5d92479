"""Writes the weights of a run, or of a file, for other programs.

  python -m vit_jax export workdirs/quickstart digits.npz
  python -m vit_jax export workdirs/quickstart digits.safetensors
  python -m vit_jax export workdirs/quickstart digits/

The first has the format of the published files. The second has timm's names.
The third is a folder for timm.create_model('local-dir:digits',
pretrained=True). A JSON file next to the arrays has what they do not contain:
the sizes of the model, the image size and the class names (digits.npz.json,
digits.safetensors.json, or config.json in the folder). With it, vit_jax
evaluates and predicts as from the run itself. The exported parameters are
exactly those of the run.

Exit status: 0; 2 for an error.
"""

from collections.abc import Sequence
import os

from vit_jax import console
from vit_jax.commands import arguments
from vit_jax.commands import errors


def main(argv: Sequence[str] | None = None) -> int:
  """Exports the weights that the arguments name; returns the exit status."""
  parser = arguments.Parser('vit_jax export', __doc__)
  arguments.add_model_arguments(parser)
  parser.add_argument(
    'out',
    type=os.path.expanduser,
    help='path to write: FILE.npz, FILE.safetensors or FOLDER/',
  )
  args = parser.parse_args(argv)
  with errors.exit_on_error():
    from vit_jax.export import formats

    formats.check_free(args.out)
    trained = arguments.load_model(args)
    console.log_info(f'{trained.source}: {trained}')
    for path in formats.export(trained, args.out):
      console.log_info(f'written: {path} ({os.path.getsize(path):,} bytes)')
  return 0
