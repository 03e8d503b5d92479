"""Embeddings of images and texts from published LiT models.

Zhai et al. 2021 (arXiv 2111.07991). The embeddings of an image and a matching
text have a large dot product.

  lit = lit_embeddings.load('LiT-B16B')
  zimg = lit_embeddings.embed_images(lit, images)  # [N, E]
  ztxt = lit_embeddings.embed_texts(lit, ['a cat', 'a dog'])  # [2, E]
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import registry
from vit_jax.checkpoint.pretrained import search
from vit_jax.data import preprocess
from vit_jax.data import tensorflow as tf
from vit_jax.data import tokenizer
from vit_jax.data.image_files import decoding
from vit_jax.inference import classify
from vit_jax.inference import inputs
from vit_jax.models import variants

IMAGE_SIZE = 224  # height and width in pixels for all published LiT models
_SUFFIX = {'bert': '.txt', 'transformer': '.model'}  # of vocabulary files


@dataclasses.dataclass(frozen=True)
class Lit:
  """A LiT model with its parameters and tokenizer, made by `load`."""

  model: nn.Module  # models.TwoTowers
  params: Any  # nested dict of arrays
  tokenize: Callable  # texts -> ids [B, L]


def load(
  name: str,
  source: str | None = None,
  vocabulary: str | None = None,
  *,
  folder: str = '.',
  sources: Sequence[str] = registry.SOURCES,
) -> Lit:
  """Loads a LiT model with its published weights and vocabulary.

  Args:
    name: model name, such as 'LiT-B16B'.
    source: weights, as for `search.find`; None for the published file.
    vocabulary: `.txt` (BERT) or `.model` (SentencePiece), as for `search.find`.
      If None, the file next to the weights that has the same base name is
      used, or else the published file.
    folder: folder of files downloaded by hand, as for `search.find`.
    sources: see `registry.SOURCES`.

  Raises:
    ValueError: a file does not exist or does not match the model, or an
      optional library is missing.
  """
  name = variants.resolve(name)
  if name not in variants.TWO_TOWERS:
    raise ValueError(
      f'{name} has no text tower. Use a LiT model: '
      + ', '.join(variants.TWO_TOWERS)
    )
  path = search.find(os.fspath(source or name), folder, sources=sources)
  model = models.get_model(name)
  tokenize = tokenizer.make_tokenizer(
    _find_vocabulary(name, path, vocabulary, folder, sources),
    vocab_size=model.txt.vocab_size,
  )
  params = weights_file.load(path)
  _check_weights(name, params, path)
  return Lit(model, jax.device_put(params), tokenize)


def _find_vocabulary(name, weights_path, vocabulary, folder, sources):
  suffix = _SUFFIX[variants.TWO_TOWERS[name]['text']]
  default_path = os.path.splitext(weights_path)[0] + suffix
  if vocabulary is None and os.path.isfile(default_path):
    return default_path
  vocabulary = os.fspath(vocabulary or name + suffix)
  if os.path.splitext(vocabulary)[1] != suffix:
    raise ValueError(
      f'{vocabulary} is not a vocabulary of {name}. Use a {suffix} file.'
    )
  return search.find(vocabulary, folder, sources=sources)


def _shapes(name):
  """Returns {'/'-joined path: shape} of a LiT model's parameters."""
  images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, tokenizer.MAX_TOKENS), jnp.int32)
  tree = jax.eval_shape(
    lambda images, tokens: models.get_model(name).init(
      jax.random.key(0), images=images, tokens=tokens
    ),
    images,
    tokens,
  )
  return {
    path: x.shape for path, x in weights_file.flatten(tree['params']).items()
  }


def _check_weights(name, params, path):
  """Raises ValueError unless `params` have the shapes of the model `name`."""
  found = {key: x.shape for key, x in weights_file.flatten(params).items()}
  expected = _shapes(name)
  if found == expected:
    return
  if not any(key.startswith('txt/') for key in found):
    raise ValueError(
      f'{path} has no text tower, so it does not contain weights of a LiT '
      'model. Use weights of a LiT model.'
    )
  matching = next(
    (other for other in variants.TWO_TOWERS if _shapes(other) == found), None
  )
  differing = [
    f'  {key}: {found.get(key, "missing")} in the file, '
    f'{expected.get(key, "missing")} in the model'
    for key in sorted(found.keys() | expected.keys())
    if found.get(key) != expected.get(key)
  ]
  raise ValueError(
    f'{path} does not contain weights of {name}'
    + (
      f', but of {matching}. Load this file as {matching}.'
      if matching
      else ':\n' + '\n'.join([*differing, f'Use weights of {name}.'])
    )
  )


@functools.partial(jax.jit, static_argnums=0)
def _embed(model, params, inputs):
  zimg, ztxt, _ = model.apply({'params': params}, **inputs)
  return ztxt if zimg is None else zimg


def embed_images(
  lit: Lit,
  images: Any,
  batch: int = 32,
  pixel_range: tuple[float, float] | None = None,
) -> np.ndarray:
  """Returns unit embeddings: [N, E] of N images, [E] of one image.

  Args:
    lit: from `load`.
    images: one image or several, of the kinds that `inputs` describes. They are
      preprocessed for LiT. Floats must have 224 x 224 pixels.
    batch: largest number of images in a batch.
    pixel_range: see `inputs.read`.

  Raises:
    ValueError: there is no image, or an image cannot be used.
  """
  size = (IMAGE_SIZE,) * 2
  images, is_single = inputs.read(images, size, pixel_range)
  if not len(images):
    raise ValueError('no images to embed. Use at least one image.')
  batch = classify.batch_size(len(images), batch, 1)
  embeddings = []
  for rows in inputs.all_batches(images, size, batch, prepare):
    z = _embed(lit.model, lit.params, {'images': classify.pad(rows, batch)})
    embeddings.append(np.asarray(z)[: len(rows)])
  embeddings = np.concatenate(embeddings)
  return embeddings[0] if is_single else embeddings


def embed_texts(lit: Lit, texts: Sequence[str], batch: int = 64) -> np.ndarray:
  """Returns unit embeddings [N, E] of a list of texts."""
  if not len(texts):
    raise ValueError('no texts to embed. Use at least one text.')
  tokens = lit.tokenize(texts).numpy()
  embeddings = []
  for start in range(0, len(tokens), batch):  # all batches have one shape
    rows = tokens[start : start + batch]
    z = _embed(lit.model, lit.params, {'tokens': classify.pad(rows, batch)})
    embeddings.append(np.asarray(z)[: len(rows)])
  return np.concatenate(embeddings)


def prepare(
  image: Any, size: tuple[int, int], how: decoding.Decoding = decoding.OWN_FILES
) -> Any:
  """Prepares an image for the image tower; `size` is (side, side)."""
  return preprocess.for_lit(image, size[0], how=how)


def read_image(path: str | os.PathLike) -> np.ndarray:
  """Reads an image file for LiT: [224, 224, 3] in [−1, 1].

  Raises:
    ValueError: the file is missing or is not an image.
  """
  try:
    return preprocess.for_lit(
      tf.io.read_file(os.fspath(path)), IMAGE_SIZE
    ).numpy()
  except tf.errors.OpError as error:
    raise ValueError(
      f'{path}: '
      + (
        'the file cannot be decoded as an image. Use another file.'
        if os.path.isfile(path)
        else 'there is no such image file. Check the path.'
      )
    ) from error
