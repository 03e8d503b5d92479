"""Tables of all named architectures: one line for each name.

Sizes: Dosovitskiy et al. 2020 (arXiv 2010.11929), table 1, and Steiner et al.
2021 (arXiv 2106.10270), table 2; Tolstikhin et al. 2021 (arXiv 2105.01601),
table 1; Kolesnikov et al. 2020 (arXiv 1912.11370), section 3.2. A name
determines the parameter tree, so published weights fit the model of that name.
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
    patch_size=patch_size,
    hidden_size=hidden_size,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    num_layers=num_layers,
    **exceptions,
  )


_TESTING = dict(
  patch_size=16,
  hidden_size=10,
  mlp_dim=10,
  num_heads=2,
  num_layers=1,
  dropout_rate=0.1,
)

_MIXER_B = dict(
  hidden_size=768, num_layers=12, tokens_mlp_dim=384, mlp_dim=3072
)


def _bit(num_units, width_factor):
  return dict(num_units=num_units, width_factor=width_factor)


# name: attributes that differ from the defaults of the class. The class is
# `mixer.MlpMixer` for a Mixer, `bit.BitResNet` for a BiT, and otherwise
# `vit.VisionTransformer`.
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
  'R+ViT-Ti_16': _vit('Ti', 8, stem_units=()),
  'R26+ViT-S_32': _vit('S', 1, stem_units=(2, 2, 2, 2)),
  'R26+ViT-B_32': _vit('B', 1, stem_units=(2, 2, 2, 2)),
  'R50+ViT-B_16': _vit('B', 1, stem_units=(3, 4, 9), dropout_rate=0.1),
  'R50+ViT-L_32': _vit('L', 1, stem_units=(3, 4, 6, 3), dropout_rate=0.1),
  'Mixer-B_16': dict(_MIXER_B, patch_size=16),
  'Mixer-B_32': dict(_MIXER_B, patch_size=32),
  'Mixer-L_16': dict(
    patch_size=16,
    hidden_size=1024,
    num_layers=24,
    tokens_mlp_dim=512,
    mlp_dim=4096,
  ),
  'BiT-R50x1': _bit((3, 4, 6, 3), 1),
  'BiT-R50x3': _bit((3, 4, 6, 3), 3),
  'BiT-R101x1': _bit((3, 4, 23, 3), 1),
  'BiT-R101x3': _bit((3, 4, 23, 3), 3),
  'BiT-R152x2': _bit((3, 8, 36, 3), 2),
  'BiT-R152x4': _bit((3, 8, 36, 3), 4),
  'testing': _TESTING,
  'testing-unpooled': dict(_TESTING, classifier='unpooled'),
}

_BERT_BASE = dict(
  hidden_size=768, mlp_dim=3072, num_heads=12, num_layers=12, vocab_size=30_522
)
_BERT_LARGE = dict(
  hidden_size=1024, mlp_dim=4096, num_heads=16, num_layers=24, vocab_size=30_522
)


def _text(size):
  hidden_size, mlp_dim, num_heads, num_layers = SIZES[size]
  return dict(
    hidden_size=hidden_size,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    num_layers=num_layers,
    vocab_size=16_000,
  )


def _towers(image, text, text_settings, image_dim, text_dim):
  return dict(
    image=image,
    image_dim=image_dim,
    text=text,
    text_settings=dict(text_settings, out_dim=text_dim),
  )


# name: the towers of `lit.TwoTowers` (Zhai et al. 2021, arXiv 2111.07991):
# image architecture, type and sizes of the text tower, widths of the heads.
# A width of 0 means no head: the tower's output is the embedding.
TWO_TOWERS = {
  'LiT-B16B': _towers('ViT-B_16', 'bert', _BERT_BASE, 768, 768),
  'LiT-B16B_2': _towers('ViT-B_16', 'bert', _BERT_BASE, 0, 768),
  'LiT-L16L': _towers('ViT-L_16', 'bert', _BERT_LARGE, 0, 1024),
  'LiT-L16S': _towers('ViT-L_16', 'transformer', _text('S'), 0, 1024),
  'LiT-L16Ti': _towers('ViT-L_16', 'transformer', _text('Ti'), 0, 1024),
}


def _key(name):
  return re.sub(r'(^|\+)vit-|_', r'\1', name.lower())


def resolve(name: str) -> str:
  """Returns the full name of an architecture: 'ViT-B_16' for 'b16'.

  Raises:
    ValueError: the name is unknown; the message lists the nearest names.
  """
  full_names = {_key(full): full for full in (*VARIANTS, *TWO_TOWERS)}
  if _key(name) in full_names:
    return full_names[_key(name)]
  near = difflib.get_close_matches(_key(name), full_names, n=3, cutoff=0.5)
  hint = ', '.join([full_names[key] for key in near] or ('ViT-B_16', 'b16'))
  raise ValueError(
    f'no model is named {name!r}. Use a name from the list of '
    f'`python -m vit_jax models`, such as {hint}.'
  )
