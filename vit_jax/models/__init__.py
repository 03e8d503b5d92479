"""Models by name: `get_model('ViT-B_16', num_classes=10)`."""

import dataclasses

from vit_jax.models import variants
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.vit import VisionTransformer

__all__ = ['MlpMixer', 'VisionTransformer', 'get_model', 'model_names']


def model_names():
  """All names that `get_model` knows, as a list."""
  return list(variants.VARIANTS)


def get_model(name, *, num_classes, **overrides):
  """Returns the linen module of a named architecture.

  Args:
    name: as published ('ViT-B_16'), or short ('b16').
    num_classes: width of the head; 0 for none, which gives features.
    **overrides: attributes of the module that replace the named
      architecture's own, such as `dropout_rate=0.1`.

  Raises:
    ValueError: unknown name, or values that do not go together.
    TypeError: an override is no attribute of the model.
  """
  name = variants.resolve(name)
  settings = variants.VARIANTS[name]
  family = MlpMixer if 'tokens_mlp_dim' in settings else VisionTransformer
  known = {field.name for field in dataclasses.fields(family)}
  for attribute in overrides:
    if attribute not in known:
      raise TypeError(f'{name} has no attribute {attribute!r}')
  return family(num_classes=num_classes, **{**settings, **overrides})
