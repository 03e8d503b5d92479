"""Tables of published weights: names, locations, architectures.

A name is FAMILY/FILE, as in `sam/ViT-B_16`. A family is a folder of a bucket.
For a file name without a family, `locate` chooses the family.
"""

import re
from typing import NamedTuple

from vit_jax.checkpoint.pretrained import augreg

HUB = 'hf://'
# Sources of published files, in the order in which they are tried. A source is
# a URL or a folder, to which BUCKET/FOLDER/FILE is appended. The source HUB
# stands for mirrors on the Hub, which have other names.
SOURCES = ('https://storage.googleapis.com', HUB)

SUFFIXES = ('.npz', '.safetensors', '.txt', '.model', '.csv')

# {family: folder in the buckets on Google Cloud Storage}
FAMILIES = {
  'imagenet21k': 'vit_models/imagenet21k',
  'imagenet21k+imagenet2012': 'vit_models/imagenet21k+imagenet2012',
  'imagenet1k': 'mixer_models/imagenet1k',
  'augreg': 'vit_models/augreg',
  'sam': 'vit_models/sam',
  'gsam': 'vit_models/gsam',
  'lit': 'vit_models/lit',
  'bit_models': 'bit_models',
  'big_vision': 'big_vision',
}
# Families that also have a folder in the bucket mixer_models.
_WITH_MIXERS = ('imagenet21k', 'sam', 'gsam')

_IMAGENET21K = (
  'ViT-B_16',
  'ViT-B_32',
  'ViT-L_16',
  'ViT-L_32',
  'ViT-H_14',
  'R50+ViT-B_16',
  'Mixer-B_16',
  'Mixer-L_16',
)
_LIT = ('LiT-B16B', 'LiT-B16B_2', 'LiT-L16L', 'LiT-L16S', 'LiT-L16Ti')
_BIT = re.compile(r'BiT-[SM]-R(50x1|50x3|101x1|101x3|152x2|152x4)')
_AUGREG_NAMES = {model: name for name, model in augreg.MODELS.items()}

# {FAMILY/FILE: repositories with an equal encoder on the Hugging Face Hub}. The
# names are from timm 1.0.31 and the Hub's documentation. timm's mirrors of
# 'orig_in21k' have no head and no pre_logits. Google's mirrors have no head.
_HUB = {
  'imagenet21k/ViT-B_16': (
    'timm/vit_base_patch16_224.orig_in21k',
    'google/vit-base-patch16-224-in21k',
  ),
  'imagenet21k/ViT-B_32': (
    'timm/vit_base_patch32_224.orig_in21k',
    'google/vit-base-patch32-224-in21k',
  ),
  'imagenet21k/ViT-L_16': (
    'timm/vit_large_patch16_224.orig_in21k',
    'google/vit-large-patch16-224-in21k',
  ),
  'imagenet21k/ViT-L_32': (
    'timm/vit_large_patch32_224.orig_in21k',
    'google/vit-large-patch32-224-in21k',
  ),
  'imagenet21k/ViT-H_14': (
    'timm/vit_huge_patch14_224.orig_in21k',
    'google/vit-huge-patch14-224-in21k',
  ),
  'imagenet21k/R50+ViT-B_16': ('timm/vit_base_r50_s16_224.orig_in21k',),
  'imagenet21k/Mixer-B_16': ('timm/mixer_b16_224.goog_in21k',),
  'imagenet21k/Mixer-L_16': ('timm/mixer_l16_224.goog_in21k',),
  'imagenet21k+imagenet2012/ViT-B_16': (
    'timm/vit_base_patch16_384.orig_in21k_ft_in1k',
  ),
  'imagenet21k+imagenet2012/ViT-B_16-224': (
    'timm/vit_base_patch16_224.orig_in21k_ft_in1k',
  ),
  'imagenet21k+imagenet2012/ViT-L_32': (
    'timm/vit_large_patch32_384.orig_in21k_ft_in1k',
  ),
  'imagenet21k+imagenet2012/R50+ViT-B_16': (
    'timm/vit_base_r50_s16_384.orig_in21k_ft_in1k',
  ),
  'sam/ViT-B_16': ('timm/vit_base_patch16_224.sam_in1k',),
  'sam/ViT-B_32': ('timm/vit_base_patch32_224.sam_in1k',),
  'big_vision/flexivit/flexivit_s_i1k': ('timm/flexivit_small.1200ep_in1k',),
  'big_vision/flexivit/flexivit_b_i1k': ('timm/flexivit_base.1200ep_in1k',),
  'big_vision/flexivit/flexivit_l_i1k': ('timm/flexivit_large.1200ep_in1k',),
  'big_vision/flexivit/flexivit_b_i21k_1000ep': (
    'timm/flexivit_base.1000ep_in21k',
  ),
  'big_vision/flexivit/flexivit_b_i21k_300ep': (
    'timm/flexivit_base.300ep_in21k',
  ),
  **{
    f'bit_models/BiT-M-R{size}': (f'timm/resnetv2_{size}_bit.goog_in21k',)
    for size in ('50x1', '50x3', '101x1', '101x3', '152x2', '152x4')
  },
}


class Published(NamedTuple):
  """One published file, or an AugReg model without a chosen file."""

  family: str
  stem: str  # File name without suffix.
  suffix: str
  model: str | None  # Architecture, if the name contains it.
  hub: tuple = ()  # Repositories with an equal encoder.

  @property
  def path(self) -> str:
    """Returns 'BUCKET/FOLDER/FILE' on Google Cloud Storage."""
    folder = FAMILIES[self.family]
    if self.family in _WITH_MIXERS and self.stem.startswith('Mixer-'):
      folder = f'mixer_models/{self.family}'
    return f'{folder}/{self.stem}{self.suffix}'

  @property
  def is_augreg_model(self) -> bool:
    """Returns whether AugReg's index determines the file."""
    return self.family == 'augreg' and self.stem in augreg.MODELS

  @property
  def has_two_towers(self) -> bool:
    """Returns whether the model has an image tower and a text tower."""
    return self.family == 'lit' or (
      self.family == 'big_vision' and self.stem.startswith('siglip')
    )


def split(name: str) -> tuple[str, str]:
  """Returns (stem, suffix); a suffix is one of `SUFFIXES` or ''."""
  suffix = next((s for s in SUFFIXES if name.endswith(s)), '')
  return name[: len(name) - len(suffix)], suffix


def locate(name: str) -> Published | None:
  """Returns the `Published` of a name; None if the name is unknown.

  For a name without a family, the ImageNet-21k weights of the ViT and Mixer
  papers have priority. AugReg's other models are in the family 'augreg'.
  """
  family, _, rest = name.partition('/')
  stem, suffix = split(rest if family in FAMILIES else name)
  if family not in FAMILIES:
    # BiT-R… stands for BiT-M-R…, which was pre-trained on ImageNet-21k.
    stem = re.sub('^BiT-R', 'BiT-M-R', stem)
    if stem in _AUGREG_NAMES and stem not in _IMAGENET21K:
      stem = _AUGREG_NAMES[stem]
    family = (
      'imagenet21k'
      if stem in _IMAGENET21K
      else 'augreg'
      if augreg.model_of(stem)
      else 'lit'
      if stem in _LIT
      else 'bit_models'
      if _BIT.fullmatch(stem)
      else None
    )
  if family is None or not stem:
    return None
  hub = _HUB.get(f'{family}/{stem}', ())
  if family == 'augreg':
    hub = tuple(filter(None, [augreg.HUB_COPIES.get(stem)]))
    model = augreg.model_of(stem)
  elif family in ('bit_models', 'big_vision'):
    model = None
  else:
    model = stem.removesuffix('-224')
  return Published(family, stem, suffix or '.npz', model, hub)


def may_share(one: str, other: str) -> bool:
  """Returns whether weights of one architecture may be used for the other.

  Only the names are compared. Weights can be adapted to another patch size or
  pooling, but not to another width, depth or stem.
  """
  encoders = [
    re.match(r'(R\d*\+)?ViT-[A-Z][a-z]?|Mixer-[A-Z]', name)
    for name in (one, other)
  ]
  return not all(encoders) or encoders[0].group() == encoders[1].group()
