"""Models by name: `get_model('ViT-B_16', num_classes=10)`.

Imports `parallel` alone: models know nothing of files, data and training.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from vit_jax.models import variants
from vit_jax.models.bert import BertTower
from vit_jax.models.bit import BitResNet
from vit_jax.models.lit import TextTransformer
from vit_jax.models.lit import TwoTowers
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer

__all__ = [
  'BertTower',
  'BitResNet',
  'MlpMixer',
  'TextTransformer',
  'TwoTowers',
  'VisionTransformer',
  'get_model',
  'model_names',
]


def model_names() -> list[str]:
  """All names that `get_model` knows, as a list."""
  return [*variants.VARIANTS, *variants.TWO_TOWERS]


def get_model(
  name: str, *, num_classes: int | None = None, **overrides: Any
) -> nn.Module:
  """Returns the linen module of a named architecture.

  Args:
    name: as published ('ViT-B_16'), or short ('b16').
    num_classes: width of the head; 0 for none, which gives features. LiT has
      no classes, and takes none.
    **overrides: attributes of the module that replace the named
      architecture's own, such as `dropout_rate=0.1`. LiT takes none.

  Raises:
    ValueError: unknown name or override, or values that do not go together.
    TypeError: `num_classes` is missing, or given to LiT.
  """
  name = variants.resolve(name)
  if name in variants.TWO_TOWERS:
    if num_classes is not None or overrides:
      raise TypeError(f'{name} takes no num_classes and no overrides')
    return _two_towers(**variants.TWO_TOWERS[name])
  if num_classes is None:
    raise TypeError(f'{name} needs num_classes; 0 for features')
  settings = variants.VARIANTS[name]
  family = (
    MlpMixer
    if 'tokens_mlp_dim' in settings
    else BitResNet
    if 'width_factor' in settings
    else VisionTransformer
  )
  known = {field.name for field in dataclasses.fields(family)}
  for attribute in overrides:
    if attribute not in known:
      raise ValueError(f'{name} has no setting {attribute!r}')
  return family(num_classes=num_classes, **{**settings, **overrides})


def _two_towers(image, image_dim, text, text_settings):
  tower = {'bert': BertTower, 'transformer': TextTransformer}[text]
  return TwoTowers(
    img=get_model(image, num_classes=image_dim, dropout_rate=0.0),
    txt=tower(**text_settings),
  )
