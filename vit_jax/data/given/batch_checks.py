"""Converts given batches to NumPy, and checks that they stay alike."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from vit_jax.data import examples
from vit_jax.data.given import conversion


def to_batch(given: Any, where: str, is_raw: bool) -> dict[str, Any]:
  """Returns a given batch as {name: NumPy array [B, …]}.

  Args:
    given: a mapping from names to arrays or tensors.
    where: which batch it is, for messages.
    is_raw: whether `image` is to be prepared. It may then also be a sequence of
      encoded images, or of pixels of different sizes.

  Raises:
    ValueError: it is not such a mapping.
  """
  if not isinstance(given, Mapping) or not given:
    parts = ''
    if isinstance(given, list | tuple):
      parts = f' of {len(given)} elements'
    raise ValueError(
      f'{where} is a {type(given).__name__}{parts}, not a dict of arrays. Give '
      "{'image': …, 'label': …}"
    )
  batch = {}
  for name, x in given.items():
    if name == 'image' and is_raw:
      batch[name] = _raw_images(x, f'{where}: image')
    else:
      array = conversion.to_numpy(x, f'{where}: {name}')
      batch[name] = conversion.narrow(array, f'{where}: {name}')
  if is_raw and 'image' not in batch:
    raise ValueError(
      f"{where} has no 'image', only {', '.join(map(str, batch))}, so there is "
      'nothing to prepare. Use prepare=False, or add the images'
    )
  lengths = {name: _num_rows(x) for name, x in batch.items()}
  if len(set(lengths.values())) > 1 or not all(lengths.values()):
    raise ValueError(
      f'{where} has arrays with '
      + ', '.join(f'{n} rows ({name})' for name, n in lengths.items())
      + '. The first axis of all arrays must be the examples of the batch, '
      'at least one'
    )
  return batch


def _num_rows(x):
  return None if np.ndim(x) == 0 and not isinstance(x, list) else len(x)


def num_rows(batch: Mapping[str, Any]) -> int:
  """Returns the number of examples in a batch of `to_batch`."""
  return len(next(iter(batch.values())))


def _raw_images(given, name):
  """Returns pixels uint8 [B, H, W, C], or a list of pixels or of bytes."""
  if isinstance(given, list | tuple):
    images = list(given)
  else:
    if hasattr(given, 'detach'):
      given = given.detach().cpu()
    images = np.asarray(given)
    if images.dtype == np.uint8 and images.ndim == 4:
      if images.shape[3] in (1, 3, 4):
        return images
    elif images.dtype.kind == 'O' and images.ndim == 1:
      images = list(images)
    if not isinstance(images, list):
      raise ValueError(
        f'{name} has the dtype {images.dtype} and the shape '
        f'{list(images.shape)}. With prepare=True, images are pixels uint8 '
        '[B, H, W, C] with 1, 3 or 4 channels, or a list of such images of '
        'different sizes, or a list of encoded images (bytes)'
      )
  if images and all(isinstance(x, bytes) for x in images):
    return images
  return [_to_rgba(x, name) for x in images]


def _to_rgba(image, name):
  """Returns pixels with alpha, so that all images have as many channels."""
  pixels = conversion.to_numpy(image, name)
  if (
    pixels.dtype != np.uint8
    or pixels.ndim != 3
    or pixels.shape[2] not in (1, 3, 4)
  ):
    raise ValueError(
      f'{name} has an image of dtype {pixels.dtype} and shape '
      f'{list(pixels.shape)}. Each image must be pixels uint8 [H, W, C] with '
      '1, 3 or 4 channels, or all must be encoded images (bytes)'
    )
  if pixels.shape[2] == 4:
    return pixels
  opaque = np.full((*pixels.shape[:2], 4), 255, np.uint8)
  opaque[..., :3] = pixels
  return opaque


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """What all batches of a split have in common.

  Attributes:
    rows: {name: (shape, dtype) of a row}. The shape of an encoded image is ();
      heights and widths of images to be prepared are None.
    is_raw: whether `image` is to be prepared.
    num_classes: number of classes; 0 for no check of class numbers.
  """

  rows: Mapping[str, tuple[tuple[int | None, ...], np.dtype]]
  is_raw: bool
  num_classes: int = 0

  def check(self, batch: Mapping[str, Any], where: str) -> None:
    """Raises ValueError if a batch differs, or has a label without a class.

    Args:
      batch: a batch of `to_batch`.
      where: which batch it is, for messages.
    """
    found = rows_of(batch, self.is_raw)
    if found.keys() != self.rows.keys():
      raise ValueError(
        f'{where} has the arrays {", ".join(found)}, but the first batch has '
        f'{", ".join(self.rows)}. All batches need the same names'
      )
    for name, row in self.rows.items():
      if found[name] != row:
        raise ValueError(
          f'{where}: {name} has rows of {_describe(found[name])}, but in the '
          f'first batch rows of {_describe(row)}. All batches need rows of the '
          'same shape and dtype'
        )
    label = batch.get('label')
    if self.num_classes and label is not None and examples.are_classes(label):
      examples.check_labels(label, self.num_classes, f'{where}: label')


def rows_of(batch: Mapping[str, Any], is_raw: bool) -> dict[str, tuple]:
  """Returns {name: (shape, dtype) of a row} of a batch, as in `BatchSpec`."""
  rows = {}
  for name, x in batch.items():
    if isinstance(x, list) and isinstance(x[0], bytes):
      rows[name] = (), np.dtype(object)
    elif isinstance(x, list):
      rows[name] = (None, None, 4), np.dtype(np.uint8)
    elif is_raw and name == 'image':
      rows[name] = (None, None, x.shape[3]), x.dtype
    else:
      rows[name] = x.shape[1:], x.dtype
  return rows


def _describe(row):
  shape, dtype = row
  sizes = ', '.join('…' if n is None else str(n) for n in shape)
  return f'{"bytes" if dtype.kind == "O" else dtype} [{sizes}]'
