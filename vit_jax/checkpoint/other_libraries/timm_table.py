"""The table of timm's architectures: `timm_architectures.json.gz`.

`scripts/make_timm_table.py` writes the file. A row has the facts of one
architecture, and its published files by tag. The keys are described in
`timm_settings`; facts that are absent are false or none.
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
# More facts that the table does not have: those of blocks that are not made of
# timm's usual modules.
_SCALING = dict(
  attn='Attention',
  attn_q_norm='RmsNorm',
  attn_k_norm='RmsNorm',
  qkv_bias=False,
  mlp='Mlp',
  act='gelu',
  norm='RmsNorm',
  norm_eps=1e-6,
)
_SIDE_BY_SIDE = dict(norm='LayerNorm', norm_eps=1e-6, layer_scale=True)
_MORE = {
  # Hidden units of the MLPs of relative positions, if they are not 128.
  'vit_relpos_medium_patch16_cls_': dict(rel_pos_dim=256),
  'vit_srelpos_medium_patch16_': dict(rel_pos_dim=512),
  'vit_srelpos_small_patch16_': dict(rel_pos_dim=384),
  'vit_base_patch16_xp_': _SCALING
  | dict(num_heads=12, head_dim=64, mlp_hidden=3072),
  'vit_large_patch14_xp_': _SCALING
  | dict(num_heads=16, head_dim=64, mlp_hidden=4096),
  'vit_huge_patch14_xp_': _SCALING
  | dict(num_heads=16, head_dim=80, mlp_hidden=5120),
  'vit_pwee_patch16_': _SCALING
  | _SIDE_BY_SIDE
  | dict(num_heads=4, head_dim=64, mlp_hidden=1280, qkv_bias=True)
  | dict.fromkeys(('attn_q_norm', 'attn_k_norm')),
  'vit_base_patch16_18x2_': _SIDE_BY_SIDE,
  'vit_small_patch16_18x2_': _SIDE_BY_SIDE,
  # Attention pooling also reads the register.
  'test_vit3': dict(pool_include_prefix=True),
} | {
  # The blocks in the middle have fewer heads of keys and values.
  f'vit_{size}_patch16_sapiens2': dict(
    layer_scale='attention', num_kv_heads=heads
  )
  for size, heads in (
    ('base', None),
    ('large', 8),
    ('huge', 8),
    ('giant', 12),
    ('5b', 16),
  )
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
  for prefix, added in _MORE.items():
    if architecture.startswith(prefix):
      facts |= added
  return facts


def published(architecture: str) -> dict[str, dict[str, Any]]:
  """Returns {tag: facts of a published file}: input_size, mean, license …."""
  return _table()[architecture]['tags']
