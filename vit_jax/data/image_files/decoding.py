"""How image files become pixels: the settings of orientation and of alpha."""

import dataclasses
import re

import numpy as np

_COLORS = {'white': (255, 255, 255), 'black': (0, 0, 0)}
_EXIF = ('auto', 'apply', 'ignore')


@dataclasses.dataclass(frozen=True)
class Decoding:
  """The two choices of the decoder.

  Attributes:
    exif: whether images are turned upright, as their EXIF tag says.
    background: RGB color in 0…255 under transparent pixels. None: alpha is
      ignored, and hidden colors appear.
  """

  exif: bool = True
  background: tuple[int, int, int] | None = _COLORS['white']


OWN_FILES = Decoding()  # the meaning of 'auto' for a user's own files
STORED = Decoding(exif=False, background=None)  # the pixels as they are stored


def resolve(
  exif: str = 'auto', background: str = 'auto', own_files: bool = True
) -> Decoding:
  """Returns the `Decoding` that two settings define.

  Args:
    exif: 'apply', 'ignore', or 'auto', which means 'apply' for own files.
    background: 'ignore', 'white', 'black' or '#rrggbb', or 'auto', which means
      'white' for own files.
    own_files: whether the images are a user's files. If false, they belong to a
      TFDS dataset, and 'auto' means 'ignore', as in published recipes.

  Raises:
    ValueError: a setting has an unknown value.
  """
  default = OWN_FILES if own_files else STORED
  if exif not in _EXIF:
    raise ValueError(f'exif={exif!r} is not one of {", ".join(_EXIF)}')
  if background == 'auto':
    color = default.background
  elif background == 'ignore':
    color = None
  elif background in _COLORS:
    color = _COLORS[background]
  elif re.fullmatch('#[0-9a-fA-F]{6}', background):
    color = tuple(bytes.fromhex(background[1:]))
  else:
    raise ValueError(
      f'background={background!r} is not one of auto, ignore, '
      f"{', '.join(_COLORS)}, and not a color such as '#00ff80'"
    )
  return Decoding(default.exif if exif == 'auto' else exif == 'apply', color)


def to_rgb(
  pixels: np.ndarray, background: tuple[int, int, int] | None
) -> np.ndarray:
  """Returns pixels […, 1, 3 or 4] as RGB pixels […, 3] of the same dtype.

  Args:
    pixels: uint8, or float32 in 0…255.
    background: see `Decoding`.
  """
  if pixels.shape[-1] == 1:
    return np.repeat(pixels, 3, axis=-1)
  if pixels.shape[-1] == 3 or background is None:
    return pixels[..., :3]
  color = np.array(background, np.int32)
  if pixels.dtype == np.uint8:
    wide = pixels.astype(np.int32)
    alpha = wide[..., 3:]
    mixed = wide[..., :3] * alpha + color * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
  alpha = pixels[..., 3:] / np.float32(255)
  return pixels[..., :3] * alpha + color.astype(np.float32) * (1 - alpha)
