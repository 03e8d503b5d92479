"""Models by name: `get_model('ViT-B_16', num_classes=10)`.

Imports nothing else from `vit_jax`. Models do not depend on files, data or
training.
"""

import dataclasses
import numbers
import types
import typing
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

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
  """Returns the names of all architectures that `get_model` accepts."""
  return [*variants.VARIANTS, *variants.TWO_TOWERS]


def get_model(
  name: str, /, *, num_classes: int | None = None, **overrides: Any
) -> nn.Module:
  """Returns the linen module of a named architecture.

  Args:
    name: the published name ('ViT-B_16') or a short one ('b16'), always the
      first argument. The keyword `name` is linen's name of the module within
      another module: `get_model('b16', num_classes=0, name='backbone')`.
    num_classes: width of the head. With 0, the model has no head and returns
      features. LiT models have no classes and do not take this argument.
    **overrides: module attributes that replace values of the named
      architecture, such as `dropout_rate=0.1`; also linen's `name` and
      `parent`. LiT models take only these two.

  Raises:
    ValueError: the name or an override is unknown, or values are incompatible.
    TypeError: `num_classes` is missing, or a LiT model gets an argument.
  """
  name = variants.resolve(name)
  if name in variants.TWO_TOWERS:
    if num_classes is not None or overrides.keys() - {'name', 'parent'}:
      raise TypeError(
        f'{name} takes no num_classes and no overrides, but got '
        f'num_classes={num_classes} and {overrides}. Use get_model({name!r}).'
      )
    return _two_towers(**variants.TWO_TOWERS[name], linen=overrides)
  if num_classes is None:
    raise TypeError(f'{name} needs num_classes. Use 0 for features.')
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
      raise ValueError(
        f'{name} has no setting {attribute!r}. Use an attribute of '
        f'{family.__name__}.'
      )
  _check_types(family, overrides)
  return family(num_classes=num_classes, **{**settings, **overrides})


def _check_types(family, overrides):
  """Raises ValueError unless the values have the types of the attributes."""
  hints = typing.get_type_hints(family)
  for name, value in overrides.items():
    if name == 'dtype':
      try:
        jnp.dtype(value)
      except TypeError as error:
        raise ValueError(f'dtype={value!r} is not a dtype of JAX.') from error
    elif not _is_a(value, hints[name]):
      kind = getattr(hints[name], '__name__', hints[name])
      raise ValueError(f'{name}={value!r} must have the type {kind}.')


def _is_a(value, hint):
  """Returns whether a value has the type of an annotation."""
  inner = typing.get_args(hint)
  if isinstance(hint, types.UnionType):
    return any(_is_a(value, kind) for kind in inner)
  if typing.get_origin(hint) is tuple:
    if not isinstance(value, tuple):
      return False
    inner = inner[:1] * len(value) if inner[-1] is ... else inner
    return len(value) == len(inner) and all(map(_is_a, value, inner))
  kinds = {int: numbers.Integral, float: numbers.Real}
  if hint in kinds:
    return isinstance(value, kinds[hint]) and not isinstance(value, bool)
  return not isinstance(hint, type) or isinstance(value, hint)


def _two_towers(image, image_dim, text, text_settings, linen):
  tower = {'bert': BertTower, 'transformer': TextTransformer}[text]
  # Without `parent=None`, a module that calls this would own both towers.
  return TwoTowers(
    img=get_model(image, num_classes=image_dim, dropout_rate=0.0, parent=None),
    txt=tower(**text_settings, parent=None),
    **linen,
  )
