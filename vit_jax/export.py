"""Writes the weights of a run, or of a file, for other programs to read.

  python -m vit_jax.export workdirs/quickstart digits.npz
  python -m vit_jax.export workdirs/quickstart digits.safetensors
  python -m vit_jax.export workdirs/quickstart digits/

The three are: the layout of the published files; timm's names; and a folder
that timm loads whole, by timm.create_model('local-dir:digits'). Beside the
arrays lies what they cannot tell: the sizes of the model, the size of its
images and the names of its classes (digits.npz.json, digits.safetensors.json,
or the config.json in the folder), with which vit_jax evaluates and predicts as
from the run itself. Every bit of the parameters is kept.
"""

import contextlib
import os
import shutil

from vit_jax import checkpoint
from vit_jax import description
from vit_jax import program
from vit_jax import report
from vit_jax import run_folder
from vit_jax import timm_config

_SUFFIXES = ('.npz', '.safetensors')


def export(trained, out):
  """Writes a `TrainedModel`; what is written appears when whole.

  Args:
    trained: from `trained_model.load`.
    out: path that ends in .npz or .safetensors, else of a folder to make.

  Returns:
    The paths of the files written.

  Raises:
    ValueError: `out` exists, or its layout has no room for the model.
    OSError: it cannot be written, and nothing was.
  """
  check_free(out)
  with _cleaned_up(out):
    if out.endswith(_SUFFIXES):
      return _write_file(trained, out)
    return _write_folder(trained, out.rstrip('/'))


def check_free(out):
  """Raises a ValueError unless a new file or folder can be called `out`."""
  suffix = os.path.splitext(out)[1]
  if suffix and suffix not in _SUFFIXES and not out.endswith('/'):
    raise ValueError(f'{out}: neither .npz nor .safetensors, nor a folder, '
                     'which ends in a slash')
  taken = [out] if not os.path.isdir(out) or os.listdir(out) else []
  if out.endswith(_SUFFIXES):
    taken = [out, description.path_for(out)]
  for path in taken:
    if os.path.lexists(path):
      raise ValueError(f'{path} exists, and is left as it is. Remove it, or '
                       'give another name')
  parent = os.path.dirname(os.path.abspath(out))
  if not os.path.isdir(parent):
    raise ValueError(f'{out}: there is no folder {parent}')


def _partial(out):
  return f'{out.rstrip("/")}.{os.getpid()}.partial'


@contextlib.contextmanager
def _cleaned_up(out):
  """Leaves nothing half-written, and names `out` in what the system says."""
  partial = _partial(out)
  try:
    yield
  except OSError as error:
    raise OSError(
        f'{out} cannot be written: {error.strerror or error}') from error
  finally:
    if os.path.isdir(partial):
      shutil.rmtree(partial)
    elif os.path.exists(partial):
      os.remove(partial)


def _write_file(trained, out):
  """The weights, and their description beside them."""
  run_folder.write_json(_partial(out), trained.description)
  checkpoint.save(out, trained.params)
  beside = description.path_for(out)
  os.rename(_partial(out), beside)
  return [out, beside]


def _write_folder(trained, out):
  """A folder in the layout of a model on a hub, as timm reads and writes it."""
  config = {**timm_config.make(trained), **trained.description}
  partial = _partial(out)
  os.mkdir(partial)
  path = os.path.join(partial, 'model.safetensors')
  checkpoint.save(path, trained.params)
  run_folder.write_json(description.path_for(path), config)
  os.rename(partial, out)
  return [os.path.join(out, name) for name in sorted(os.listdir(out))]


def main(argv=None):
  """Exports what the arguments name."""
  parser = program.Parser('vit_jax.export', __doc__)
  program.add_model_arguments(parser)
  parser.add_argument('out', type=os.path.expanduser, help='path to write: '
                      'FILE.npz, FILE.safetensors or FOLDER/')
  args = parser.parse_args(argv)
  with program.mistakes_leave():
    check_free(args.out)
    trained = program.load_model(args)
    report.say(f'{trained.source}: {trained}')
    for path in export(trained, args.out):
      report.say(f'written: {path} ({os.path.getsize(path):,} bytes)')


if __name__ == '__main__':
  program.start(main)
