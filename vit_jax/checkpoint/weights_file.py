"""Reads parameters from weights files of all supported formats, and saves them.

This module works on nested dicts of arrays and uses no model class.
`adaptation` adapts the loaded parameters to a model.
"""

from collections.abc import Callable
from collections.abc import Mapping
import os
import pathlib
import re
import stat
from typing import Any

from flax import traverse_util
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.checkpoint import checksums
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint import orbax_paths
from vit_jax.checkpoint import torch_convert
from vit_jax.checkpoint.other_libraries import hugging_face_names
from vit_jax.checkpoint.other_libraries import vit_pytorch
from vit_jax.files import json_files
from vit_jax.files import npz_files
from vit_jax.files import regular_files
from vit_jax.models import param_paths

_SAFETENSORS = 'model.safetensors'
# Keys of the header of our files: heads of blocks, and of attention pooling.
_HEADS = {False: 'num_heads', True: 'pool_heads'}
_ALL_POSITIONS = 'all_positions'
# In Orbax's _METADATA: the path of each array.
_TREE = {'tree_metadata': {str: {'key_metadata': [{'key': str}]}}}
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {'/'-joined path: array} for a nested dict."""
  return traverse_util.flatten_dict(params, sep='/')


def load(
  path: str | os.PathLike,
  num_heads: int | None = None,
  params_set: str | None = None,
) -> dict[str, Any]:
  """Loads the parameters in a file or folder, as a nested dict of NumPy arrays.

  Arrays that are not parameters, such as the optimizer state, are skipped and
  not checked.

  Args:
    path: one of
      - an `.npz` with the array names of any published file; bfloat16 becomes
        float32;
      - a `.safetensors` of timm, Hugging Face or vit-pytorch, or a folder with
        a `model.safetensors`;
      - a run folder or its `checkpoints` (the newest step), or the folder of
        one step. `deployed.json` specifies which of the run's parameters are
        loaded; for a classifier, these are all parameters.
    num_heads: number of attention heads in a `.safetensors`. None: the number
      in the file, in the config.json next to it, or that its arrays determine.
    params_set: 'params' or 'ema', for a run. None: as in `deployed.json`.

  Raises:
    ValueError: the file is damaged, a pickle, or of no supported format; a
      parameter is not floating-point or not finite; or the number of heads is
      unknown.
    FileNotFoundError: the path does not exist.
  """
  path = os.path.expanduser(os.fspath(path))
  if os.path.isdir(path):
    flat = _load_folder(path, num_heads, params_set)
  elif path.endswith('.safetensors'):
    flat = _load_safetensors([path], num_heads)
  elif path.endswith(npz_names.PICKLES):
    raise npz_names.pickle_error(path)
  else:
    flat = _load_npz(path, num_heads)
  return traverse_util.unflatten_dict(flat, sep='/')


def _load_npz(path, num_heads):
  regular_files.check(path)
  try:
    flat = npz_names.to_linen(npz_files.read(path))
    traverse_util.unflatten_dict(flat, sep='/')
  except (FileNotFoundError, PermissionError):
    raise
  except Exception as error:  # zipfile, zlib and NumPy have their own errors
    raise ValueError(
      f'{path} ({os.path.getsize(path)} bytes) cannot be read as a NumPy '
      f'.npz archive of parameters: {error}. Use a file of weights. If it '
      'is one, it may be truncated: download it again.'
    ) from error
  _check_numbers(flat, path)
  return _from_torch(flat, {}, path, num_heads)


def _check_numbers(flat, path):
  """Raises ValueError unless all arrays are floating-point and finite."""
  for name, array in flat.items():
    if array.dtype.name not in _FLOATS:
      raise ValueError(
        f'{path}: the array {name} is {array.dtype.name}, but parameters must '
        f'be {", ".join(_FLOATS)}. Quantized weights are not supported: use '
        'floating-point weights.'
      )
    # Models compute in float32, where large float64 values are infinite.
    with np.errstate(over='ignore'):
      finite = np.isfinite(array.astype(np.float32, copy=False))
    if not finite.all():
      raise ValueError(
        f'{path}: the array {name} has {finite.size - finite.sum()} of '
        f'{finite.size} values that are NaN or infinite in float32. Training '
        'has diverged, or the file is damaged. Use other weights, such as an '
        'earlier checkpoint.'
      )


def _load_safetensors(paths, num_heads):
  """Returns the arrays of a file, or of all its shards, with our names."""
  import safetensors

  flat, header = {}, {}
  for path in paths:
    regular_files.check(path)
    try:
      with safetensors.safe_open(path, 'numpy') as file:
        header.update(file.metadata() or {})
        arrays = {key: file.get_tensor(key) for key in file.keys()}
    except FileNotFoundError:
      raise
    except Exception as error:  # the library has its own errors, and TypeError
      raise ValueError(
        f'{path} ({os.path.getsize(path)} bytes) cannot be read as '
        f'.safetensors: {error}. Use a file of weights. If it is one, it may '
        'be truncated: download it again.'
      ) from error
    arrays = torch_convert.without_buffers(arrays)
    _check_numbers(arrays, path)
    flat.update(arrays)
  if not torch_convert.is_torch(flat):
    return npz_names.to_linen(flat)
  return _from_torch(flat, header, paths[0], num_heads)


def _from_torch(flat, header, path, num_heads):
  """Returns arrays with our names; an error names the file."""
  if not torch_convert.is_torch(flat):
    return flat
  try:
    return _to_linen(flat, header, path, num_heads)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _to_linen(flat, header, path, num_heads):
  """Returns the arrays of timm or Hugging Face with our names."""
  origin = None
  if 'num_heads' not in header:
    try:
      origin = metadata.origin_of(path)
    except ValueError:
      if num_heads is None:
        raise
  is_hugging_face = hugging_face_names.is_known(flat)
  if is_hugging_face:
    flat = hugging_face_names.plain(flat)
  settings = {k: _heads(header, k) for k in _HEADS.values() if k in header}
  if origin and origin.settings:
    settings = origin.settings
  num_heads = num_heads or settings.get('num_heads')
  if vit_pytorch.is_known(flat):
    config = metadata.content_of(path)
    if vit_pytorch.KEY not in config:
      raise vit_pytorch.missing_config(path)
    arguments = vit_pytorch.arguments_of(config)
    return vit_pytorch.to_linen(
      flat, num_heads or arguments['heads'], arguments['channels']
    )
  if num_heads is None:
    num_heads = torch_convert.find_num_heads(flat)
  pool_heads = settings.get('pool_heads')
  if is_hugging_face:
    return hugging_face_names.to_linen(flat, num_heads, pool_heads)
  all_positions = origin.embeds_tokens if origin else None
  if 'num_heads' in header:  # files of earlier versions have only this key
    all_positions = header.get(_ALL_POSITIONS, 'True') == 'True'
  return torch_convert.to_linen(flat, num_heads, all_positions, pool_heads)


def _heads(header, name):
  """Returns a number of heads in the header of a file, which is a text."""
  if not re.fullmatch(r'[1-9]\d{0,5}', header[name]):
    raise ValueError(
      f'{name}={header[name][:20]!r} in its header must be an integer from 1 '
      'to 999999. The file is damaged: use an intact copy.'
    )
  return int(header[name])


def _load_folder(path, num_heads, params_set):
  """Loads a folder in Hugging Face's format, or a run folder."""
  _check_folder(path)
  shards = os.path.join(path, npz_names.SHARDS)
  if os.path.isfile(shards):
    names = npz_names.read_shards(shards)
    return _load_safetensors(
      [os.path.join(path, name) for name in names], num_heads
    )
  if os.path.isfile(os.path.join(path, _SAFETENSORS)):
    return _load_safetensors([os.path.join(path, _SAFETENSORS)], num_heads)
  return _load_run(path, params_set)


def _check_folder(path):
  """Raises ValueError for an adapter, quantized weights or only pickles."""
  names = os.listdir(path)
  if 'adapter_config.json' in names or 'adapter_model.safetensors' in names:
    raise ValueError(
      f'{path} is an adapter (LoRA), not a whole model. Merge it into its '
      'model in the library that made it, and use the merged weights.'
    )
  config = json_files.read_json(os.path.join(path, 'config.json'), dict) or {}
  if 'quantization_config' in config:
    raise ValueError(
      f'{path} has quantized weights (quantization_config in its config.json). '
      'Use floating-point weights.'
    )
  readable = {_SAFETENSORS, npz_names.SHARDS, 'checkpoints'} & {*names}
  pickles = [name for name in names if name.endswith(npz_names.PICKLES)]
  if pickles and not readable:
    raise npz_names.pickle_error(os.path.join(path, pickles[0]))


def steps_in(checkpoints: str | os.PathLike) -> list[int]:
  """Returns the sorted steps of the finished checkpoints in a folder."""
  if not os.path.isdir(checkpoints):
    return []
  return sorted(ocp.utils.checkpoint_steps(checkpoints))


def load_module(
  path: str | os.PathLike, module: str, params_set: str
) -> dict[str, Any]:
  """Returns the parameters of one module of a run; {} if it has none.

  Args:
    path: as `load`, but of a run.
    module: name of the module, such as 'decoder'. It need not be deployed.
    params_set: 'params' or 'ema'.

  Raises:
    ValueError: the checkpoint is damaged, or an array is not finite.
  """
  flat, folder, _ = _read_run(os.fspath(path), params_set)
  flat = _inside(flat, module)
  _check_numbers(flat, folder)
  return traverse_util.unflatten_dict(flat, sep='/')


def _inside(flat, module):
  """Returns the arrays of a module, without its name in their paths."""
  prefix = f'{module}/'
  return {
    name.removeprefix(prefix): array
    for name, array in flat.items()
    if name.startswith(prefix)
  }


def _load_run(path, params_set):
  """Returns the parameters of a run's newest step, or of one step."""
  flat, folder, deployed = _read_run(path, params_set)
  if deployed.module:
    flat = _inside(flat, deployed.module)
    if not flat:
      raise ValueError(
        f'{folder} has no parameters in the module {deployed.module!r}, which '
        f'is the model according to deployed.json of {deployed.path}. Correct '
        'the module in this file.'
      )
  _check_numbers(flat, folder)
  return flat


def _read_run(path, params_set):
  """Returns (all parameters of a step, its folder, metadata of the run)."""
  folder = os.path.join(path, 'checkpoints')
  folder = folder if os.path.isdir(folder) else path
  if not os.path.basename(os.path.normpath(folder)).isdecimal():
    steps = steps_in(folder)
    if not steps:
      raise ValueError(
        f'{path} contains neither a finished checkpoint of a run nor '
        f'{_SAFETENSORS}. Use another folder.'
      )
    folder = os.path.join(folder, str(steps[-1]))
  orbax_paths.check(folder)
  folder = pathlib.Path(os.path.abspath(folder))
  _check_sound(folder)
  deployed = metadata.of_run(folder.parent.parent)
  try:
    params_set = params_set or deployed.params_set
    flat = flatten(_restore_params(folder, params_set))
  except Exception as error:  # Orbax passes on errors of its storage layers
    if str(error).startswith('Unable to initialize backend'):  # of JAX
      raise
    reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:200]
    raise ValueError(
      f'the parameters of {folder} cannot be read ({reason}). If the '
      'checkpoint is damaged, use the folder of an earlier step.'
    ) from error
  return flat, folder, deployed


def _check_sound(folder):
  """Raises ValueError if the checkpoint in `folder` is damaged."""
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
          f'Use another checkpoint: {", ".join(others)}'
          if others
          else 'The run has no other checkpoint. Train the model again.'
        )
      )


def _restore_params(folder, params_set):
  """Returns the parameters in the folder of one step.

  The metadata in the folder is sufficient: neither the optimizer state, the
  model nor the original devices are needed. They are read here, because Orbax
  would open each array, and TensorStore loses memory when it describes one.

  Args:
    folder: folder of the step.
    params_set: field of the train state, 'params' or 'ema'.
  """
  handler = ocp.PyTreeCheckpointHandler()
  for item in sorted(file.parent for file in folder.glob('*/_METADATA')):
    found = json_files.read_json(f'{item}/_METADATA', _TREE)['tree_metadata']
    paths = [
      tuple(part['key'] for part in array['key_metadata'])
      for array in found.values()
    ]
    as_array = ocp.RestoreArgs(restore_type=np.ndarray)
    tree = traverse_util.unflatten_dict(
      {path: as_array for path in paths if path[:1] == (params_set,)}
    )
    if not tree:
      continue
    return handler.restore(
      item,
      args=ocp.args.PyTreeRestore(
        item=tree, partial_restore=True, restore_args=tree
      ),
    )[params_set]
  raise ValueError('it contains no parameters')


def save(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  to_torch: Callable[..., dict[str, np.ndarray]] = torch_convert.to_timm,
  all_positions: bool = True,
) -> None:
  """Writes `params` to a file, which appears only when it is complete.

  Args:
    path: a path with the ending `.safetensors` gets names of PyTorch. Other
      paths get the published `.npz` format.
    params: nested dict of arrays.
    to_torch: function from {our path: array} to {their path: array}. The
      default gives timm's names.
    all_positions: whether class token and registers have position embeddings in
      the result of `to_torch`.

  Raises:
    ValueError: the format has no names for some of the parameters.
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
      _save_safetensors(partial, flat, to_torch(flat), all_positions)
      # safetensors replaces the file by a temporary file with mode 0600.
      os.chmod(partial, stat.S_IMODE(mode))
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def _save_safetensors(path, flat, arrays, all_positions):
  import safetensors.numpy

  header = {'format': 'pt', _ALL_POSITIONS: str(all_positions)}
  for name, array in flat.items():
    module, _, rest = name.partition(f'/{param_paths.ATTENTION}/')
    if rest == 'value/kernel':
      # In PyTorch, no shape contains the number of heads.
      key = _HEADS[module == param_paths.POOLING]
      header[key] = str(array.shape[1])
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  try:
    safetensors.numpy.save_file(arrays, path, header)
  except safetensors.SafetensorError as error:  # such as a full disk
    number = re.search(r'os error (\d+)', str(error))
    if number:
      number = int(number[1])
      raise OSError(number, os.strerror(number), str(path)) from error
    raise OSError(f'{path} cannot be written: {error}') from error
