"""JSON files that appear only when they are complete."""

import json
import os
from typing import Any


def read_json(path: str) -> Any:
  """Returns the value in a JSON file, or None if there is no file.

  Raises:
    ValueError: the file is damaged.
  """
  if not os.path.exists(path):
    return None
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except ValueError as error:  # invalid JSON or invalid UTF-8
    raise ValueError(
      f'{path} is damaged and cannot be read as JSON: {error}. Replace it with '
      'an intact copy.'
    ) from error


def write_json(path: str, value: Any) -> None:
  """Writes a JSON file, which appears only when it is complete."""
  partial = f'{path}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    json.dump(value, file, indent=2, ensure_ascii=False)
    file.write('\n')
  os.replace(partial, path)
