"""The files of a model that the package vit-pytorch can build and load.

`ViT(**arguments).load_state_dict(safetensors.torch.load_file(…))` with the
arguments in the key `vit_pytorch` of `config.json`, without `version`.
"""

from collections.abc import Callable
import importlib.metadata
from typing import Any

from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint.other_libraries import vit_pytorch
from vit_jax.export import timm_config
from vit_jax.models import param_paths

_PACKAGE = 'vit-pytorch'


def make(
  trained: trained_model.TrainedModel, version: str | None = None
) -> tuple[dict[str, Any], dict[str, Any], Callable] | None:
  """Returns what vit-pytorch needs to build a model.

  Args:
    trained: the model.
    version: version of vit-pytorch that reads the arrays. None: the installed
      version, or else the one that the weights came from.

  Returns:
    (content of `config.json`, {} for other files, `to_torch` of
    `weights_file.save`). None: the model has no norm of pixels, so it is of
    another kind.

  Raises:
    ValueError: vit-pytorch has no such model, or the version is open.
  """
  model = trained.model
  if not getattr(model, 'pixel_norm', False):
    return None
  version = version or _installed() or _of_origin(trained)
  if not version:
    raise ValueError(
      'The arrays depend on the version of vit-pytorch, which is not '
      'installed. Use vit_pytorch_version=…, such as '
      'vit_pytorch_version=1.16.1.'
    )
  kernel = trained.params['embedding']['kernel']
  arguments = vit_pytorch.arguments_of_model(
    model, trained.image_size, kernel.shape[2], version
  )
  if not timm_config.agrees(model, vit_pytorch.settings_of(arguments)):
    raise ValueError(
      f'ViT of vit-pytorch {version} has no arguments for this model. Its '
      f'nearest ones are {arguments}. Use another vit_pytorch_version=…, or '
      'export an .npz file.'
    )
  if model.num_classes == 0 and param_paths.HEAD not in trained.params:
    raise ValueError(
      'ViT of vit-pytorch has a head, but this model has none. Export an .npz '
      'file.'
    )
  return {vit_pytorch.KEY: arguments}, {}, vit_pytorch.writer(version)


def _installed():
  try:
    return importlib.metadata.version(_PACKAGE)
  except importlib.metadata.PackageNotFoundError:
    return None


def _of_origin(trained):
  return (trained.origin or {}).get(vit_pytorch.KEY, {}).get('version')
