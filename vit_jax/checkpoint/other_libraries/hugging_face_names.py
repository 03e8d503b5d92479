"""Names of arrays in models of Hugging Face, and ours.

The tables have rows as in `torch_names`, and are used in both directions. A
file has names of one style: that of BERT (ViT, DeiT, DINOv2, BEiT …), of CLIP
(CLIP, SigLIP, AIMv2) or of Llama (DINOv3).

In these tables, `block.{i}.` is a block, whose name depends on the style. Names
have no prefix, which depends on the class of the model.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import re

import numpy as np

from vit_jax.checkpoint.other_libraries import name_tables
from vit_jax.checkpoint.other_libraries import torch_layouts
from vit_jax.checkpoint.other_libraries import torch_names
from vit_jax.models import param_paths

_WRAPPERS = (
  r'(module|_orig_mod|vit|deit|dinov2|dinov2_with_registers|dinov3_vit|beit'
  r'|data2vec_vision|vision_model|model)\.'
)
# Arrays that no image encoder computes with: text towers, decoders, masks.
_UNUSED = (
  r'(text_model|text_projection|decoder|logit_scale|logit_bias|lm_head'
  r'|lit_head)\b.*|.*(mask_token|position_ids|relative_position_index)'
)
_BLOCK = param_paths.block('{i}')
_ATTENTION = f'{_BLOCK}{param_paths.ATTENTION}/'
_MLP = f'{_BLOCK}MlpBlock_0/'
_POOL = f'{param_paths.POOLING}/'
_POOL_ATTENTION = f'{_POOL}{param_paths.ATTENTION}/'
_THERE = 'block.{i}.'
_TABLE = 'relative_position_bias.relative_position_bias_table'
_UNITS = 'stages.{s}.blocks', 'encoder.stages.{s}.layers'
_BIT = 'embeddings.patch_embeddings.backbone.bit.'


def _attention(names, out):
  """Returns rows of attention; `names` are of queries, keys and values."""
  rows = zip(('query', 'key', 'value'), names, strict=True)
  return (
    *(('heads', _ATTENTION + ours, _THERE + name) for ours, name in rows),
    ('out', _ATTENTION + 'out', _THERE + out),
  )


def _numbered(kind, ours, theirs):
  """Returns rows of the two modules of a kind; {n} is 0 and 1, or 1 and 2."""
  return tuple(
    (kind, ours.format(i='{i}', n=n), theirs.format(i='{i}', n=n + 1))
    for n in (0, 1)
  )


def _mlp(first, second):
  return (
    ('dense', _MLP + 'Dense_0', _THERE + first),
    ('dense', _MLP + 'Dense_1', _THERE + second),
  )


_NORM = _BLOCK + 'LayerNorm_{n}'
_SCALE = _BLOCK + 'LayerScale_{n}/scale'
_PROJECTIONS = [f'attention.{x}_proj' for x in 'qkv']
_BERT = (
  ('array', param_paths.CLASS_TOKEN, 'embeddings.cls_token'),
  ('array', param_paths.REGISTERS, 'embeddings.register_tokens'),
  ('array', param_paths.POSITIONS, 'embeddings.position_embeddings'),
  ('conv', 'embedding', 'embeddings.patch_embeddings.projection'),
  *_attention(
    [f'attention.attention.{x}' for x in ('query', 'key', 'value')],
    'attention.output.dense',
  ),
  ('norm', _BLOCK + 'LayerNorm_0', _THERE + 'layernorm_before'),
  ('norm', _BLOCK + 'LayerNorm_1', _THERE + 'layernorm_after'),
  *_mlp('intermediate.dense', 'output.dense'),
  (
    'array',
    _BLOCK + param_paths.RELATIVE_TABLE,
    f'{_THERE}attention.attention.{_TABLE}',
  ),
  (
    'array',
    f'{param_paths.ENCODER}/{param_paths.RELATIVE_TABLE}',
    f'encoder.{_TABLE}',
  ),
  *_numbered('array', _SCALE, _THERE + 'lambda_{n}'),
  ('norm', param_paths.ENCODER_NORM, 'layernorm'),
  ('norm', param_paths.HEAD_NORM, 'pooler.layernorm'),
  ('dense', param_paths.PRE_LOGITS, 'pooler.dense'),
  ('conv', 'conv_root', _BIT + 'embedder.convolution'),
  ('norm', 'gn_root', _BIT + 'embedder.norm'),
  *(
    (kind, here, _BIT + there.replace(*_UNITS))
    for kind, here, there in torch_names.TIMM_BIT
    if _UNITS[0] in there
  ),
)
_DINOV2 = (
  *_numbered('norm', _NORM, _THERE + 'norm{n}'),
  *_numbered('array', _SCALE, _THERE + 'layer_scale{n}.lambda1'),
)
_GATED = (
  ('dense', _MLP + 'gate|Dense_0', _THERE + 'mlp.weights_in'),
  ('dense', _MLP + 'Dense_1', _THERE + 'mlp.weights_out'),
)
_DINOV3 = (
  ('conv', 'embedding', 'embeddings.patch_embeddings'),
  *_attention(_PROJECTIONS, 'attention.o_proj'),
  ('dense', _MLP + 'gate', _THERE + 'mlp.gate_proj'),
  *_mlp('mlp.up_proj', 'mlp.down_proj'),
  ('norm', param_paths.ENCODER_NORM, 'norm'),
  *_DINOV2,
  *_BERT,
)
_CLIP = (
  ('vector', param_paths.CLASS_TOKEN, 'embeddings.class_embedding'),
  ('rows', param_paths.POSITIONS, 'embeddings.position_embedding.weight'),
  ('conv', 'embedding', 'embeddings.patch_embedding'),
  ('norm', param_paths.PRE_NORM, 'pre_layrnorm'),
  *_numbered('norm', _NORM, _THERE + 'layer_norm{n}'),
  *_attention([f'self_attn.{x}_proj' for x in 'qkv'], 'self_attn.out_proj'),
  *_mlp('mlp.fc1', 'mlp.fc2'),
  ('norm', param_paths.ENCODER_NORM, 'post_layernorm'),
  ('array', param_paths.PROBE, 'head.probe'),
  ('in_proj', _POOL_ATTENTION + 'query|key|value', 'head.attention.in_proj'),
  ('out', _POOL_ATTENTION + 'out', 'head.attention.out_proj'),
  ('norm', _POOL + 'LayerNorm_0', 'head.layernorm'),
  ('dense', _POOL + 'MlpBlock_0/Dense_0', 'head.mlp.fc1'),
  ('dense', _POOL + 'MlpBlock_0/Dense_1', 'head.mlp.fc2'),
)
_AIMV2 = (
  ('rows', param_paths.POSITIONS, 'embeddings.position_embedding.weight'),
  ('conv', 'embedding', 'embeddings.patch_embed'),
  ('norm', param_paths.PATCH_NORM, 'embeddings.rms_norm'),
  *_numbered('norm', _NORM, _THERE + 'rms_norm{n}'),
  *_attention(_PROJECTIONS, 'attention.out_proj'),
  ('dense', _MLP + 'gate', _THERE + 'ffn.gate_proj'),
  *_mlp('ffn.up_proj', 'ffn.down_proj'),
  ('norm', param_paths.ENCODER_NORM, 'rms_norm'),
  ('array', param_paths.PROBE, 'head.cls_token'),
  ('heads', _POOL_ATTENTION + 'key', 'head.k_proj'),
  ('heads', _POOL_ATTENTION + 'value', 'head.v_proj'),
  ('out', _POOL_ATTENTION + 'out', 'head.output_proj'),
)
# {name of a head: kind of its row}
_HEADS = {
  'classifier': 'dense',
  'cls_classifier': 'dense',
  'visual_projection': 'projection',
}
# {style: (name of a block, rows)}
_STYLES = {
  'bert': ('encoder.layer', _BERT),
  'dinov2': ('encoder.layer', _DINOV2 + _mlp('mlp.fc1', 'mlp.fc2') + _BERT),
  'dinov2_gated': ('encoder.layer', _DINOV2 + _GATED + _BERT),
  'dinov3': ('layer', _DINOV3),
  'clip': ('encoder.layers', _CLIP),
  'aimv2': ('encoder.layers', _AIMV2),
}
# All names, also those of modules in transformers 5, for reading.
TABLE = tuple(
  dict.fromkeys(
    (
      *(row for _, rows in _STYLES.values() for row in rows),
      *((kind, param_paths.HEAD, name) for name, kind in _HEADS.items()),
    )
  )
)
_POSITIONS = 'embeddings.position_embeddings'
_SECOND_TOKEN = 'embeddings.distillation_token'
_TWO_HEADS = (
  *('embeddings.cls_token', _SECOND_TOKEN),
  *('cls_classifier', 'distillation_classifier'),
)


def is_known(paths: Iterable[str]) -> bool:
  """Returns whether the names are those of Hugging Face's models."""
  return any(
    re.match(rf'(?:{_WRAPPERS})*embeddings\.(patch|position|class|cls)', path)
    for path in paths
  )


def plain_name(path: str) -> str:
  """Returns the name of an array in the tables: without prefixes."""
  path = re.sub(f'^({_WRAPPERS})+', '', path)
  return re.sub(r'^(?:encoder\.)?layers?\.(\d+)\.', r'block.\1.', path)


def plain(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the arrays of the image encoder, with their plain names."""
  return {
    plain_name(path): array
    for path, array in flat.items()
    if not re.fullmatch(rf'({_WRAPPERS})*({_UNUSED})', path) and array.size
  }


def to_linen(
  flat: Mapping[str, np.ndarray], num_heads: int, pool_heads: int | None = None
) -> dict[str, np.ndarray]:
  """Returns the arrays of an image encoder with our names.

  Arrays that the model does not compute with are dropped.

  Args:
    flat: result of `plain`.
    num_heads: attention heads in each block.
    pool_heads: attention heads of the pooling; None: `num_heads`.

  Raises:
    ValueError: lists the names that have no counterpart in vit_jax.
  """
  flat = dict(flat)
  if (
    'embeddings.patch_embedding.weight' in flat and 'classifier.weight' in flat
  ):
    # These classifiers read patches: CLIP's before the norm.
    is_clip = 'embeddings.class_embedding' in flat
    unused = 'post_layernorm.' if is_clip else 'head.'
    flat = {x: array for x, array in flat.items() if not x.startswith(unused)}
  if 'distillation_classifier.weight' in flat:
    flat = torch_layouts.merge_heads(flat, _TWO_HEADS)
  elif _SECOND_TOKEN in flat:  # no head reads it: it is a register
    token, positions = flat.pop(_SECOND_TOKEN), flat[_POSITIONS]
    flat['embeddings.register_tokens'] = token + positions[:, 1:2]
    flat[_POSITIONS] = np.delete(positions, 1, axis=1)
  found = name_tables.read(flat, TABLE, num_heads, pool_heads)
  kernel = found.get(param_paths.HEAD_KERNEL)
  if kernel is not None and param_paths.HEAD_BIAS not in found:
    # CLIP's projection. `from_linen` removes these zeros.
    found[param_paths.HEAD_BIAS] = np.zeros(kernel.shape[1:], kernel.dtype)
  return found


def from_linen(
  flat: Mapping[str, np.ndarray], style: str, prefix: str, head: str
) -> dict[str, np.ndarray]:
  """Returns our arrays with the names of Hugging Face.

  Args:
    flat: {path: array}.
    style: key of `_STYLES`, or 'deit'.
    prefix: prefix of all names, except those of the head, such as 'vit.'.
    head: name of the head, a key of `_HEADS`.

  Raises:
    ValueError: lists the arrays that have no name in this style.
  """
  flat, kind = dict(flat), _HEADS[head]
  if kind == 'projection' and not np.any(flat[param_paths.HEAD_BIAS]):
    del flat[param_paths.HEAD_BIAS]
  if style == 'dinov3':  # without registers, its array is empty
    none = flat[param_paths.CLASS_TOKEN][:, :0]
    flat.setdefault(param_paths.REGISTERS, none)
  block, rows = _STYLES['bert' if style == 'deit' else style]
  rows = ((kind, param_paths.HEAD, head), *rows)
  found = name_tables.write(flat, rows, 'this model of Hugging Face')
  if style == 'deit':
    found = _with_second_token(found)
  heads = 'distillation_classifier', head
  return {
    path
    if path.rpartition('.')[0] in heads
    else prefix + path.replace('block.', f'{block}.', 1): array
    for path, array in found.items()
  }


def _with_second_token(flat):
  """Returns arrays of DeiT, in which a second token follows the class token."""
  register = flat.pop('embeddings.register_tokens', None)
  if register is None:
    return torch_layouts.split_heads(flat, _TWO_HEADS)
  return flat | {
    _SECOND_TOKEN: register,
    _POSITIONS: np.insert(flat[_POSITIONS], 1, 0, axis=1),
  }
