"""Weights files: parameters read from any layout, and written.

Works on nested dicts of arrays and knows no model class; `adaptation` fits
what was read to a model.
"""

from collections.abc import Mapping
import json
import os
import pathlib
import stat
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from vit_jax.checkpoint import checksums
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint import orbax_paths
from vit_jax.checkpoint import torch_convert
from vit_jax.models import param_paths

_SAFETENSORS = 'model.safetensors'
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
  """{'/'-joined path: array} of a nested dict."""
  return traverse_util.flatten_dict(params, sep='/')


def load(
  path: str | os.PathLike, num_heads: int | None = None
) -> dict[str, Any]:
  """The parameters in a file or folder, as a nested dict of NumPy arrays.

  Args:
    path: an `.npz` in any published spelling; a `.safetensors` of timm or
      Hugging Face, or a folder that holds one as `model.safetensors`; a run of
      ours: its folder, the `checkpoints` in it (of both the newest step) or
      one step's folder; of these the parameters that `deployed.json` names, all
      of a classifier's. bfloat16 in an `.npz` becomes float32. Arrays that a
      layout has no use for, such as an optimizer's state, may hold anything.
    num_heads: attention heads, where a `.safetensors` leaves them open; None:
      as the file or the config.json beside it says, else by its width.

  Raises:
    ValueError: it is damaged, pickled or none of these; or a parameter is not
      floating-point, or not finite.
    FileNotFoundError: there is nothing of that name.
  """
  path = os.path.expanduser(os.fspath(path))
  if os.path.isdir(path):
    flat = _load_folder(path, num_heads)
  elif path.endswith('.safetensors'):
    flat = _load_safetensors([path], num_heads)
  elif path.endswith(npz_names.PICKLES):
    raise ValueError(
      f'{path} is a pickle, which can run any code when it is read. Most '
      'models are published as .safetensors too; or convert it with PyTorch '
      'where it came from: safetensors.torch.save_model'
    )
  else:
    flat = _load_npz(path)
  return traverse_util.unflatten_dict(flat, sep='/')


def _load_npz(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      flat = {key: file[key] for key in file.files}
    if not all(isinstance(array, np.ndarray) for array in flat.values()):
      raise ValueError('it holds something other than NumPy arrays')
    flat = npz_names.to_linen(flat)
    traverse_util.unflatten_dict(flat, sep='/')
  except (FileNotFoundError, PermissionError):
    raise
  except Exception as error:  # zipfile, zlib and NumPy each raise their own
    raise ValueError(
      f'{path} ({os.path.getsize(path)} bytes) cannot be read as a NumPy '
      f'.npz archive of parameters: {error}. Is it truncated? Fetch it '
      'again.'
    ) from error
  _check_numbers(flat, path)
  return flat


def _check_numbers(flat, path):
  """Raises a ValueError unless all arrays are finite, as float32 too."""
  for name, array in flat.items():
    if array.dtype.name not in _FLOATS:
      raise ValueError(
        f'{path}: the array {name} is {array.dtype.name}, and parameters are '
        f'{", ".join(_FLOATS)}. Quantized weights are not supported: take '
        'those in floating point'
      )
    with np.errstate(over='ignore'):  # of float64: models compute in float32
      finite = np.isfinite(array.astype(np.float32, copy=False))
    if not finite.all():
      raise ValueError(
        f'{path}: the array {name} has {finite.size - finite.sum()} of '
        f'{finite.size} values that are NaN or infinite in float32. Training '
        'has diverged, or the file is damaged: take other weights, such as '
        'an earlier checkpoint'
      )


def _load_safetensors(paths, num_heads):
  """Arrays of one file, or of the parts of one, under today's names."""
  flat, metadata = {}, {}
  for path in paths:
    try:
      with safetensors.safe_open(path, 'numpy') as file:
        metadata.update(file.metadata() or {})
        arrays = {key: file.get_tensor(key) for key in file.keys()}
    except FileNotFoundError:
      raise
    except Exception as error:  # the library raises its own, and TypeError
      raise ValueError(
        f'{path} ({os.path.getsize(path)} bytes) cannot be read as '
        f'.safetensors: {error}. Is it truncated? Fetch it again.'
      ) from error
    arrays = torch_convert.without_buffers(arrays)
    _check_numbers(arrays, path)
    flat.update(arrays)
  if not torch_convert.is_torch(flat):
    return npz_names.to_linen(flat)
  try:
    num_heads = num_heads or _stated_num_heads(
      metadata, os.path.dirname(paths[0])
    )
    if num_heads is None:
      num_heads = torch_convert.infer_num_heads(flat)
    return torch_convert.to_linen(
      flat, num_heads, all_positions='num_heads' in metadata or None
    )
  except ValueError as error:
    raise ValueError(f'{paths[0]}: {error}') from error


def _stated_num_heads(metadata, folder):
  """Heads as a file's own header or the config.json beside it says, or None."""
  if 'num_heads' in metadata:
    return int(metadata['num_heads'])
  config = os.path.join(folder, 'config.json')
  if not os.path.isfile(config):
    return None
  with open(config, encoding='utf-8') as file:
    settings = json.load(file)
  # Of Hugging Face, of timm.
  return settings.get('num_attention_heads') or settings.get(
    'model_args', {}
  ).get('num_heads')


def _load_folder(path, num_heads):
  """A folder as Hugging Face publishes them, or of a run of ours."""
  shards = os.path.join(path, npz_names.SHARDS)
  if os.path.isfile(shards):
    with open(shards, encoding='utf-8') as file:
      names = sorted(set(json.load(file)['weight_map'].values()))
    if any(os.path.basename(name) != name for name in names):
      raise ValueError(f'{shards} names files outside its folder')
    return _load_safetensors(
      [os.path.join(path, name) for name in names], num_heads
    )
  if os.path.isfile(os.path.join(path, _SAFETENSORS)):
    return _load_safetensors([os.path.join(path, _SAFETENSORS)], num_heads)
  return _load_run(path)


def steps_in(checkpoints: str | os.PathLike) -> list[int]:
  """Steps of the finished checkpoints of a run in a folder, rising."""
  if not os.path.isdir(checkpoints):
    return []
  return sorted(ocp.utils.checkpoint_steps(checkpoints))


def _load_run(path):
  """Parameters of a run's newest step, or of one step."""
  folder = os.path.join(path, 'checkpoints')
  folder = folder if os.path.isdir(folder) else path
  if not os.path.basename(os.path.normpath(folder)).isdecimal():
    steps = steps_in(folder)
    if not steps:
      raise ValueError(
        f'{path} holds neither a finished checkpoint of a run nor '
        f'{_SAFETENSORS}'
      )
    folder = os.path.join(folder, str(steps[-1]))
  orbax_paths.check(folder)
  folder = pathlib.Path(os.path.abspath(folder))
  _check_sound(folder)
  deployed = metadata.of_run(folder.parent.parent)
  try:
    flat = flatten(_restore_params(folder, deployed.params_set))
  except Exception as error:  # Orbax raises what its storage layers raise
    reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:200]
    raise ValueError(
      f'the parameters of {folder} cannot be read ({reason}). If it is '
      'damaged, name the folder of an earlier step'
    ) from error
  if deployed.module:
    prefix = f'{deployed.module}/'
    flat = {
      name.removeprefix(prefix): array
      for name, array in flat.items()
      if name.startswith(prefix)
    }
    if not flat:
      raise ValueError(
        f'{folder} has no parameters below {deployed.module!r}, where '
        f'{deployed.path} says that the model is'
      )
  _check_numbers(flat, folder)
  return flat


def _check_sound(folder):
  """Raises a ValueError if the checkpoint in `folder` is damaged."""
  for item in sorted(filter(pathlib.Path.is_dir, folder.iterdir())):
    damage = checksums.verify(item)
    if damage:
      others = [
        str(folder.parent / str(step))
        for step in steps_in(folder.parent)
        if str(step) != folder.name
      ]
      raise ValueError(
        f'the checkpoint {folder} is damaged: {damage}. '
        + (
          f'Name the folder of another: {", ".join(others)}'
          if others
          else 'There is no other beside it'
        )
      )


def _restore_params(folder, params_set):
  """The parameters in one step's folder, whatever devices wrote it.

  Neither the optimizer's state nor the model is needed: what the folder says
  of its arrays is enough. `params_set` is the field of the state, 'params' or
  'ema'.
  """
  handler = ocp.PyTreeCheckpointHandler()
  for item in sorted(file.parent for file in folder.glob('*/_METADATA')):
    tree = handler.metadata(item).tree
    if params_set not in tree:
      continue
    tree = {params_set: tree[params_set]}
    as_arrays = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return handler.restore(
      item,
      args=ocp.args.PyTreeRestore(
        item=tree, partial_restore=True, restore_args=as_arrays
      ),
    )[params_set]
  raise ValueError('it holds no parameters')


def save(path: str | os.PathLike, params: Mapping[str, Any]) -> None:
  """Writes `params`; the file appears when it is whole.

  Args:
    path: ends in `.safetensors` for timm's names, else the published layout of
      an `.npz` is written.
    params: nested dict.

  Raises:
    ValueError: timm has no names for some of the parameters.
  """
  path = os.fspath(path)
  flat = {key: np.asarray(value) for key, value in flatten(params).items()}
  partial = f'{path}.partial'
  try:
    with open(partial, 'wb') as file:
      mode = os.fstat(file.fileno()).st_mode
      if not path.endswith('.safetensors'):
        np.savez(file, **npz_names.to_published(flat))
    if path.endswith('.safetensors'):
      _save_safetensors(partial, flat)
      # The library replaces the file by a temporary one of mode 0600.
      os.chmod(partial, stat.S_IMODE(mode))
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def _save_safetensors(path, flat):
  metadata = {'format': 'pt'}
  for name, array in flat.items():
    if name.endswith(f'{param_paths.ATTENTION}/query/kernel'):
      metadata['num_heads'] = str(array.shape[1])  # no shape tells in PyTorch
  arrays = {
    name: np.ascontiguousarray(array)
    for name, array in torch_convert.to_timm(flat).items()
  }
  try:
    safetensors.numpy.save_file(arrays, path, metadata)
  except safetensors.SafetensorError as error:  # such as a full disk
    raise OSError(f'{path} cannot be written: {error}') from error
