"""Encoded images in one array, as an `.npz` file stores them without pickles.

The files are one after another in the array. The offsets are the positions of
their first bytes, and the length of the array.

Shapes:  N images · L bytes of all files
"""

from collections.abc import Sequence

import numpy as np

from vit_jax import console
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import pillow_decoder


def join(files: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Returns (content uint8 [L], offsets int64 [N + 1]) of encoded images."""
  content = np.frombuffer(b''.join(files), np.uint8)
  return content, np.cumsum([0, *map(len, files)], dtype=np.int64)


def decode(
  content: np.ndarray, offsets: np.ndarray, name: str, how: decoding.Decoding
) -> np.ndarray:
  """Returns the pixels uint8 [N, H, W, 3] of images of one size.

  Args:
    content: the files, uint8 [L].
    offsets: positions of the files, integers [N + 1].
    name: name of `content`, for messages.
    how: orientation, and background of alpha.

  Raises:
    ValueError: the arrays do not fit together, an image cannot be decoded, or
      the sizes differ.
  """
  _check(content, offsets, name)
  count, data, pixels = len(offsets) - 1, content.tobytes(), None
  for i in console.counting(range(count), count, f'decoding {name}'):
    try:
      image = pillow_decoder.decode(data[offsets[i] : offsets[i + 1]], how)
    except (OSError, ValueError, SyntaxError) as error:
      raise ValueError(
        f'{name}: image {i} of {count} cannot be decoded ({error}). Remove it, '
        'or write the file again'
      ) from error
    if pixels is None:
      pixels = np.empty((count, *image.shape), np.uint8)
    check_size(image.shape, pixels.shape[1:], f'{name}: image {i}')
    pixels[i] = image
  return pixels


def check_size(
  found: Sequence[int], expected: Sequence[int], name: str
) -> None:
  """Raises ValueError unless an image has the size of the first image."""
  if tuple(found) != tuple(expected):
    raise ValueError(
      '{} has {} x {} pixels, but the first image has {} x {}. '.format(
        name, *found[:2], *expected[:2]
      )
      + 'All images must have one size: resize them, or use a folder of images '
      "with config.data_on='host'"
    )


def _check(content, offsets, name):
  """Raises ValueError unless two arrays are encoded images."""
  if content.dtype != np.uint8 or content.ndim != 1:
    raise ValueError(
      f'{name} has the dtype {content.dtype} and the shape '
      f'{list(content.shape)}, but next to {name}_offsets, it must have the '
      'bytes of all files, uint8 [L]'
    )
  if (
    offsets.dtype.kind not in 'iu'
    or offsets.ndim != 1
    or len(offsets) < 2
    or offsets[0] != 0
    or offsets[-1] != len(content)
    or (offsets[1:] <= offsets[:-1]).any()
  ):
    raise ValueError(
      f'{name}_offsets must be integers [N + 1] that rise from 0 to '
      f'{len(content)}, the length of {name}, but they have the dtype '
      f'{offsets.dtype} and the shape {list(offsets.shape)}, and are '
      f'{offsets.ravel()[:3].tolist()} …'
    )
