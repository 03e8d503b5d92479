"""Decodes each image of a folder once, before training."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import NamedTuple

import numpy as np

from vit_jax import console
from vit_jax.data import tensorflow as tf
from vit_jax.data.image_files import check_cache
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import image_decoder
from vit_jax.data.image_files import image_kinds
from vit_jax.data.image_files import pillow_decoder
from vit_jax.files import regular_files

_HEADER = image_kinds.HEADER_BYTES
_BATCH = 64  # images that one step of the loop in Python gets


class Checked(NamedTuple):
  """The result of decoding the images of a folder.

  Attributes:
    undecodable: {path: reason} of images that cannot be decoded.
    paths: the other images.
    records: what is known of these, `check_cache.RECORD` [N].
  """

  undecodable: dict[str, str]
  paths: list[str]
  records: np.ndarray


def check(paths: Sequence[str], folder: str, max_fraction: float) -> Checked:
  """Decodes all images that the user's cache does not know.

  It logs which images cannot be decoded.

  Args:
    paths: paths of images below `folder`.
    folder: folder of the dataset.
    max_fraction: largest accepted fraction of undecodable images.

  Raises:
    ValueError: the fraction of undecodable images is larger.
  """
  paths = list(dict.fromkeys(paths))
  keys = np.array([check_cache.key(path, folder) for path in paths], np.uint64)
  cache = check_cache.path_of(folder)
  known = check_cache.load(cache)
  where = check_cache.find(keys, known)
  records, is_new = np.zeros(len(paths), check_cache.RECORD), where < 0
  records[~is_new] = known[where[~is_new]]
  is_new &= keys != check_cache.NO_FILE
  (new,) = np.nonzero(is_new)
  records[new], decoded = _decode_all([paths[i] for i in new])
  records['key'] = keys
  is_good = ~is_new & (keys != check_cache.NO_FILE)
  is_good[new] = decoded
  good = [path for path, x in zip(paths, is_good, strict=True) if x]
  bad = [path for path, x in zip(paths, is_good, strict=True) if not x]
  check_cache.save(cache, records[is_good], known)
  undecodable = {path: reason(path) for path in bad}
  _report(undecodable, len(paths), folder, max_fraction)
  return Checked(undecodable, good, records[is_good])


def _report(undecodable, num_images, folder, max_fraction):
  """Logs the undecodable images; raises ValueError if they are too many."""
  if not undecodable:
    return
  listed = describe(undecodable)
  count = f'{len(undecodable)} of {num_images} images'
  console.log(
    'images that cannot be decoded: '
    + ', '.join(f'{path} ({text})' for path, text in undecodable.items())
  )
  if len(undecodable) > max_fraction * num_images:
    raise ValueError(
      f'{count} in {folder} cannot be decoded: '
      f'{listed}. This is more than config.max_bad_images={max_fraction} '
      'accepts. Repair or remove the images, or raise config.max_bad_images.'
    )
  console.log_info(
    f'warning: {count} cannot be decoded and are skipped: {listed}'
  )


def describe(reasons: Mapping[str, str]) -> str:
  """Returns a text of {path: reason}: counts, with three examples of each."""
  paths_of = {}
  for path, text in reasons.items():
    paths_of.setdefault(text, []).append(path)
  return '; '.join(
    f'{len(paths)} {text}: {", ".join(map(console.printable, paths[:3]))}'
    + ', …' * (len(paths) > 3)
    for text, paths in sorted(paths_of.items(), key=lambda x: -len(x[1]))
  )


def reason(path: str) -> str:
  """Returns why an image file cannot be decoded: 'truncated', 'empty', …."""
  kind = regular_files.other_kind(path)
  if kind:
    return f'not a file, but {kind}'
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except OSError as error:
    return error.strerror or str(error)
  if not content:
    return 'empty'
  header = image_kinds.of_header(content[: image_kinds.HEADER_BYTES])
  for kind in (image_kinds.of_suffix(path), header):
    if kind and not image_kinds.is_read(kind):
      return image_kinds.describe_unread(kind)
  if not header:
    return 'not an image'
  try:
    pillow_decoder.decode(content, decoding.OWN_FILES)
  except ValueError as error:
    return str(error)
  except (OSError, SyntaxError, EOFError, IndexError) as error:
    ends = header != 'JPEG' or b'\xff\xd9' in content[-64:]
    if not ends or 'truncated' in str(error):
      return 'truncated'
  return 'damaged'


def _decode_all(paths):
  """Returns (records [N] without keys, which paths can be decoded [N])."""
  records = np.zeros(len(paths), check_cache.RECORD)
  decoded = np.zeros(len(paths), bool)
  if not paths:
    return records, decoded

  def check_one(index, path):
    encoded = tf.io.read_file(path)
    shape = image_decoder.check_decodable(encoded)
    content = tf.strings.to_hash_bucket_fast(encoded, 2**63 - 1)
    header = tf.strings.substr(
      encoded, 0, tf.minimum(tf.strings.length(encoded), _HEADER)
    )
    return index, content, shape, header

  batches = (
    tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    .enumerate()
    .map(check_one, num_parallel_calls=tf.data.AUTOTUNE)
    .ignore_errors()
    .batch(_BATCH)
  )
  images = (
    image
    for batch in batches.as_numpy_iterator()
    for image in zip(*batch, strict=True)
  )
  for index, content, (height, width), header in console.counting(
    images, len(paths), 'checking images'
  ):
    kind = (image_kinds.of_header(header) or '').encode()
    records[index] = 0, content, height, width, kind
    decoded[index] = True
  return records, decoded
