"""Checks of given arrays of images: shape, dtype and range of the pixels."""

from collections.abc import Mapping

import numpy as np

_RANGES = ((0, 1), (-1, 1), (0, 255))
_CHANNELS = (1, 3, 4)


def check_images(images: np.ndarray, name: str) -> None:
  """Raises ValueError unless images are uint8 or floats [N, H, W, C]."""
  shape = list(images.shape)
  if images.dtype != np.uint8 and images.dtype.kind != 'f':
    fix = "images.astype('uint8')"
    if images.dtype == np.uint16:
      fix = "(images >> 8).astype('uint8') if all 16 bits are used"
    raise ValueError(
      f'{name} has the dtype {images.dtype}. Use uint8 for pixels 0…255: {fix}'
    )
  if images.ndim == 4 and shape[3] in _CHANNELS and 0 not in shape[1:3]:
    return
  if images.ndim == 4 and shape[1] in _CHANNELS:
    fix = 'seem to be [N, C, H, W]. Use images.transpose(0, 2, 3, 1)'
  elif images.ndim == 3:
    fix = (
      'lack an axis. Use images[..., None] for N gray images [N, H, W], or '
      'images[None] for one image [H, W, C]'
    )
  else:
    fix = 'have other axes'
  raise ValueError(
    f'{name} has the shape {shape}, but images must be [N, H, W, C] with 1, 3 '
    f'or 4 channels: these {fix}'
  )


def check_range(
  splits: Mapping[str, Mapping[str, np.ndarray]],
  value_range: tuple[float, float] | None,
) -> tuple[float, float] | None:
  """Returns the range of float images, or None for uint8.

  Args:
    splits: {split: {name: array}}.
    value_range: see `arrays.from_arrays`.

  Raises:
    ValueError: the range is missing or wrong, or splits have different dtypes.
  """
  dtypes = {split: x['image'].dtype for split, x in splits.items()}
  if len({dtype == np.uint8 for dtype in dtypes.values()}) > 1:
    raise ValueError(
      'images are uint8 in one split and floats in another: '
      + ', '.join(f'{split} {dtype}' for split, dtype in dtypes.items())
      + '. Use one type'
    )
  if dtypes['train'] == np.uint8:
    if value_range not in (None, (0, 255)):
      raise ValueError(
        f'value_range={value_range}, but images of dtype uint8 are always in '
        '0…255. Omit value_range'
      )
    return None
  low, high = value_range if value_range in _RANGES else (-np.inf, np.inf)
  for split, arrays in splits.items():
    smallest, largest = arrays['image'].min(), arrays['image'].max()
    # A comparison with NaN is false.
    if not (low <= smallest and largest <= high) or value_range not in _RANGES:
      raise ValueError(
        f'value_range={value_range}, but {split}: image has float values from '
        f'{smallest:.4g} to {largest:.4g}. State the range of the pixels with '
        f'value_range, one of {", ".join(map(str, _RANGES))}, and check that '
        'all values are finite and in it'
      )
  return value_range
