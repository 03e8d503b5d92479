"""Zero-shot classification with LiT and a list of class names.

Zhai et al. 2021 (arXiv 2111.07991), section 4. The embedding of a class is the
mean embedding of texts with its name. An image belongs to the class with the
nearest embedding.

  lit = lit_embeddings.load('LiT-B16B')
  model, params = lit_classifier.make_classifier(lit, ['cat', 'dog'])
  logits = model.apply({'params': params}, images)

Shapes:  B batch · K classes · P prompts · E width of the embeddings
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import class_names
from vit_jax.data import tokenizer
from vit_jax.inference import lit_embeddings
from vit_jax.inference import loaded_model
from vit_jax.models.layers import patches

PROMPTS = ('a photo of a {}.',)


class Classifier(nn.Module):
  """Computes logits: exp(t) times products of image and class embeddings.

  Attributes:
    towers: the two towers of LiT.
    num_classes: number of classes, K. With 0, the model returns the image
      embeddings [B, E].
  """

  towers: nn.Module
  num_classes: int

  @property
  def block_names(self) -> list[str]:
    """Returns the names of the image tower's blocks."""
    return self.towers.img.block_names

  @nn.nowrap
  def layout(self, height: int, width: int) -> patches.Layout:
    """Returns the order of the image tower's tokens."""
    return self.towers.img.layout(height, width)

  @nn.compact
  def __call__(self, images, *, train=False):  # [B, H, W, 3] -> [B, K]
    zimg, _, out = self.towers(images=images, train=train)
    if not self.num_classes:
      return zimg
    classes = self.param(
      'classes', nn.initializers.zeros, (self.num_classes, zimg.shape[-1])
    )
    return logits(zimg, classes, out['t'])


def logits(
  zimg: jax.Array, classes: jax.Array, temperature: jax.Array
) -> jax.Array:
  """Returns logits [B, K] from unit embeddings [B, E], [K, E] and exp(t)."""
  return temperature * jnp.matmul(zimg, classes.T)


def embed_classes(
  lit: lit_embeddings.Lit,
  names: Sequence[str],
  prompts: Sequence[str] = PROMPTS,
) -> np.ndarray:
  """Returns class embeddings [K, E]: normalized means over the prompts.

  Args:
    lit: a model from `lit_embeddings.load`.
    names: class names, all of them different.
    prompts: texts in which {} is replaced by the class name.

  Raises:
    ValueError: the names or the prompts cannot be used.
  """
  check_classes(names, prompts)
  texts = [prompt.replace('{}', name) for name in names for prompt in prompts]
  _check_tokens(lit, texts, names)
  z = lit_embeddings.embed_texts(lit, texts)  # [K·P, E]
  return unit_mean(z.reshape(len(names), len(prompts), -1))


def unit_mean(z: np.ndarray) -> np.ndarray:
  """Averages embeddings [K, P, E] over prompts; normalizes the means [K, E]."""
  mean = z.mean(1)
  return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def check_classes(names: Sequence[str], prompts: Sequence[str]) -> None:
  """Raises ValueError unless class names and prompts can be used."""
  for what, texts in (('class names', names), ('prompts', prompts)):
    if isinstance(texts, str):
      raise ValueError(f'{what}: {texts!r} is one text. Use a list of texts.')
  if len(names) < 2:
    raise ValueError(f'class names {list(names)}: use at least two classes.')
  seen = {}
  for name in names:
    key = ' '.join(name.split()).casefold()
    if not key:
      raise ValueError('a class name is empty. Remove the name or correct it.')
    if key in seen:
      raise ValueError(
        f'the class name {name!r} is repeated'
        + ('' if seen[key] == name else f', also as {seen[key]!r}')
        + '. Use each class name once.'
      )
    seen[key] = name
  if not prompts:
    raise ValueError("no prompts. Use at least one, such as 'a photo of a {}.'")
  for prompt in prompts:
    if '{}' not in prompt:
      raise ValueError(
        f'prompt {prompt!r} has no {{}} for the class name. Use a prompt such '
        "as 'a photo of a {}.'"
      )


def _check_tokens(lit, texts, names):
  """Raises ValueError if two classes have the same tokens in all prompts."""
  ids = lit.tokenize(texts).numpy().reshape(len(names), -1)
  _, first, which = np.unique(
    ids, axis=0, return_index=True, return_inverse=True
  )
  same = [
    (names[first[group]], name)
    # NumPy 2.0 returns `which` as [N, 1], other versions as [N].
    for group, name in zip(which.ravel(), names, strict=True)
    if names[first[group]] != name
  ]
  if same:
    raise ValueError(
      f'the classes {same[0][0]!r} and {same[0][1]!r} have the same tokens. '
      f'Texts are cut after {tokenizer.MAX_TOKENS} tokens, and words that are '
      'not in the vocabulary become one unknown token. Use shorter prompts or '
      'other class names.'
    )


def make_classifier(
  lit: lit_embeddings.Lit,
  names: Sequence[str],
  prompts: Sequence[str] = PROMPTS,
) -> tuple[Classifier, dict[str, Any]]:
  """Returns a zero-shot classifier and its parameters.

  Returns:
    (`Classifier`, params): `apply({'params': params}, images) -> [B, K]`.

  Raises:
    ValueError: see `embed_classes`.
  """
  params = {
    'towers': lit.params,
    'classes': jnp.asarray(embed_classes(lit, names, prompts)),
  }
  return Classifier(lit.model, len(names)), params


def make_trained_model(
  lit: lit_embeddings.Lit,
  names: Sequence[str],
  prompts: Sequence[str] = PROMPTS,
) -> loaded_model.LoadedModel:
  """Returns the classifier of `make_classifier` as a `LoadedModel`.

  `features` of this model returns image embeddings [B, E].
  """
  size = (lit_embeddings.IMAGE_SIZE,) * 2
  return loaded_model.LoadedModel(
    'LiT',
    'LiT',
    {},
    *make_classifier(lit, names, prompts),
    size,
    size,
    tuple(names),
    prepare=lit_embeddings.prepare,
  )


def readable(names: Sequence[str]) -> tuple[str, ...]:
  """Converts the class names of a dataset to words, such as 'aquarium fish'.

  Underscores become spaces. In TFDS, the class names of ImageNet are WordNet
  ids. These ids are replaced by words, too.
  """
  if tuple(names) == class_names.imagenet_ids(1000):
    return class_names.imagenet(1000)
  return tuple(name.replace('_', ' ').strip() for name in names)
