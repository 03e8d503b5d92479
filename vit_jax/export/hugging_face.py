"""The files with which transformers builds a model that came from there.

`AutoModelForImageClassification.from_pretrained(FOLDER)` and its like build the
model from `config.json`, for the arrays in `model.safetensors`.
`AutoImageProcessor` prepares images by `preprocessor_config.json`.
"""

from collections.abc import Callable
import functools
from typing import Any

import numpy as np

from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint.other_libraries import hugging_face
from vit_jax.checkpoint.other_libraries import hugging_face_images
from vit_jax.checkpoint.other_libraries import hugging_face_names
from vit_jax.checkpoint.other_libraries import timm_settings
from vit_jax.export import timm_config
from vit_jax.models import param_paths

# {model type: (name of its classes, prefix of the arrays in a model with a
# head, style of the names of arrays)}
_LAYOUTS = {
  'vit': ('ViT', 'vit', 'bert'),
  'vit-hybrid': ('ViTHybrid', 'vit', 'bert'),
  'vit_mae': ('ViTMAE', None, 'bert'),  # with a head, it is a ViT
  'deit': ('DeiT', 'deit', 'deit'),
  'dinov2': ('Dinov2', 'dinov2', 'dinov2'),
  'dinov2_with_registers': (
    *('Dinov2WithRegisters', 'dinov2_with_registers', 'dinov2'),
  ),
  'dinov3_vit': ('DINOv3ViT', None, 'dinov3'),
  'beit': ('Beit', 'beit', 'bert'),
  'data2vec-vision': ('Data2VecVision', 'data2vec_vision', 'bert'),
  'clip_vision_model': ('CLIPVision', 'vision_model', 'clip'),
  'siglip_vision_model': ('SiglipVision', 'vision_model', 'clip'),
  'aimv2_vision_model': ('Aimv2Vision', None, 'aimv2'),
}
# The classes of these types that have no head have a dense layer for pooling.
_WITH_POOLER = ('vit', 'vit-hybrid', 'deit')
# Model types whose images need not be square.
_ANY_SHAPE = ('vit', 'deit', 'dinov3_vit')
_PROJECTION = 'WithProjection'
_PROBLEMS = {
  output: problem for problem, (output, _) in hugging_face.PROBLEMS.items()
}


def make(
  trained: trained_model.TrainedModel,
) -> tuple[dict[str, Any], dict[str, Any], Callable] | None:
  """Returns what transformers needs to build a model that came from there.

  Returns:
    (content of `config.json`, {name: content} of the other files, `to_torch` of
    `weights_file.save`). None: the model did not come from there, or no class
    of transformers computes the same, such as after settings were changed.
  """
  origin, model = trained.origin or {}, trained.model
  if 'model_type' not in origin:
    return None
  kind, _ = hugging_face.tower_of(origin)
  if kind == 'vit_mae' and model.num_classes:
    kind = 'vit'
  height, width = trained.image_size
  name = _class_name(trained, kind)
  if not name or height != width and kind not in _ANY_SHAPE:
    return None
  config = _config(trained, kind, name)
  settings = timm_settings.settings_of(hugging_face.facts_of(config))
  if kind in _WITH_POOLER and name.endswith('Model'):
    settings['representation_size'] = model.representation_size
  if not timm_config.agrees(model, settings):
    return None
  names = functools.partial(
    hugging_face_names.from_linen, **_names(origin, kind, name)
  )
  return config, {'preprocessor_config.json': _preprocessor(trained)}, names


def _class_name(trained, kind):
  """Returns the class of transformers for a model; '' if there is none."""
  classes, prefix, _ = _LAYOUTS[kind]
  if not trained.model.num_classes:
    return f'{classes}Model'
  if hugging_face.is_classifier(trained.origin):
    return trained.origin['architectures'][0]
  if kind == 'clip_vision_model':
    bias = trained.params[param_paths.HEAD]['bias']
    return '' if np.any(bias) else f'{classes}Model{_PROJECTION}'
  is_tower = kind.endswith('_vision_model')
  return f'{classes}ForImageClassification' if prefix and not is_tower else ''


def _config(trained, kind, name):
  """Returns the content of `config.json` for a class."""
  origin, size = trained.origin, list(trained.image_size)
  config = dict(origin)
  if 'vision_config' in config:
    tower = dict(config['vision_config'])
    if kind == 'siglip_vision_model' and hugging_face.is_classifier(origin):
      tower['vision_use_head'] = False  # The classifier does not read it.
    config['vision_config'] = tower
    if not hugging_face.is_classifier(origin):
      towers = [key for key in config if key.endswith('_config')]
      config = {k: x for k, x in config.items() if k not in towers} | tower
  tower = config.get('vision_config', config)
  tower['image_size'] = size[0] if len({*size}) == 1 else size
  for key in ('dtype', 'torch_dtype'):
    for part in (config, tower):
      if key in part:
        part[key] = 'float32'
  config['architectures'] = [name]
  if 'vision_config' not in config:
    config['model_type'] = kind
  if name.endswith(_PROJECTION):
    config['projection_dim'] = trained.model.num_classes
  elif trained.model.num_classes:
    num_classes = trained.model.num_classes
    labels = trained.class_names or [f'LABEL_{i}' for i in range(num_classes)]
    if trained.targets:
      labels = trained.targets.names
    config['id2label'] = {str(i): label for i, label in enumerate(labels)}
    config['label2id'] = {label: i for i, label in enumerate(labels)}
    config.pop('num_labels', None)
    config['problem_type'] = _PROBLEMS[trained.output]
  if trained.license:
    config['license'] = trained.license
  return config


def _names(origin, kind, name):
  """Returns the arguments of `hugging_face_names.from_linen`."""
  _, prefix, style = _LAYOUTS[kind]
  _, values = hugging_face.tower_of(origin)
  if style == 'dinov2' and values.get('use_swiglu_ffn'):
    style = 'dinov2_gated'
  # transformers 5 saves a tower without its text tower without a prefix, which
  # earlier versions cannot load.
  version = str(origin.get('transformers_version')).partition('.')[0]
  has_prefix = not name.endswith('Model') or (
    kind.endswith('_vision_model')
    and (
      'vision_config' in origin or not version.isdecimal() or int(version) < 5
    )
  )
  head = 'classifier'
  if name.endswith('WithTeacher'):
    head = 'cls_classifier'
  elif name.endswith(_PROJECTION):
    head = 'visual_projection'
  return dict(
    style=style, prefix=f'{prefix}.' if prefix and has_prefix else '', head=head
  )


def _preprocessor(trained):
  """Returns how transformers prepares images for a model.

  transformers always resizes with anti-aliasing.
  """
  resizing = trained.resizing
  mean, std = timm_config.statistics(trained.model)
  height, width = trained.image_size
  scaled = [int(x / resizing.crop_fraction) for x in trained.image_size]
  filters = {
    name: number for number, name in hugging_face_images.RESAMPLE.items()
  }
  size = {'height': scaled[0], 'width': scaled[1]}
  if resizing.resize == 'crop':
    size = {'shortest_edge': min(scaled)}
  return {
    'image_processor_type': 'CLIPImageProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'size': size,
    'resample': filters[resizing.interpolation.removesuffix('_antialias')],
    'do_center_crop': resizing.resize == 'crop' or resizing.crop_fraction != 1,
    'crop_size': {'height': height, 'width': width},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(mean),
    'image_std': list(std),
  }
