"""Lists the examples in the tar files of a WebDataset.

An example is an image and its label, which have the same name without suffix:
`0001.jpg` and `0001.cls`, `0001.txt` or `0001.json`. The list is stored in the
user's cache, because a large dataset takes minutes to list.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import tarfile

from vit_jax import console
from vit_jax.data.image_files import image_kinds
from vit_jax.files import json_files
from vit_jax.files import regular_files

_LABELS = ('cls', 'txt', 'json')
_MAX_LABEL_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Example:
  """An image in a tar file.

  Attributes:
    name: name of the image in the tar file.
    offset: position of its first byte in the tar file.
    size: its number of bytes.
    fields: {'cls' or 'txt': text}, or the fields of its JSON file.
  """

  name: str
  offset: int
  size: int
  fields: dict[str, object]


def load(shards: Sequence[str], folder: str) -> dict[str, list[Example]]:
  """Returns {path of a shard: its examples}, from the cache where possible.

  Args:
    shards: paths of tar files.
    folder: folder of the dataset, which names the cache file.

  Raises:
    ValueError: a file is not a tar file, or its pairs cannot be read.
  """
  cache = _cache_file(folder)
  known = _read_cache(cache)
  names = {path: os.path.relpath(path, folder) for path in shards}
  found, new = {}, []
  for path in shards:
    version, examples = known.get(names[path], (None, []))
    if version == _version(path):
      found[path] = [Example(*row) for row in examples]
    else:
      new.append(path)
  for path in console.counting(new, len(new), 'listing tar files'):
    found[path] = list_examples(path)
  if new:
    _write_cache(
      cache,
      {
        name: (
          _version(path),
          [dataclasses.astuple(example) for example in found[path]],
        )
        for path, name in names.items()
      },
    )
  return {path: found[path] for path in shards}


def list_examples(path: str) -> list[Example]:
  """Returns the examples of a tar file, in the stored order.

  An example without a label has no `fields`. A label without an image is
  skipped.

  Raises:
    ValueError: the file is not a tar file, or its pairs cannot be read.
  """
  images, fields = {}, {}
  regular_files.check(path)
  try:
    with tarfile.open(path, 'r:') as archive:
      for member in archive:
        if not member.isfile():
          continue
        place, name = os.path.split(member.name)
        key, _, suffix = name.partition('.')
        key, suffix = f'{place}/{key}', suffix.lower()
        kind = image_kinds.of_suffix(f'image.{suffix}')
        if image_kinds.is_read(kind) and not name.startswith('.'):
          if key in images:
            raise ValueError(
              f'{path}: the example {key} has several images. Keep one image '
              'for each key'
            )
          images[key] = member.name, member.offset_data, member.size
        elif suffix in _LABELS and member.size <= _MAX_LABEL_BYTES:
          content = archive.extractfile(member).read()
          fields.setdefault(key, {}).update(
            _read_label(path, member.name, suffix, content)
          )
  except (tarfile.TarError, EOFError, OverflowError) as error:
    raise ValueError(
      f'{path} cannot be read as a tar file: {error}. Replace it with an '
      'intact copy, which is not compressed'
    ) from error
  return [Example(*image, fields.get(key, {})) for key, image in images.items()]


def _read_label(path, name, suffix, content):
  """Returns the fields of a label file."""
  try:
    text = content.decode('utf-8').strip()
    if suffix != 'json':
      return {suffix: text}
    value = json_files.loads(text)
  except ValueError as error:
    raise ValueError(f'{path}: {name} cannot be read: {error}') from error
  if not isinstance(value, dict):
    return {'json': value}
  return {
    key: field for key, field in value.items() if not isinstance(field, dict)
  }


# --- the cache ---------------------------------------------------------------


def _version(path):
  status = os.stat(path)
  return [status.st_size, status.st_mtime_ns, image_kinds.reads_heic()]


def _cache_file(folder):
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
  return os.path.join(
    os.path.expanduser(caches), 'vit_jax', 'tar_files', f'{name}.json.gz'
  )


def _read_cache(cache):
  """Returns the stored lists; {} if there are none, or they are damaged."""
  try:
    with gzip.open(cache, 'rt', encoding='utf-8') as file:
      return json.load(file)
  except (OSError, ValueError, EOFError, RecursionError):
    return {}


def _write_cache(cache, lists):
  partial = f'{cache}.{os.urandom(4).hex()}'
  try:
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    try:
      with gzip.open(partial, 'wt', compresslevel=1, encoding='utf-8') as file:
        json.dump(lists, file)
      os.replace(partial, cache)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.remove(partial)
  except OSError as error:
    console.log_info(
      f'warning: the list of examples cannot be stored in {cache}: '
      f'{error.strerror}. The next run lists them again.'
    )
