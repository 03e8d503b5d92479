"""Random weights with which no mistake in a model goes unseen.

With ordinary random weights, a wrong GELU changes logits by only 1e-4. Here,
the hidden units of an MLP are near −2.7. There, the kinds of GELU differ by 5 %
or more. The tokens are small, so the epsilon of a norm matters. Attention
is not uniform, and every bias is different from zero.

A value depends only on the name and the shape of its array. So tests can make
the weights of another library without this library.
"""

import re
import zlib

import numpy as np

TOKEN = 0.02  # Standard deviation of what is added to the tokens.
HIDDEN = -2.7  # Mean of the hidden units before the activation.
# Standard deviation of tokens or of the linear function; first match decides.
_TOKENS = (
  r'(.*\.)?((cls|dist|reg|register)_tokens?|class_embedding|latent|probe'
  r'|pos_embed|position_embeddings?(\.weight)?)'
)
_NORM_PRE = r'(.*\.)?(norm_pre|pre_layrnorm)\.'
_TO_TOKENS = (
  r'(.*\.)?(patch_embed|stem|patch_embeddings)\.(proj|projection)\.weight',
  r'(.*\.)?(proj|(attn_)?out_proj|o_proj|attention\.output\.dense)\.weight',
  r'(.*\.)?patch_embedding\.weight',
)
_MLP_IN = r'(.*\.)?(fc1|mlp_bias|intermediate\.dense|up_proj)(\.bias)?'
_MLP_OUT = r'(.*\.)?(fc2|mlp_out_proj|output\.dense|w3|down_proj)\.weight'
_GATES = r'(.*\.)?(fc1_g|fc1_x|w1|w2|w12|gate_proj)\.'


def values(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Returns {name: float32 array} for the arrays of a model of PyTorch."""
  return {name: _value(name, shapes) for name in shapes}


def images(size: tuple[int, int], number: int = 2) -> np.ndarray:
  """Returns random images [number, height, width, 3] in [−1, 1]."""
  rng = np.random.default_rng(7)
  return rng.uniform(-1, 1, (number, *size, 3)).astype(np.float32)


def _value(name, shapes):
  shape = tuple(shapes[name])
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  noise = rng.standard_normal(shape, dtype=np.float32)
  mean, std = _mean_and_std(name, shape, shapes)
  found = np.float32(mean) + np.float32(std) * noise
  if re.fullmatch(r'blocks\.\d+\.in_proj\.(weight|bias)', name):
    # One product gives hidden units, then query, key and value.
    width = shapes[name.replace('bias', 'weight')][1]
    is_bias = name.endswith('bias')
    found[: -3 * width] *= 1 if is_bias else 0.3
    found[: -3 * width] += np.float32(HIDDEN * is_bias)
  return found


def _mean_and_std(name, shape, shapes):
  """Returns the mean and the standard deviation of an array's values."""
  if re.fullmatch(_TOKENS, name):
    return 0, TOKEN
  if re.search(r'running_(mean|var)$', name):
    return float(name.endswith('var')), 0.1
  is_relative = 'rel_pos' in name or 'relative_position' in name
  if name.endswith('bias') and len(shape) == 1:
    if re.match(_NORM_PRE, name):
      return 0, TOKEN / 3
    if re.fullmatch(_MLP_IN, name) and not is_relative | _is_gated(shapes):
      return HIDDEN, 0.3
    weight = name.removesuffix('bias') + 'weight'
    is_added = any(re.fullmatch(x, weight) for x in (*_TO_TOKENS, _MLP_OUT))
    return 0, TOKEN / 3 if is_added and not is_relative else 0.1
  if len(shape) <= 1:  # a scale: of a norm, or LayerScale
    return (TOKEN, TOKEN / 3) if re.match(_NORM_PRE, name) else (1, 0.2)
  if is_relative and 'table' in name:
    return 0, 1
  scale = 1 / np.sqrt(np.prod(shape[1:]))  # keeps the standard deviation
  if is_relative or 'backbone' in name:
    return 0, 2 * scale
  # In a deep model with large branches, rounding errors would grow.
  small = TOKEN * np.sqrt(2 / _num_blocks(shapes))
  if any(re.fullmatch(pattern, name) for pattern in _TO_TOKENS):
    return 0, 2 * small * scale
  if re.fullmatch(_MLP_OUT, name):
    return 0, small * scale / _hidden_size(name, shapes)
  mlp_in = r'(.*\.)?(fc1|intermediate\.dense|up_proj)\.weight'
  if re.fullmatch(mlp_in, name) and not _is_gated(shapes):
    return 0, 0.3 * scale
  return 0, 1.5 * scale


def _num_blocks(shapes):
  found = (re.match(r'blocks\.(\d+)\.', name) for name in shapes)
  return 1 + max((int(match[1]) for match in found if match), default=1)


def _is_gated(shapes):
  """Returns whether the MLPs multiply hidden units by others, as in SwiGLU."""
  if any(re.match(_GATES, name) for name in shapes):
    return True
  return any(
    shapes[name][0] == 2 * shapes[name.replace('fc1', 'fc2')][1]
    for name in shapes
    if re.fullmatch(r'blocks\.0\.mlp\.fc1\.weight', name)
  )


def _hidden_size(name, shapes):
  """Returns the size of an MLP's hidden units after activation and norm."""
  if name.rpartition('.')[0].rpartition('.')[0] + '.norm.weight' in shapes:
    return 1
  return 0.5 if _is_gated(shapes) else 0.01
