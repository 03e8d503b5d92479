"""Asks for facts of weights that no file determines, in one error.

A `.safetensors` of timm or Hugging Face without `config.json` does not contain
the number of heads, the activation, the pooling and so on. A guess would change
the outputs without a word.
"""

from collections.abc import Mapping
import os
import re
from typing import Any

from vit_jax import console
from vit_jax.checkpoint import torch_convert
from vit_jax.checkpoint.other_libraries import hugging_face_names
from vit_jax.checkpoint.other_libraries import name_tables
from vit_jax.checkpoint.other_libraries import timm_table
from vit_jax.checkpoint.other_libraries import torch_names
from vit_jax.checkpoint.other_libraries import vit_pytorch
from vit_jax.data import data_settings
from vit_jax.models import param_paths

_IMAGENET = '(0.485,0.456,0.406)', '(0.229,0.224,0.225)'
_CLIP = (
  '(0.48145466,0.4578275,0.40821073)',
  '(0.26862954,0.26130258,0.27577711)',
)
# {setting: possible values} of a Vision Transformer.
_VALUES = {
  'num_heads': '',
  'gelu': 'exact, tanh or quick',
  'classifier': 'token or gap',
  'norm_epsilon': '1e-6, 1e-5 or 1e-12',
  'positions': 'sincos2d or none',
  'image_mean': f'(0.5,0.5,0.5), {_IMAGENET[0]} or {_CLIP[0]}',
  'image_std': f'(0.5,0.5,0.5), {_IMAGENET[1]} or {_CLIP[1]}',
}


def check(
  path: str, description: Any, given: Mapping[str, Any], name: str | None
) -> None:
  """Raises ValueError if facts of weights are open.

  Args:
    path: path of the weights.
    description: their `metadata.Description`.
    given: settings that the user has given.
    name: name of the architecture that the user has given; or None.
  """
  if description.origin:
    missing = [] if description.mean_is_known else ['image_mean', 'image_std']
    shapes = {}
  elif description.name:
    return
  else:
    shapes = _shapes(path)
    if vit_pytorch.is_known(shapes):
      raise vit_pytorch.missing_config(path)
    missing = _missing(shapes, name)
  known = {**description.settings, **given}
  missing = [x for x in missing if x not in known]
  if not missing or timm_table.is_known(name):
    is_open = shapes or (description.origin and not description.mean_is_known)
    if is_open and description.resizing == data_settings.DEFAULT_RESIZING:
      _log_geometry(path)
    return
  values = _VALUES | {'num_heads': _heads(shapes)}
  lines = [f'  config.model.{x}={values[x]}' for x in missing]
  names = _names(shapes)
  if names:
    lines.append(
      f'Or give the name of the architecture in timm: model_name='
      f'{" or ".join(names)}.'
    )
  raise ValueError(
    f'{path} does not determine these settings, and neither does a config.json '
    'next to it:\n' + '\n'.join(lines)
  )


def _log_geometry(path):
  """Logs how images are resized if no file of the weights determines it."""
  console.log_info(
    f'warning: no file next to {path} contains how images are resized. As in '
    f'the original code, {data_settings.DEFAULT_RESIZING} are used. In a run, '
    'set config.pp.resize, config.pp.crop_fraction and '
    'config.pp.interpolation. For predictions, put the '
    'preprocessor_config.json of transformers, or the config.json of timm, '
    'next to the weights'
  )


def log_positions(
  path: str, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
  """Logs that a file without positions is assumed to have fixed ones.

  Args:
    path: path of the weights, whose architecture is recognized by its arrays.
    settings: settings that the arrays determine.
    given: settings that the user has given.
  """
  if settings.get('positions') == 'sincos2d' and 'positions' not in given:
    console.log_info(
      f'warning: {path} has no positions and no metadata, so '
      'positions=sincos2d is used, as in files of big_vision. If the model has '
      'no positions, set config.model.positions=none'
    )


def _shapes(path):
  """Returns {timm's name: shape} of a bare file of timm or Hugging Face.

  It is empty for files of vit_jax and for other formats.
  """
  if os.path.isdir(path):
    path = os.path.join(path, 'model.safetensors')
  if not path.endswith('.safetensors') or not os.path.isfile(path):
    return {}
  import safetensors

  try:
    with safetensors.safe_open(path, 'numpy') as file:
      if 'num_heads' in (file.metadata() or {}):
        return {}
      shapes = {x: tuple(file.get_slice(x).get_shape()) for x in file.keys()}
  except Exception:  # `weights_file.load` reports damaged files
    return {}
  return shapes if torch_convert.is_torch(shapes) else {}


def _named(shapes):
  """Returns {our name: shape as in the file} of arrays that vit_jax has."""
  table = torch_names.TIMM_MIXER + torch_names.TIMM_VIT
  table += sum(torch_names.ALTERNATIVES.values(), ())
  plain = {path: path for path in shapes}
  if hugging_face_names.is_known(shapes):
    table = hugging_face_names.TABLE
    plain = {hugging_face_names.plain_name(path): path for path in shapes}
  names = name_tables.our_names(plain, table)
  return {ours: shapes[plain[theirs]] for ours, theirs in names.items()}


def _missing(shapes, name):
  """Returns the settings that the arrays and a published name leave open."""
  named = _named(shapes)
  if param_paths.MIXER_PATCHES in named:
    return ['gelu', 'norm_epsilon', 'image_mean', 'image_std']
  if param_paths.VIT_PATCHES not in named:
    return []
  missing = ['gelu', 'image_mean', 'image_std']
  if not name:
    missing += ['norm_epsilon']
    if not any('q_norm' in x or 'relative_position' in x for x in shapes):
      missing += ['num_heads']
    if param_paths.CLASS_TOKEN in named and param_paths.PROBE not in named:
      missing += ['classifier']
    is_relative = any('rel_pos' in x or 'relative_pos' in x for x in shapes)
    if param_paths.POSITIONS not in named and not is_relative:
      missing += ['positions']
  return [x for x in _VALUES if x in missing]


def _sizes(shapes):
  """Returns (patch size, width, depth) of a Vision Transformer."""
  named = _named(shapes)
  kernels = param_paths.VIT_PATCHES, param_paths.MIXER_PATCHES
  width, *_, patch = next((named[x] for x in kernels if x in named), (0, 0))
  found = (re.search(r'\b(?:blocks|layers?)\.(\d+)\.', x) for x in shapes)
  return patch, width, len({match[1] for match in found if match})


def _heads(shapes):
  return ' or '.join(map(str, torch_convert.likely_heads(_sizes(shapes)[1])))


def _names(shapes):
  """Returns a few architectures of timm with the sizes of the arrays."""
  patch, width, depth = _sizes(shapes)
  is_mixer = any('mlp_tokens' in path for path in shapes)
  found = [
    name
    for name in timm_table.names()
    for facts in [timm_table.facts_of(name)]
    if facts['patch_size'] == [patch, patch]
    and (facts['embed_dim'], facts['depth']) == (width, depth)
    and (facts['class'] == 'MlpMixer') == is_mixer
  ]
  return sorted(found, key=len)[:4]
