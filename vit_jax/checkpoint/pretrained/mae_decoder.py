"""Decoders in published files of masked autoencoders (arXiv 2111.06377).

A file has the names of the authors' repository (`decoder_blocks.0.norm1`), in
.safetensors or .npz, or those of Hugging Face's ViTMAEForPreTraining
(`decoder.decoder_layers.0.layernorm_before`), with a config.json.
"""

import os
import re
from typing import Any

from flax import traverse_util
import numpy as np

from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint.other_libraries import hugging_face_names
from vit_jax.checkpoint.other_libraries import name_tables
from vit_jax.checkpoint.other_libraries import torch_names
from vit_jax.files import json_files
from vit_jax.models import param_paths

# Names of a decoder's arrays, after those of modules that contain it.
_NAMES = r'(?:(?:module|model|decoder)\.)*(mask_token|decoder_.*)'
_EMBED = 'decoder_embed.weight'
# {name of a block: name in the tables}. transformers 5 reads the second name
# and writes the third one.
_BLOCKS = {
  r'^decoder_blocks\.': 'blocks.',
  r'^decoder_layers\.': 'block.',
  r'^decoder_encoder\.layer\.': 'block.',
}
# Names of the encoder's table of positions, in all formats.
_POSITIONS = (
  r'(?:.*[./])?(?:pos_embed|embeddings\.position_embeddings|pos_embedding)'
)
_TABLE = (
  ('array', 'mask_token', 'mask_token'),
  ('array', param_paths.POSITIONS, 'decoder_pos_embed'),
  ('dense', 'embed', 'decoder_embed'),
  ('norm', param_paths.ENCODER_NORM, 'decoder_norm'),
  ('dense', 'pred', 'decoder_pred'),
  *torch_names.TIMM_VIT,
  *hugging_face_names.TABLE,
)
# Settings of the authors' models, which their files do not contain.
_SETTINGS = {
  'gelu': 'exact',
  'norm_epsilon': 1e-6,
  'classifier': 'token',
  'image_mean': (0.485, 0.456, 0.406),
  'image_std': (0.229, 0.224, 0.225),
}


def load(path: str, num_heads: int) -> dict[str, Any] | None:
  """Returns the parameters of a decoder, a nested dict; None without decoder.

  Args:
    path: path of a file or folder with weights, which `weights_file.load` has
      read and checked.
    num_heads: attention heads of the decoder.

  Raises:
    ValueError: lists the names that have no counterpart in vit_jax.
  """
  found = npz_names.to_linen(_without_prefix(arrays_in(path, _NAMES)))
  if _EMBED not in found:
    return None
  for theirs, usual in _BLOCKS.items():
    found = {re.sub(theirs, usual, name): x for name, x in found.items()}
  return traverse_util.unflatten_dict(
    name_tables.read(found, _TABLE, num_heads), sep='/'
  )


def arrays_in(path: str, pattern: str) -> dict[str, np.ndarray]:
  """Returns {name: array} of the arrays in weights whose names match.

  It is {} if the file cannot be read: `weights_file.load` explains the error.
  """
  files = [path]
  if os.path.isdir(path):
    index = os.path.join(path, npz_names.SHARDS)
    names = ['model.safetensors']
    if os.path.exists(index):
      names = npz_names.read_shards(index)
    files = [os.path.join(path, name) for name in names]
  found = {}
  for file in filter(os.path.isfile, files):
    try:
      found |= _arrays_in_file(file, pattern)
    except Exception:  # zipfile, zlib and safetensors have their own errors
      return {}
  return found


def _arrays_in_file(path, pattern):
  if path.endswith('.safetensors'):
    import safetensors

    with safetensors.safe_open(path, 'numpy') as file:
      names = [name for name in file.keys() if re.fullmatch(pattern, name)]
      return {name: file.get_tensor(name) for name in names}
  with np.load(path, allow_pickle=False) as file:
    names = [name for name in file.files if re.fullmatch(pattern, name)]
    return {name: file[name] for name in names}


def _without_prefix(flat):
  return {re.fullmatch(_NAMES, name)[1]: x for name, x in flat.items()}


def encoder_settings(path: str) -> dict[str, Any]:
  """Returns the settings of the encoder in a file of the authors' repository.

  The number of heads is not among them: no array contains it.

  Args:
    path: path of weights without metadata. The result is {} for other files.
  """
  found = arrays_in(path, r'(?:(?:module|model)\.)*decoder_embed\.weight')
  return dict(_SETTINGS) if found else {}


def run_settings(path: str) -> dict[str, Any]:
  """Returns the settings of a run of config.task=mae that starts from weights.

  Args:
    path: path of a file or folder with weights.

  Returns:
    {setting: value}, such as {'mae.decoder_size': 512}, of the settings that
    the weights determine.
  """
  found = {}
  if arrays_in(path, _POSITIONS):
    found['model.positions'] = 'learned'
  decoder = _without_prefix(arrays_in(path, _NAMES))
  if _EMBED not in decoder:
    return found
  layers = (re.match(rf'(?:{"|".join(_BLOCKS)})(\d+)', x) for x in decoder)
  found['mae.decoder_size'] = len(decoder[_EMBED])
  found['mae.decoder_layers'] = len({x[1] for x in layers if x})
  if 'decoder_pos_embed' in decoder:
    found['mae.decoder_positions'] = 'learned'
  config = _config(path)
  if config:  # with the defaults of transformers
    found['mae.decoder_heads'] = config.get('decoder_num_attention_heads', 16)
    found['mae.normalize'] = config.get('norm_pix_loss', False)
  return found


def _config(path):
  """Returns the config.json of Hugging Face next to weights; or {}."""
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  config = json_files.read_json(os.path.join(folder, 'config.json'), dict) or {}
  return config if config.get('model_type') == 'vit_mae' else {}
