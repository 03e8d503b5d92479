"""Writes a trained model as files that other programs read."""

import contextlib
import os
import shutil

from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.data import json_files
from vit_jax.export import timm_config

_SUFFIXES = ('.npz', '.safetensors')


def export(trained: trained_model.TrainedModel, out: str) -> list[str]:
  """Writes a `TrainedModel`; what is written appears when whole.

  Args:
    trained: from `trained_model.load_model`.
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


def check_free(out: str) -> None:
  """Raises a ValueError unless a new file or folder can be called `out`."""
  suffix = os.path.splitext(out)[1]
  if suffix and suffix not in _SUFFIXES and not out.endswith('/'):
    raise ValueError(
      f'{out}: neither .npz nor .safetensors, nor a folder, '
      'which ends in a slash'
    )
  taken = [out] if not os.path.isdir(out) or os.listdir(out) else []
  if out.endswith(_SUFFIXES):
    taken = [out, metadata.path_for(out)]
  for path in taken:
    if os.path.lexists(path):
      raise ValueError(
        f'{path} exists, and is left as it is. Remove it, or give another name'
      )
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
      f'{out} cannot be written: {error.strerror or error}'
    ) from error
  finally:
    if os.path.isdir(partial):
      shutil.rmtree(partial)
    elif os.path.exists(partial):
      os.remove(partial)


def _write_file(trained, out):
  """The weights, and their description beside them."""
  json_files.write_json(_partial(out), trained.description)
  weights_file.save(out, trained.params)
  beside = metadata.path_for(out)
  os.rename(_partial(out), beside)
  return [out, beside]


def _write_folder(trained, out):
  """A folder in the layout of a model on a hub, as timm reads and writes it."""
  config = {**timm_config.make(trained), **trained.description}
  partial = _partial(out)
  os.mkdir(partial)
  path = os.path.join(partial, 'model.safetensors')
  weights_file.save(path, trained.params)
  json_files.write_json(metadata.path_for(path), config)
  os.rename(partial, out)
  return [os.path.join(out, name) for name in sorted(os.listdir(out))]
