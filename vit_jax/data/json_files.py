"""JSON files that appear when whole."""

import json
import os
from typing import Any


def read_json(path: str) -> Any:
  """What `write_json` wrote; None where there is no file.

  Raises:
    ValueError: it is damaged.
  """
  if not os.path.exists(path):
    return None
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except ValueError as error:  # of JSON, or of UTF-8
    raise ValueError(
      f'{path} is damaged, and cannot be read as JSON: {error}'
    ) from error


def write_json(path: str, value: Any) -> None:
  """Writes a file that appears when whole."""
  partial = f'{path}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    json.dump(value, file, indent=2, ensure_ascii=False)
    file.write('\n')
  os.replace(partial, path)
