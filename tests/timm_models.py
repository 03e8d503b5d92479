"""Models of timm with the weights of `placed_values`, and their outputs.

This module needs the extra `interop`.

Shapes:  B batch · H, W image height, width · D width of a token · K classes
"""

import pathlib
import warnings

import numpy as np
import timm
import torch
import torch.nn.functional as F

from tests import placed_values

PREFIXES = ('beit', 'deit', 'eva', 'flexivit', 'mixer_', 'vit_')
DEPTH = 2
MOST_PARAMETERS = 120_000_000
_GELUS = (
  torch.nn.GELU,
  timm.layers.GELU,
  timm.layers.GELUTanh,
  timm.layers.QuickGELU,
)


def names() -> list[str]:
  """Returns all architectures like ViT, in the order of the alphabet."""
  return sorted(n for n in timm.list_models() if n.startswith(PREFIXES))


def depth_settings(name: str) -> dict:
  """Returns the arguments for two blocks; a Mixer always has all its blocks."""
  if name.startswith('mixer_'):
    return {}
  if name.endswith('sapiens2'):  # one number of heads for each block
    with torch.device('meta'):
      blocks = timm.create_model(name).blocks
    middle = blocks[len(blocks) // 2].attn
    return dict(
      depth=DEPTH, num_kv_heads=[blocks[0].attn.num_heads, kv_heads(middle)]
    )
  return dict(depth=DEPTH)


def kv_heads(attention) -> int:
  """Returns the number of heads of keys and values."""
  width = attention.k_proj.weight.shape[0]
  return width * attention.num_heads // attention.q_proj.weight.shape[0]


def num_parameters(name: str, **settings) -> int:
  """Returns the number of parameters without making them."""
  with torch.device('meta'):
    model = timm.create_model(name, **settings)
  return sum(x.numel() for x in model.parameters())


def create(name: str, **settings) -> torch.nn.Module:
  """Returns a model with the weights of `placed_values`, in evaluation."""
  model = timm.create_model(name, **settings).eval()
  arrays = {
    name: array
    for name, array in model.state_dict().items()
    if array.is_floating_point()
  }
  placed = placed_values.values(
    {name: tuple(array.shape) for name, array in arrays.items()}
  )
  with torch.no_grad():
    for name, array in arrays.items():
      array.copy_(torch.from_numpy(placed[name]))
  return model


def save(model: torch.nn.Module, folder: pathlib.Path, settings: dict) -> None:
  """Saves a model as timm does for the Hub; see `depth_settings`."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    timm.models.save_for_hf(
      model, str(folder), model_args=settings, safe_serialization=True
    )


def image_size(model: torch.nn.Module) -> tuple[int, int]:
  return tuple(model.pretrained_cfg['input_size'][1:])


def outputs(model: torch.nn.Module, images: np.ndarray) -> dict:
  """Returns logits, and features at three places.

  Args:
    model: see `create`.
    images: [B, H, W, 3] in [−1, 1]; they get the model's mean and std.

  Returns:
    {'logits': [B, K], 'features': input of the head [B, D], 'tokens': output
    of the last block [B, T, D], 'number of first tokens': class token and
    registers}. Without head, there are no logits.
  """
  found = {}

  def keep(_, inputs, output):
    found['tokens'] = output.numpy()

  with torch.no_grad():
    handle = model.blocks[-1].register_forward_hook(keep)
    encoded = model.forward_features(_normalized(model, images))
    handle.remove()
    logits = model.forward_head(encoded)
    features = model.forward_head(encoded, pre_logits=True)
  if model.num_classes:
    found['logits'] = logits.numpy()
  found['features'] = features.numpy()
  return found


def _normalized(model, images):
  """Returns [B, 3, H, W] with the mean and std of the model's config."""
  config = model.pretrained_cfg
  x = (images / 2 + 0.5 - config['mean']) / config['std']
  return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32).copy())


# --- what a mistake would change ----------------------------------------------


def effects(
  model: torch.nn.Module, images: np.ndarray, expected: np.ndarray
) -> dict[str, float]:
  """Returns how much logits change with another GELU, and another epsilon.

  `expected` are the outputs of the head, or without head, of the pooling.
  'gelu' is the change from exact to tanh or back, 'epsilon' that of an epsilon
  ten times larger, as fractions of the largest logit. Without GELU, there is
  only 'epsilon'.
  """
  x = _normalized(model, images)
  gelus = [m for m in model.modules() if isinstance(m, _GELUS)]
  norms = [m for m in model.modules() if hasattr(m, 'eps')]
  with torch.no_grad():
    hooks = [m.register_forward_hook(_other_gelu) for m in gelus]
    with_gelu = model(x).numpy()
    for hook in hooks:
      hook.remove()
    epsilons = [m.eps for m in norms]
    for norm in norms:
      norm.eps *= 10
    with_epsilon = model(x).numpy()
    for norm, epsilon in zip(norms, epsilons, strict=True):
      norm.eps = epsilon
  found = {'epsilon': relative(with_epsilon, expected)}
  return found | ({'gelu': relative(with_gelu, expected)} if gelus else {})


def _other_gelu(module, inputs, _):
  is_tanh = isinstance(module, timm.layers.GELUTanh)
  return F.gelu(inputs[0], approximate='none' if is_tanh else 'tanh')


def relative(found: np.ndarray, expected: np.ndarray) -> float:
  """Returns the largest difference as a fraction of the largest value."""
  return float(np.abs(found - expected).max() / np.abs(expected).max())
