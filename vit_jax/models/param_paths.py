"""Paths of parameters that code outside of the modules asks for.

The modules define these names. Here, each is spelled a second time, and nowhere
else. Paths are '/'-joined.
"""

# Modules and arrays of a Vision Transformer.
CLASS_TOKEN = 'cls'
REGISTERS = 'registers'
ENCODER = 'Transformer'
BLOCK = f'{ENCODER}/encoderblock_'
ENCODER_NORM = f'{ENCODER}/encoder_norm'
INPUT_POSITIONS = f'{ENCODER}/posembed_input'
POSITIONS = f'{INPUT_POSITIONS}/pos_embedding'
ATTENTION = 'MultiHeadDotProductAttention_0'
RELATIVE_POSITIONS = f'{ATTENTION}/relative_positions/embedding'
POOLING = 'MAPHead_0'
PROBE = f'{POOLING}/probe'
PRE_LOGITS = 'pre_logits'

# Kernels that read the pixels: of a ViT, of a Mixer, of a convolutional stem.
VIT_PATCHES = 'embedding/kernel'
MIXER_PATCHES = 'stem/kernel'
STEM_ROOT = 'conv_root/kernel'

# Of a Mixer: the kernel whose first axis is the number of patches.
TOKEN_MIXING = 'MixerBlock_0/token_mixing/Dense_0/kernel'
# What only a BiT has.
BIT_NORM = 'gn_head'

HEAD = 'head'
HEAD_KERNEL = f'{HEAD}/kernel'
HEAD_BIAS = f'{HEAD}/bias'


def block(number: int | str) -> str:
  """The folder of an encoder block, such as 'Transformer/encoderblock_0/'."""
  return f'{BLOCK}{number}/'


def module(path: str) -> str:
  """The module or array at the top that a path is in: 'head' of 'head/bias'."""
  return path.split('/')[0]
