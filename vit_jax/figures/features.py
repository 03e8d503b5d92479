"""Comparisons of features: CKA of layers, norms, principal components.

Shapes:  n images · p, q features · L layers · B batch · D width of a token
         h, w rows and columns of patches
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# --- similarity of layers ----------------------------------------------------


def gram(x: jax.Array) -> jax.Array:
  """Returns the products of all pairs of images [n, n] of features [n, ...].

  The mean over the images is subtracted. HSIC does not depend on it, but its
  sums are more exact without it.
  """
  x = x.reshape(len(x), -1)
  x = x - x.mean(0)
  return jnp.matmul(x, x.T, precision='highest')


def hsic(k: np.ndarray, m: np.ndarray) -> float:
  """Returns the unbiased HSIC of two matrices of products [n, n].

  This is equation 3 of Nguyen et al. (2010.15327), which CKA of minibatches
  uses.

  Raises:
    ValueError: n is below 4.
  """
  n = len(k)
  if n < 4:
    raise ValueError(f'CKA needs at least 4 images in a batch, not {n}.')
  k, m = (np.array(x, np.float64) for x in (k, m))
  for x in (k, m):
    np.fill_diagonal(x, 0)
  product = (k * m.T).sum()
  product += k.sum() * m.sum() / ((n - 1) * (n - 2))
  product -= 2 / (n - 2) * (k.sum(0) @ m.sum(1))
  return product / (n * (n - 3))


def hsic_of_layers(grams: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the HSIC of all pairs of layers [L, L] from products [n, n]."""
  found = np.zeros((len(grams), len(grams)))
  for i, k in enumerate(grams):
    for j, m in enumerate(grams[: i + 1]):
      found[i, j] = found[j, i] = hsic(k, m)
  return found


def cka(sums: np.ndarray) -> np.ndarray:
  """Returns centered kernel alignment [L, L] (Kornblith et al., 1905.00414).

  Args:
    sums: HSIC of all pairs of layers, added over minibatches of equal size.
  """
  own = np.sqrt(np.maximum(np.diag(sums), np.finfo(np.float64).tiny))
  return sums / own / own[:, None]


# --- norms -------------------------------------------------------------------


def outlier_cutoff(norms: np.ndarray, factor: float = 10.0) -> float:
  """Returns median + factor · MAD: larger norms are outliers (2309.16588)."""
  median = np.median(norms)
  return float(median + factor * np.median(np.abs(norms - median)))


# --- principal components of patches -----------------------------------------


def scores(x: np.ndarray, count: int) -> np.ndarray:
  """Returns the first principal components of rows: [n, D] -> [n, count].

  The mean is subtracted. The largest score of each component is positive. If
  there are fewer components, the others are 0.
  """
  x = np.asarray(x, np.float64)
  x = x - x.mean(0)
  left, sizes, _ = np.linalg.svd(x, full_matrices=False)
  found = (left * sizes)[:, :count]
  largest = np.take_along_axis(
    found, np.abs(found).argmax(0, keepdims=True), axis=0
  )
  found = found * np.where(largest < 0, -1, 1)
  return np.pad(found, ((0, 0), (0, count - found.shape[1])))


def foreground(grids: np.ndarray, invert: bool = False) -> np.ndarray:
  """Returns which patches are foreground: [B, h, w, D] -> bool [B, h, w].

  The foreground has a positive first principal component over the patches of
  all images (DINOv2, 2304.07193, figure 1). The sign of a component is
  arbitrary. The chosen sign makes most patches at the borders background.

  Args:
    grids: features of the patches of images of one kind.
    invert: whether to choose the other sign.
  """
  values = scores(grids.reshape(-1, grids.shape[-1]), 1).reshape(
    grids.shape[:-1]
  )
  border = np.ones(values.shape[1:], bool)
  border[1:-1, 1:-1] = False
  sign = 1 if (values[:, border] > 0).mean() <= 0.5 else -1
  return values * (-sign if invert else sign) > 0


def colors(grids: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns three principal components of the foreground as colors.

  Args:
    grids: features of the patches [B, h, w, D].
    mask: foreground, bool [B, h, w].

  Returns:
    Red, green and blue in [0, 1], [B, h, w, 3]; the background is 0.
  """
  found = np.zeros((*mask.shape, 3))
  if mask.any():
    values = scores(grids[mask], 3)
    low, high = values.min(0), values.max(0)
    found[mask] = (values - low) / np.where(high > low, high - low, 1)
  return found


def similarity(grids: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
  """Returns the cosines of a patch with all others: [B, h, w].

  Args:
    grids: features of the patches [B, h, w, D].
    patch: (row, column).
  """
  grids = np.asarray(grids, np.float64)
  norms = np.linalg.norm(grids, axis=-1, keepdims=True)
  units = grids / np.maximum(norms, np.finfo(np.float64).tiny)
  return np.clip(
    np.einsum('bhwd,bd->bhw', units, units[:, patch[0], patch[1]]), -1, 1
  )
