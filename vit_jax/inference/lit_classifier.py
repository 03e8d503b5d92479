"""LiT with a list of class names: a classifier that was never trained as one.

Zhai et al. 2021 (arXiv 2111.07991), section 4: each class is the embedding of
texts that name it, and an image is of the class whose embedding is nearest.

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

from vit_jax.checkpoint import trained_model
from vit_jax.data import class_names
from vit_jax.data import preprocess
from vit_jax.data import tokenizer
from vit_jax.inference import lit_embeddings

PROMPTS = ('a photo of a {}.',)


class Classifier(nn.Module):
  """Images to logits: exp(t) times the products of image and class embeddings.

  Attributes:
    towers: of LiT.
    num_classes: K.
  """

  towers: nn.Module
  num_classes: int

  @nn.compact
  def __call__(self, images, *, train=False):  # [B, H, W, 3] -> [B, K]
    zimg, _, out = self.towers(images=images, train=train)
    classes = self.param(
      'classes', nn.initializers.zeros, (self.num_classes, zimg.shape[-1])
    )
    return logits(zimg, classes, out['t'])


def logits(
  zimg: jax.Array, classes: jax.Array, temperature: jax.Array
) -> jax.Array:
  """[B, K] from embeddings [B, E] and [K, E] of length one, and exp(t)."""
  return temperature * jnp.matmul(zimg, classes.T)


def embed_classes(
  lit: lit_embeddings.Lit,
  names: Sequence[str],
  prompts: Sequence[str] = PROMPTS,
) -> np.ndarray:
  """Embeddings [K, E] of classes: the mean over prompts, made of length one.

  Args:
    lit: from `lit_embeddings.load`.
    names: of the classes, each different.
    prompts: texts in which {} stands for the name of a class.

  Raises:
    ValueError: the names or the prompts cannot be used.
  """
  check_classes(names, prompts)
  texts = [prompt.replace('{}', name) for name in names for prompt in prompts]
  _check_tokens(lit, texts, names)
  z = lit_embeddings.embed_texts(lit, texts)  # [K·P, E]
  return unit_mean(z.reshape(len(names), len(prompts), -1))


def unit_mean(z: np.ndarray) -> np.ndarray:
  """Means [K, E] of embeddings [K, P, E] over prompts, made of length one."""
  mean = z.mean(1)
  return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def check_classes(names: Sequence[str], prompts: Sequence[str]) -> None:
  """Raises a ValueError unless names and prompts can be classified by."""
  for what, texts in (('class names', names), ('prompts', prompts)):
    if isinstance(texts, str):
      raise ValueError(f'{what}: {texts!r} is one text; give a list of texts')
  if len(names) < 2:
    raise ValueError(f'class names {list(names)}: give two or more')
  seen = {}
  for name in names:
    key = ' '.join(name.split()).casefold()
    if not key:
      raise ValueError('a class name is empty')
    if key in seen:
      raise ValueError(
        f'class {name!r} is named twice'
        + ('' if seen[key] == name else f', also as {seen[key]!r}')
      )
    seen[key] = name
  if not prompts:
    raise ValueError("no prompts: give one or more, such as 'a photo of a {}.'")
  for prompt in prompts:
    if '{}' not in prompt:
      raise ValueError(
        f'prompt {prompt!r} has no {{}} where the name of a '
        "class goes, as in 'a photo of a {}.'"
      )


def _check_tokens(lit, texts, names):
  """Raises a ValueError if two classes are the same to the text tower."""
  ids = lit.tokenize(texts).numpy().reshape(len(names), -1)
  _, first, which = np.unique(
    ids, axis=0, return_index=True, return_inverse=True
  )
  same = [
    (names[first[group]], name)
    for group, name in zip(which, names, strict=True)
    if names[first[group]] != name
  ]
  if same:
    raise ValueError(
      f'classes {same[0][0]!r} and {same[0][1]!r} become the same tokens: '
      f'texts are cut after {tokenizer.MAX_TOKENS} tokens, and what the '
      'vocabulary lacks is one unknown token. Use shorter prompts or other '
      'names'
    )


def make_classifier(
  lit: lit_embeddings.Lit,
  names: Sequence[str],
  prompts: Sequence[str] = PROMPTS,
) -> tuple[Classifier, dict[str, Any]]:
  """A model of images, and its parameters, that tells classes by their names.

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
) -> trained_model.TrainedModel:
  """The classifier of `make_classifier`, for all that takes trained models."""
  size = (lit_embeddings.IMAGE_SIZE,) * 2
  return trained_model.TrainedModel(
    'LiT',
    'LiT',
    {},
    *make_classifier(lit, names, prompts),
    size,
    size,
    tuple(names),
  )


def readable(names: Sequence[str]) -> tuple[str, ...]:
  """Class names of a data set as words: 'aquarium fish' of 'aquarium_fish'.

  The WordNet ids by which TFDS names ImageNet's classes become names too.
  """
  if tuple(names) == class_names.imagenet_ids(1000):
    return class_names.imagenet(1000)
  return tuple(name.replace('_', ' ').strip() for name in names)


def prepare(image: Any, size: tuple[int, int]) -> Any:
  """The image of a tower, from encoded bytes; `size` is (side, side)."""
  return preprocess.for_lit(image, size[0])
