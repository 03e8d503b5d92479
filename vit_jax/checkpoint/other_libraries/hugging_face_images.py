"""Reads Hugging Face's `preprocessor_config.json`: how images are prepared."""

from collections.abc import Mapping
import re
from typing import Any
from typing import NamedTuple

# Number of a resampling filter in Pillow, and our name.
RESAMPLE = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}


class _Processor(NamedTuple):
  """Defaults of a class of transformers, for values that a file lacks.

  Attributes:
    resample: number of the filter.
    size: meaning of one number: 'square' or 'shortest_edge'; '': versions of
      transformers differ.
    center_crop: whether the center is cropped; None: versions differ.
  """

  resample: int
  size: str
  center_crop: bool | None


# The attributes of the classes in transformers 5.24, compared with earlier
# versions. Those of hybrids are of transformers 4.
_CLIP = _Processor(3, 'shortest_edge', True)
_PROCESSORS = {
  'ViT': _Processor(2, 'square', False),
  'DeiT': _Processor(3, 'square', True),
  'Beit': _Processor(3, 'square', None),
  'CLIP': _CLIP,
  'Bit': _CLIP,
  'ViTHybrid': _CLIP,
  'Siglip': _Processor(3, '', False),
  'DINOv3ViT': _Processor(2, 'square', False),
}
_CROP_SIZE = 224  # the default of all classes that crop the center
# {model type: the class that `AutoImageProcessor` takes if no file names one}
_OF_MODELS = {
  'vit': 'ViT',
  'vit_mae': 'ViT',
  'deit': 'DeiT',
  'beit': 'Beit',
  'data2vec-vision': 'Beit',
  'clip_vision_model': 'CLIP',
  'aimv2_vision_model': 'CLIP',
  'siglip_vision_model': 'Siglip',
  'dinov2': 'Bit',
  'dinov2_with_registers': 'Bit',
  'dinov3_vit': 'DINOv3ViT',
  'vit-hybrid': 'ViTHybrid',
}
_FILE = 'its preprocessor_config.json'


def _processor_of(preprocessor, model_type):
  """Returns the `_Processor` that a file names, or that of a model type."""
  for key in ('image_processor_type', 'feature_extractor_type'):
    name = preprocessor.get(key)
    if name:
      # The backend and the former name of a class do not change its results.
      kind = re.sub('(ImageProcessor|FeatureExtractor)(Fast|Pil)?$', '', name)
      if kind not in _PROCESSORS:
        raise ValueError(
          f'{_FILE} has {key}={name!r}, which vit_jax does not know. It knows '
          f'{", ".join(f"{x}ImageProcessor" for x in _PROCESSORS)}. If one of '
          'them prepares images in the same way, write its name there.'
        )
      return _PROCESSORS[kind]
  return _PROCESSORS[_OF_MODELS[model_type]]


def preparation_of(
  preprocessor: Mapping[str, Any], model_type: str
) -> dict[str, Any]:
  """Returns arguments of `Resizing` and `size`, from preprocessor_config.json.

  Args:
    preprocessor: content of the file; {} if there is none.
    model_type: see `hugging_face.tower_of`; it decides if the file does not
      name the class of the image processor, as in transformers.

  Returns:
    {} if there is no such file; `size` is absent if the image is not resized.

  Raises:
    ValueError: the images of vit_jax cannot be prepared in this way.
  """
  if not preprocessor:
    return {}
  processor = _processor_of(preprocessor, model_type)
  number = preprocessor.get('resample', processor.resample)
  if number not in RESAMPLE:
    raise ValueError(
      f'{_FILE} has resample={number}; vit_jax has only '
      f'{", ".join(f"{k} ({x})" for k, x in RESAMPLE.items())}.'
    )
  if not preprocessor.get('do_resize', True):
    return {}
  size = _sides(preprocessor.get('size', {}), processor.size)
  shortest = size.get('shortest_edge')
  height, width = (
    (shortest, shortest) if shortest else (size['height'], size['width'])
  )
  found = {
    'interpolation': f'{RESAMPLE[number]}_antialias',
    'resize': 'crop' if shortest else 'squash',
  }
  crops = preprocessor.get('do_center_crop', processor.center_crop)
  if crops is None and 'crop_size' in preprocessor:
    raise ValueError(
      f'{_FILE} has crop_size, but not do_center_crop, whose default depends '
      'on the version of transformers. Set do_center_crop to true or false.'
    )
  if crops:
    crop = preprocessor.get('crop_size', _CROP_SIZE)
    crop = {'height': crop, 'width': crop} if isinstance(crop, int) else crop
    if crop['height'] > height or crop['width'] > width:
      raise ValueError(
        f'{_FILE} crops the center of {crop["height"]} x {crop["width"]} '
        f'pixels (by default, {_CROP_SIZE} x {_CROP_SIZE}) from images of '
        f'{height} x {width}. Set do_center_crop to false, or correct '
        'crop_size.'
      )
    found['crop_fraction'] = crop['height'] / height
    height, width = crop['height'], crop['width']
  found['size'] = height, width
  return found


def _sides(size, meaning):
  """Returns {'shortest_edge': …}, or {'height': …, 'width': …}.

  Args:
    size: value of a file.
    meaning: see `_Processor.size`.
  """
  if isinstance(size, int):
    if not meaning:
      raise ValueError(
        f'{_FILE} has size={size}, whose meaning depends on the version of '
        'transformers. Write shortest_edge, or height and width.'
      )
    sides = ('height', 'width') if meaning == 'square' else ('shortest_edge',)
    return dict.fromkeys(sides, size)
  if not size.get('shortest_edge') and not {'height', 'width'} <= size.keys():
    raise ValueError(
      f'{_FILE} has size={size or None}; vit_jax needs shortest_edge, or '
      'height and width.'
    )
  return size


def mean_and_std(
  preprocessor: Mapping[str, Any],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
  """Returns mean and deviation for pixels in [0, 1]; None if not stated."""
  if not preprocessor:
    return None, None
  scale = 255 * preprocessor.get('rescale_factor', 1 / 255)
  if not preprocessor.get('do_rescale', True):
    scale = 255.0
  if not preprocessor.get('do_normalize', True):
    return (0.0,) * 3, (1 / scale,) * 3
  found = [preprocessor.get(f'image_{x}') for x in ('mean', 'std')]
  if None in found:
    return None, None
  mean, std = ([x] * 3 if isinstance(x, float) else x for x in found)
  return tuple(x / scale for x in mean), tuple(x / scale for x in std)
