"""Paths of parameters that code outside of the modules uses.

The modules define these names. Only this file repeats them. Paths are joined by
'/'.
"""

import re

# Modules and arrays of a Vision Transformer.
CLASS_TOKEN = 'cls'
REGISTERS = 'registers'
ENCODER = 'Transformer'
BLOCK = f'{ENCODER}/encoderblock_'
PATCH_NORM = 'patch_norm'
PIXEL_NORM = 'pixel_norm'
PRE_NORM = f'{ENCODER}/pre_norm'
ENCODER_NORM = f'{ENCODER}/encoder_norm'
INPUT_POSITIONS = f'{ENCODER}/posembed_input'
POSITIONS = f'{INPUT_POSITIONS}/pos_embedding'
ATTENTION = 'MultiHeadDotProductAttention_0'
RELATIVE_MODULE = 'relative_positions'
RELATIVE_POSITIONS = f'{ATTENTION}/{RELATIVE_MODULE}/embedding'
RELATIVE_TABLE = f'{RELATIVE_MODULE}/table'
RELATIVE_MLP = f'{RELATIVE_MODULE}/Dense_0'
ROTARY = 'rotary/frequencies'
POOLING = 'MAPHead_0'
PROBE = f'{POOLING}/probe'
HEAD_NORM = 'head_norm'
PRE_LOGITS = 'pre_logits'

# First kernels of a ViT, a Mixer and a convolutional stem: they read pixels.
VIT_PATCHES = 'embedding/kernel'
MIXER_PATCHES = 'stem/kernel'
STEM_ROOT = 'conv_root/kernel'

# A kernel of a Mixer. The length of its first axis is the number of patches.
TOKEN_MIXING = 'MixerBlock_0/token_mixing/Dense_0/kernel'
# A module that only BiT models have.
BIT_NORM = 'gn_head'

HEAD = 'head'
HEAD_KERNEL = f'{HEAD}/kernel'
HEAD_BIAS = f'{HEAD}/bias'


def block(number: int | str) -> str:
  """Returns the prefix of a block's paths: 'Transformer/encoderblock_0/'."""
  return f'{BLOCK}{number}/'


def depth(path: str) -> int | None:
  """Returns the depth of a parameter in a ViT or Mixer, possibly nested.

  It is 0 for embeddings, tokens and the convolutional stem, i + 1 for block i,
  and None for parameters after the blocks and of other models.
  """
  # A block of a FractalNet has two numbers, and so no place in a sequence.
  found = re.search(
    r'(?:^|/)(?:Transformer/encoderblock|MixerBlock)_(\d+)/', path
  )
  if found:
    return int(found[1]) + 1
  is_embedding = re.search(
    r'(?:^|/)(?:cls|registers|embedding|pixel_norm|patch_norm|stem|conv_root|gn_root'
    r'|block\d+|Transformer/(?:posembed_input|pre_norm|relative_positions))(?:/|$)',
    path,
  )
  return 0 if is_embedding else None


def in_block(path: str) -> bool:
  """Returns whether a parameter is in a block of a ViT or Mixer."""
  return bool(re.search(r'(?:^|/)(?:encoderblock|MixerBlock)_[^/]+/', path))


def module(path: str) -> str:
  """Returns the first component of a path: 'head' for 'head/bias'."""
  return path.split('/')[0]
