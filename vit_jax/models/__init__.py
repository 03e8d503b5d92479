"""Models by name: `get_model('ViT-B_16', num_classes=10)`."""

from vit_jax.models import variants
from vit_jax.models.vit import VisionTransformer

__all__ = ['VisionTransformer', 'get_model', 'model_names']


def model_names():
  """All names that `get_model` knows, as a list."""
  return list(variants.VARIANTS)


def get_model(name, *, num_classes, **overrides):
  """Returns the linen module of a named architecture.

  Args:
    name: as published ('ViT-B_16'), or short ('b16').
    num_classes: width of the head; 0 for none, which gives features.
    **overrides: attributes of `VisionTransformer` that replace the named
      architecture's own, such as `dropout_rate=0.1`.

  Raises:
    ValueError: unknown name, or values that do not go together.
    TypeError: an override is no attribute of the model.
  """
  settings = variants.VARIANTS[variants.resolve(name)]
  return VisionTransformer(num_classes=num_classes, **{**settings, **overrides})
