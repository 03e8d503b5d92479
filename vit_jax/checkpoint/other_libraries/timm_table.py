"""The table of timm's architectures: `timm_architectures.json.gz`.

`scripts/make_timm_table.py` writes the file. A row has the facts of one
architecture, and its published files by tag. The keys are described in
`checkpoint.timm_settings`; facts that are absent are false or none.
"""

import difflib
import functools
import gzip
import json
import os
from typing import Any

_FILE = os.path.join(os.path.dirname(__file__), 'timm_architectures.json.gz')
# Bottleneck units of the stems of hybrids, which the table does not have. They
# are those of the original code's models of these names.
_STEMS = {
  'vit_tiny_r_s16_p8_': (),
  'vit_small_r_s16_p8_': (),
  'vit_small_r26_s32_': (2, 2, 2, 2),
  'vit_base_r26_s32_': (2, 2, 2, 2),
  'vit_base_r50_s16_': (3, 4, 9),
  'vit_large_r50_s32_': (3, 4, 6, 3),
}


@functools.cache
def _table():
  with gzip.open(_FILE, 'rt', encoding='utf-8') as file:
    return json.load(file)


def names() -> list[str]:
  """Returns the names of all architectures, sorted."""
  return sorted(_table())


def is_known(name: str | None) -> bool:
  """Returns whether an architecture of the table has this name."""
  return name in _table()


def facts_of(architecture: str) -> dict[str, Any]:
  """Returns the facts of an architecture, without its published files.

  Raises:
    ValueError: the name is unknown; the message has the nearest names.
  """
  if architecture not in _table():
    near = difflib.get_close_matches(architecture, _table(), n=3, cutoff=0.5)
    raise ValueError(
      f'timm has no Vision Transformer named {architecture!r}, or it is newer '
      'than the table of vit_jax'
      + (f'. The nearest names are {", ".join(near)}.' if near else '.')
      + ' `python -m vit_jax models` lists all names.'
    )
  facts = {k: x for k, x in _table()[architecture].items() if k != 'tags'}
  for prefix, units in _STEMS.items():
    if architecture.startswith(prefix):
      facts['stem_units'] = units
  return facts


def published(architecture: str) -> dict[str, dict[str, Any]]:
  """Returns {tag: facts of a published file}: input_size, mean, license …."""
  return _table()[architecture]['tags']
