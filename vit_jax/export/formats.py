"""Writes a trained model to files that other programs can read."""

import contextlib
import os
import shutil

from vit_jax import console
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.export import hugging_face
from vit_jax.export import timm_config
from vit_jax.export import vit_pytorch
from vit_jax.files import json_files

_SUFFIXES = ('.npz', '.safetensors')
# What other libraries do not know about the outputs of a model.
_WARNINGS = {
  'sigmoid': '{} returns logits; the probability of each class is their '
  'sigmoid, not their softmax',
  'identity': '{} returns the outputs of the head, which are not classes',
  'targets': '{} returns standardized values; value * std + mean, with std '
  'and mean in config.json, is in the unit of the target',
}


def export(
  trained: trained_model.TrainedModel,
  out: str,
  vit_pytorch_version: str | None = None,
) -> list[str]:
  """Writes a `TrainedModel`; `out` appears only when it is complete.

  Args:
    trained: a model from `trained_model.load_model`.
    out: a path that ends in .npz or .safetensors, or the path of a new folder.
    vit_pytorch_version: version of vit-pytorch that reads a model of its kind;
      see `vit_pytorch.make`.

  Returns:
    The paths of the written files.

  Raises:
    ValueError: `out` exists, or its format cannot represent the model.
    OSError: `out` cannot be written; no partial file remains.
  """
  check_free(out)
  made = None
  if not out.endswith('.npz'):
    made = vit_pytorch.make(trained, vit_pytorch_version)
  with _cleaned_up(out):
    if out.endswith(_SUFFIXES):
      return _write_file(trained, out, *(made or ())[2:])
    return _write_folder(trained, out.rstrip('/'), made)


def check_free(out: str) -> None:
  """Raises ValueError unless `out` is a valid path for a new file or folder."""
  suffix = os.path.splitext(out)[1]
  if suffix and suffix not in _SUFFIXES and not out.endswith('/'):
    raise ValueError(
      f'{out} is not a valid path for an export. It must end in .npz or '
      '.safetensors, or in a slash for a folder.'
    )
  taken = [out] if not os.path.isdir(out) or os.listdir(out) else []
  if out.endswith(_SUFFIXES):
    taken = [out, metadata.path_for(out)]
  for path in taken:
    if os.path.lexists(path):
      raise ValueError(
        f'{path} exists and is not overwritten. Remove it or use another path.'
      )
  parent = os.path.dirname(os.path.abspath(out))
  if not os.path.isdir(parent):
    raise ValueError(f'{out}: there is no folder {parent}. Create it first.')


def _partial(out):
  return f'{out.rstrip("/")}.{os.getpid()}.partial'


@contextlib.contextmanager
def _cleaned_up(out):
  """Removes partial files, and adds `out` to the messages of OSErrors."""
  partial = _partial(out)
  try:
    yield
  except OSError as error:
    raise OSError(
      f'{out} cannot be written: {error.strerror or error}. Free disk space, '
      'or use another path.'
    ) from error
  finally:
    if os.path.isdir(partial):
      shutil.rmtree(partial)
    elif os.path.exists(partial):
      os.remove(partial)


def _write_file(trained, out, *names):
  """Writes the weights, and their metadata next to them."""
  json_files.write_json(_partial(out), trained.description.to_json())
  weights_file.save(out, trained.params, *names)
  metadata_path = metadata.path_for(out)
  os.replace(_partial(out), metadata_path)
  return [out, metadata_path]


def _write_folder(trained, out, made):
  """Writes a folder in the format of models on the Hugging Face Hub.

  The layout is that of vit-pytorch (`made`), of transformers, if the model came
  from there, or timm's.
  """
  program = 'vit-pytorch'
  if not made:
    program, made = 'transformers', hugging_face.make(trained)
  if not made:
    program, made = 'timm', timm_config.make(trained)
  config, files, *names = made
  config = {**config, **trained.description.to_json()}
  partial = _partial(out)
  os.mkdir(partial)
  path = os.path.join(partial, 'model.safetensors')
  weights_file.save(path, trained.params, *names)
  json_files.write_json(metadata.path_for(path), config)
  for name, content in files.items():
    json_files.write_json(os.path.join(partial, name), content)
  os.rename(partial, out)
  warning = _WARNINGS.get('targets' if trained.targets else trained.output)
  if warning and trained.model.num_classes:
    console.log_info(f'warning: {warning.format(program)}')
  return [os.path.join(out, name) for name in sorted(os.listdir(out))]
