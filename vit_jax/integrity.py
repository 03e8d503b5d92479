"""Checksums of a folder's files, so that damage is found before they are used.

Orbax restores an array with flipped bytes without a word, and a missing file
with pages of traces. A sealed folder says which of its files is damaged.
"""

import hashlib
import json
import os

SEAL = 'checksums.json'


def _files(folder):
  """Paths of all files below `folder`, relative to it, but for the seal."""
  return sorted(
      os.path.relpath(os.path.join(parent, name), folder)
      for parent, _, names in os.walk(folder) for name in names
      if os.path.join(parent, name) != os.path.join(folder, SEAL))


def _describe(path):
  """[bytes, SHA-256] of a file."""
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return [os.path.getsize(path), digest]


def seal(folder):
  """Writes the size and the SHA-256 of every file into `folder`."""
  sums = {name: _describe(os.path.join(folder, name))
          for name in _files(folder)}
  with open(os.path.join(folder, SEAL), 'w', encoding='utf-8') as file:
    json.dump(sums, file, indent=1)


def find_damage(folder):
  """What differs from when `folder` was sealed; None if it is sound."""
  try:
    with open(os.path.join(folder, SEAL), encoding='utf-8') as file:
      sums = json.load(file)
  except (OSError, ValueError):
    return f'its {SEAL} is missing or damaged'
  for name, (size, digest) in sums.items():
    path = os.path.join(folder, name)
    try:
      found = os.path.getsize(path)
      if found != size:
        return f'{name} has {found} bytes instead of {size}'
      if _describe(path)[1] != digest:
        return f'the content of {name} has changed'
    except OSError as error:
      return f'{name} cannot be read: {error.strerror}'
  return None
