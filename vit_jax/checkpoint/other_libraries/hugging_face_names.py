"""Names of arrays in models of Hugging Face, and timm's names for them.

Hugging Face has three styles of names: of BERT (ViT, DeiT, DINOv2, BEiT …), of
CLIP (CLIP, SigLIP, AIMv2) and of Llama (DINOv3). All styles have timm's layers,
so the functions convert to timm's names, and `torch_convert` does the rest.
"""

from collections.abc import Mapping
import re

import numpy as np

_WRAPPERS = (
  r'(module|_orig_mod|vit|deit|dinov2|dinov2_with_registers|dinov3_vit|beit'
  r'|data2vec_vision|vision_model|model)\.'
)
# Arrays that no image encoder computes with: text towers, decoders, masks.
_UNUSED = (
  r'(text_model|text_projection|decoder|logit_scale|logit_bias|lm_head'
  r'|lit_head)\b.*|.*(mask_token|position_ids|relative_position_index)'
)
# The table of relative positions that all blocks share.
_SHARED_TABLE = 'encoder.relative_position_bias.relative_position_bias_table'
_BLOCK = r'(?:encoder\.)?layers?\.(\d+)\.'
# (pattern of their names, timm's names), in order: the first match counts.
_NAMES = tuple(
  (re.compile(pattern), name)
  for pattern, name in (
    (r'embeddings\.(?:cls_token|class_embedding)', 'cls_token'),
    (r'embeddings\.distillation_token', 'dist_token'),
    (r'embeddings\.register_tokens', 'reg_token'),
    (r'embeddings\.position_embeddings?(?:\.weight)?', 'pos_embed'),
    (
      r'embeddings\.patch_embeddings\.backbone\.bit\.embedder\.conv\w*(\..*)',
      r'patch_embed.backbone.stem.conv\1',
    ),
    (
      r'embeddings\.patch_embeddings\.backbone\.bit\.embedder\.norm(\..*)',
      r'patch_embed.backbone.stem.norm\1',
    ),
    (
      r'embeddings\.patch_embeddings\.backbone\.bit\.encoder\.stages\.(\d+)'
      r'\.layers\.(.*)',
      r'patch_embed.backbone.stages.\1.blocks.\2',
    ),
    (
      r'embeddings\.patch_embed(?:ding|dings)?(?:\.projection)?(\.\w+)',
      r'patch_embed.proj\1',
    ),
    (r'embeddings\.rms_norm(\..*)', r'patch_embed.norm\1'),
    (r'pre_lay(?:r|er)norm(\..*)', r'norm_pre\1'),
    (
      _BLOCK + r'(?:layernorm_before|layer_norm1|rms_norm1|norm1)(\..*)',
      r'blocks.\1.norm1\2',
    ),
    (
      _BLOCK + r'(?:layernorm_after|layer_norm2|rms_norm2|norm2)(\..*)',
      r'blocks.\1.norm2\2',
    ),
    (
      _BLOCK + r'attention\.attention\.(query|key|value)(\..*)',
      r'blocks.\1.attn.\2\3',
    ),
    (
      _BLOCK + r'(?:attention|self_attn)\.(q|k|v)_proj(\..*)',
      r'blocks.\1.attn.\2\3',
    ),
    (
      _BLOCK + r'(?:attention\.output\.dense|(?:attention|self_attn)\.o(?:ut)?'
      r'_proj)(\..*)',
      r'blocks.\1.attn.proj\2',
    ),
    (
      _BLOCK + r'attention\.attention\.relative_position_bias\.(.*)',
      r'blocks.\1.attn.\2',
    ),
    (_BLOCK + r'layer_scale(\d)\.lambda1', r'blocks.\1.ls\2.gamma'),
    (_BLOCK + r'lambda_(\d)', r'blocks.\1.gamma_\2'),
    (_BLOCK + r'(?:mlp|ffn)\.gate_proj(\..*)', r'blocks.\1.mlp.fc1_g\2'),
    (
      _BLOCK
      + r'(?:intermediate\.dense|(?:mlp|ffn)\.(?:fc1|up_proj|weights_in))'
      r'(\..*)',
      r'blocks.\1.mlp.fc1\2',
    ),
    (
      _BLOCK + r'(?:output\.dense|(?:mlp|ffn)\.(?:fc2|down_proj|weights_out))'
      r'(\..*)',
      r'blocks.\1.mlp.fc2\2',
    ),
    (r'(?:layernorm|norm|post_layernorm|rms_norm)(\..*)', r'norm\1'),
    (r'pooler\.layernorm(\..*)', r'fc_norm\1'),
    (r'pooler\.dense(\..*)', r'pre_logits.fc\1'),
    (r'(?:classifier|cls_classifier|visual_projection)(\..*)', r'head\1'),
    (r'distillation_classifier(\..*)', r'head_dist\1'),
    (r'head\.probe', 'attn_pool.latent'),
    (r'head\.attention\.in_proj_(weight|bias)', r'attn_pool.qkv.\1'),
    (r'head\.attention\.out_proj(\..*)', r'attn_pool.proj\1'),
    (r'head\.layernorm(\..*)', r'attn_pool.norm\1'),
    (r'head\.mlp(\..*)', r'attn_pool.mlp\1'),
  )
)


def is_known(flat: Mapping[str, np.ndarray]) -> bool:
  """Returns whether the names are those of Hugging Face's models."""
  return any(
    re.match(rf'(?:{_WRAPPERS})*embeddings\.(patch|position|class|cls)', path)
    for path in flat
  )


def to_timm(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the arrays of an image encoder with timm's names and shapes.

  Arrays of text towers, of decoders and of masks are dropped. Arrays with
  unknown names keep their names.
  """
  flat = {
    path: array
    for path, array in flat.items()
    if not re.fullmatch(rf'({_WRAPPERS})*({_UNUSED})', path)
  }
  found = {timm_name(path): array for path, array in flat.items()}
  found = _merged(_with_tables(found))
  if 'cls_token' in found and found['cls_token'].ndim == 1:
    found['cls_token'] = found['cls_token'][None, None]
  if 'pos_embed' in found and found['pos_embed'].ndim == 2:
    found['pos_embed'] = found['pos_embed'][None]
  if 'reg_token' in found and not found['reg_token'].size:
    del found['reg_token']
  if 'dist_token' in found and 'head_dist.weight' not in found:
    found['reg_token'] = found.pop('dist_token')  # no head reads it
  elif 'reg_token' in found and 'pos_embed' in found:
    # Hugging Face adds positions before it inserts the registers.
    where = [1] * found['reg_token'].shape[1]
    found['pos_embed'] = np.insert(found['pos_embed'], where, 0, axis=1)
  if 'head.weight' in found and 'head.bias' not in found:  # CLIP's projection
    weight = found['head.weight']
    found['head.bias'] = np.zeros(len(weight), weight.dtype)
  return found


def timm_name(path: str) -> str:
  """Returns timm's name of an array; the same name if it is unknown.

  Queries, keys and values, which timm has in one array, keep their own names.
  """
  path = re.sub(f'^({_WRAPPERS})+', '', path)
  for pattern, name in _NAMES:
    match = pattern.fullmatch(path)
    if match:
      return match.expand(name)
  return path


def _with_tables(flat):
  """Gives each block its own copy of a table of relative positions."""
  table = flat.pop(_SHARED_TABLE, None)
  if table is None:
    return flat
  blocks = {path.split('.')[1] for path in flat if path.startswith('blocks.')}
  name = 'attn.relative_position_bias_table'
  return flat | {f'blocks.{i}.{name}': table for i in blocks}


def _merged(flat):
  """Merges queries, keys and values; splits the array of the pooling."""
  found = {}
  for path, array in flat.items():
    match = re.fullmatch(
      r'(.*attn\.)(query|key|value|q|k|v)\.(weight|bias)', path
    )
    if path.startswith('attn_pool.qkv.'):
      kind = path.rpartition('.')[2]
      width = len(array) // 3
      found[f'attn_pool.q.{kind}'] = array[:width]
      found[f'attn_pool.kv.{kind}'] = array[width:]
    elif not match:
      gated = path.replace('.fc1.', '.fc1_g.') in flat and '.fc1.' in path
      found[path.replace('.fc1.', '.fc1_x.') if gated else path] = array
    elif match[2][0] == 'q':
      found.update(_qkv(flat, match))
  return found


def _qkv(flat, match):
  """Returns timm's array of queries, keys and values; or of their biases."""
  prefix, first, kind = match.groups()
  names = (first, *(('key', 'value') if first == 'query' else ('k', 'v')))
  parts = [flat.get(f'{prefix}{name}.{kind}') for name in names]
  if all(part is not None for part in parts):
    return {f'{prefix}qkv.{kind}': np.concatenate(parts)}
  return {  # BEiT and DINOv3 have no biases of keys
    f'{prefix}{letter}_bias': part
    for letter, part in zip('qkv', parts, strict=True)
    if part is not None
  }
