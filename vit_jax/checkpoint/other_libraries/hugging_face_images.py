"""Reads Hugging Face's `preprocessor_config.json`: how images are prepared."""

from collections.abc import Mapping
from typing import Any

# Number of a resampling filter in Pillow, and our name.
RESAMPLE = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}


def preparation_of(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
  """Returns arguments of `Resizing` and `size`, from preprocessor_config.json.

  Returns:
    {} if there is no such file; `size` is absent if the image is not resized.
  """
  if not preprocessor:
    return {}
  filter_number = preprocessor.get('resample', 2)
  if filter_number not in RESAMPLE:
    raise ValueError(
      f'its preprocessor_config.json has resample={filter_number}; vit_jax has '
      f'only {", ".join(f"{k} ({x})" for k, x in RESAMPLE.items())}.'
    )
  found = {'interpolation': f'{RESAMPLE[filter_number]}_antialias'}
  if not preprocessor.get('do_resize', True):
    return {}
  size = preprocessor.get('size', {})
  size = {'height': size, 'width': size} if isinstance(size, int) else size
  shortest = size.get('shortest_edge')
  if not shortest and not {'height', 'width'} <= size.keys():
    raise ValueError(
      f'its preprocessor_config.json has size={size or None}; vit_jax needs '
      'shortest_edge, or height and width.'
    )
  height, width = (
    (shortest, shortest) if shortest else (size['height'], size['width'])
  )
  found['resize'] = 'crop' if shortest else 'squash'
  crop = preprocessor.get('crop_size')
  if preprocessor.get('do_center_crop') and crop:
    crop = {'height': crop, 'width': crop} if isinstance(crop, int) else crop
    found['crop_fraction'] = crop['height'] / height
    height, width = crop['height'], crop['width']
  found['size'] = height, width
  return found


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
