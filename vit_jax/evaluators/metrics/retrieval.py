"""Recall of image and text retrieval, from embeddings.

Shapes:  N images · M captions · E width of the embeddings
"""

from collections.abc import Sequence

import numpy as np

_ROWS = 1024  # of similarities at once


def measure(
  images: np.ndarray,
  texts: np.ndarray,
  owners: np.ndarray,
  ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
  """Returns recall@k of images → texts and of texts → images.

  An image is found if at least one of its captions is among the k nearest
  captions. A caption is found if its image is among the k nearest images. At
  ties, the others count as nearer, so equal embeddings find nothing.

  Args:
    images: unit embeddings [N, E].
    texts: unit embeddings [M, E].
    owners: the image of each caption [M]; each image has at least one.
    ranks: values of k.
  """
  to_text = np.zeros(len(images), np.int64)  # nearer captions of others
  for start in range(0, len(images), _ROWS):
    scores = images[start : start + _ROWS] @ texts.T
    own = owners == np.arange(start, start + len(scores))[:, None]
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    to_text[start : start + _ROWS] = (~own & (scores >= best)).sum(1)
  to_image = np.zeros(len(texts), np.int64)  # nearer images
  for start in range(0, len(texts), _ROWS):
    scores = texts[start : start + _ROWS] @ images.T
    own = np.take_along_axis(
      scores, owners[start : start + _ROWS, None], axis=1
    )
    to_image[start : start + _ROWS] = (scores >= own).sum(1) - 1
  return {
    f'{name}_recall_{k}': float((found < k).mean())
    for name, found in (('image_to_text', to_text), ('text_to_image', to_image))
    for k in ranks
  }
