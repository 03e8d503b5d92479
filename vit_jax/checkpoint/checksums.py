"""Checksums that detect damaged files of a checkpoint before they are used.

If bytes of an array are flipped, Orbax restores the array without an error. If
a file is missing, Orbax prints pages of tracebacks. With the `checksums.json`
in a folder, the error can name the damaged file.
"""

import hashlib
import json
import os

from vit_jax.files import json_files
from vit_jax.files import regular_files

SEAL = 'checksums.json'
_AFTER = 'commit_success.txt'  # An empty file that Orbax adds later.


def _files(folder):
  """Returns the relative paths of all files in `folder` with a checksum."""
  found = {
    os.path.relpath(os.path.join(parent, name), folder)
    for parent, _, names in os.walk(folder)
    for name in names
  }
  return sorted(found - {SEAL, _AFTER})


def _describe(path):
  """Returns [bytes, SHA-256] of a file."""
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return [os.path.getsize(path), digest]


def write_checksums(folder: str | os.PathLike) -> None:
  """Writes `checksums.json` with the size and SHA-256 of every file."""
  sums = {
    name: _describe(os.path.join(folder, name)) for name in _files(folder)
  }
  with open(os.path.join(folder, SEAL), 'w', encoding='utf-8') as file:
    json.dump(sums, file, indent=1)


def _read_seal(folder):
  """Returns {name: [bytes, SHA-256]}; None if the file is absent or damaged."""
  path = os.path.join(folder, SEAL)
  try:
    sums = json_files.read_json(path, {str: [(int, str)]})
  except (OSError, ValueError):
    return None
  kinds = [[type(x) for x in entry] for entry in (sums or {}).values()]
  return sums if kinds and all(x == [int, str] for x in kinds) else None


def verify(folder: str | os.PathLike) -> str | None:
  """Returns a description of the damage in `folder`; None if it is intact."""
  sums = _read_seal(folder)
  if sums is None:
    return f'its {SEAL} is missing or damaged'
  unknown = sorted(set(_files(folder)) - set(sums))
  if unknown:
    return f'{unknown[0]} is not listed in its {SEAL}'
  for name, (size, digest) in sums.items():
    path = os.path.join(folder, name)
    kind = regular_files.other_kind(path)
    if kind:
      return f'{name} is {kind}'
    try:
      found = os.path.getsize(path)
      if found != size:
        return f'{name} has {found} bytes instead of {size}'
      if _describe(path)[1] != digest:
        return f'the content of {name} has changed'
    except OSError as error:
      return f'{name} cannot be read: {error.strerror}'
  return None
