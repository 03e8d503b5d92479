"""Every named architecture as data: one table of sizes, one line per name.

Sizes: Dosovitskiy et al. 2020 (arXiv 2010.11929), table 1, and Steiner et al.
2021 (arXiv 2106.10270), table 2. A name fixes the parameter tree, so that the
published file of that name loads.
"""

import difflib
import re

# size: (hidden_size, mlp_dim, num_heads, num_layers)
SIZES = {
    'Ti': (192, 768, 3, 12),
    'S': (384, 1536, 6, 12),
    'B': (768, 3072, 12, 12),
    'L': (1024, 4096, 16, 24),
    'H': (1280, 5120, 16, 32),
}


def _vit(size, patch_size, **exceptions):
  hidden_size, mlp_dim, num_heads, num_layers = SIZES[size]
  return dict(
      patch_size=patch_size, hidden_size=hidden_size, mlp_dim=mlp_dim,
      num_heads=num_heads, num_layers=num_layers, **exceptions)


_TESTING = dict(patch_size=16, hidden_size=10, mlp_dim=10, num_heads=2,
                num_layers=1, dropout_rate=0.1)

# name: attributes of `vit.VisionTransformer` that differ from its defaults
VARIANTS = {
    'ViT-Ti_16': _vit('Ti', 16),
    'ViT-S_16': _vit('S', 16),
    'ViT-S_32': _vit('S', 32),
    'ViT-B_8': _vit('B', 8),
    'ViT-B_16': _vit('B', 16),
    'ViT-B_32': _vit('B', 32),
    'ViT-L_16': _vit('L', 16, dropout_rate=0.1),
    'ViT-L_32': _vit('L', 32),
    'ViT-H_14': _vit('H', 14, dropout_rate=0.1),
    'ViT-S_16-gap-norep': _vit('S', 16, classifier='gap'),
    'ViT-S_32-gap-norep': _vit('S', 32, classifier='gap'),
    'ViT-B_16-gap-norep': _vit('B', 16, classifier='gap'),
    'ViT-B_32-gap-norep': _vit('B', 32, classifier='gap'),
    'testing': _TESTING,
    'testing-unpooled': dict(_TESTING, classifier='unpooled'),
}


def _key(name):
  return re.sub(r'vit-|_', '', name.lower())


def resolve(name):
  """The table's name for `name`, which may be short: 'b16' is 'ViT-B_16'.

  Raises:
    ValueError: no such architecture; the message holds the nearest names.
  """
  full_names = {_key(full): full for full in VARIANTS}
  if _key(name) in full_names:
    return full_names[_key(name)]
  near = difflib.get_close_matches(_key(name), full_names, n=3, cutoff=0.5)
  hint = ', '.join(full_names[key] for key in near) or ', '.join(VARIANTS)
  raise ValueError(f'no model is named {name!r}; nearest: {hint}')


def fitting(shapes):
  """Names of the architectures whose encoder has these array shapes.

  Args:
    shapes: {'/'-joined path: shape} of a weights file, today's spelling.
  """
  block = 'Transformer/encoderblock_{}/'
  heads = shapes.get(
      block.format(0) + 'MultiHeadDotProductAttention_0/query/kernel')
  mlp = shapes.get(block.format(0) + 'MlpBlock_0/Dense_0/kernel')
  embedding = shapes.get('embedding/kernel')
  if not (heads and mlp and embedding):
    return []
  num_layers = len({path.split('/')[1] for path in shapes
                    if path.startswith('Transformer/encoderblock_')})
  found = dict(patch_size=embedding[0], hidden_size=embedding[-1],
               mlp_dim=mlp[1], num_heads=heads[1], num_layers=num_layers)
  has_token = 'cls' in shapes
  return [
      name for name, variant in VARIANTS.items()
      if found.items() <= variant.items()
      and has_token == (variant.get('classifier', 'token') == 'token')]
