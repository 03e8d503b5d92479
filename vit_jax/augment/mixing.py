"""Mixup and CutMix of a batch.

Mixup: Zhang et al. 2017, arXiv 1710.09412. CutMix: Yun et al. 2019, arXiv
1905.04899. Partners are rows of the global batch, so the result does not depend
on devices, processes and micro-batches.

Shapes:  B batch · H, W height and width · C channels · K classes
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from vit_jax.augment import operations

RULES = ('timm', 'big_vision')
MODES = ('batch', 'elem', 'pair')
_QUANTILES = 4096  # intervals between quantiles of the Beta distribution


@dataclasses.dataclass(frozen=True)
class Mixing:
  """How images are mixed.

  With the rules of timm, the partner of row i is row B - 1 - i. With those of
  big_vision, it is row i - 1, and the larger part is always of row i.

  Attributes:
    mixup: parameter α of mixup: λ ~ Beta(α, α). 0: no mixup.
    cutmix: parameter α of CutMix. 0: no CutMix.
    rules: one of `RULES`.
    rate: probability that images are mixed.
    switch_rate: probability of CutMix, if there is also mixup.
    mode: one of `MODES`: λ and the choice are drawn for the batch, for each row
      (elem), or for each row and its partner (pair).
    end: step before which images are mixed. None: in all steps.
  """

  mixup: float
  cutmix: float
  rules: str = 'timm'
  rate: float = 1.0
  switch_rate: float = 0.5
  mode: str = 'batch'
  end: int | None = None

  def draw(
    self, key: jax.Array, size: tuple[int, int]
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws (whether it is CutMix, fraction of the image, box of the partner).

    Args:
      key: random key of the batch, the row or the pair.
      size: (H, W) of the images.

    Returns:
      bool []; λ, float32 []; the box of CutMix, see `operations.in_box`.
    """
    keys = jax.random.split(key, 4)
    cuts = jax.random.uniform(keys[0]) < self.switch_rate
    if not (self.mixup and self.cutmix):
      cuts = jnp.bool_(self.cutmix)
    fraction = jnp.where(
      cuts, draw_beta(keys[1], self.cutmix), draw_beta(keys[1], self.mixup)
    )
    if self.rules == 'big_vision':
      fraction = jnp.maximum(fraction, 1 - fraction)
    mixes = jax.random.uniform(keys[2]) < self.rate
    fraction = jnp.where(mixes, fraction, 1.0)
    box = draw_box(keys[3], fraction, size)
    in_box = (box[1] - box[0]) * (box[3] - box[2]) / (size[0] * size[1])
    return cuts, jnp.where(cuts, 1 - in_box, fraction), box

  def apply(
    self, key: jax.Array, batch: Mapping[str, Any], step: jax.Array | int
  ) -> dict[str, Any]:
    """Returns a batch with mixed images and labels.

    Args:
      key: random key of the step.
      batch: `image` [B, H, W, C], float32, and `label` [B, K], float32.
      step: number of completed updates.
    """
    image, label = batch['image'], batch['label']
    count, size = len(image), image.shape[1:3]
    rows = jnp.arange(count)
    group = {
      'batch': jnp.zeros_like(rows),
      'elem': rows,
      'pair': jnp.minimum(rows, count - 1 - rows),
    }[self.mode]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, group)
    cuts, fraction, boxes = jax.vmap(lambda key: self.draw(key, size))(keys)
    inside = jax.vmap(lambda box: operations.in_box(box, size))(boxes)
    own = jnp.where(cuts[:, None, None], ~inside, fraction[:, None, None])
    if self.end is not None:
      fraction, own = (
        jnp.where(step < self.end, x, 1.0) for x in (fraction, own)
      )
    fraction, own = fraction[:, None], own[..., None]
    return {
      **batch,
      'image': own * image + (1 - own) * self.partners(image),
      'label': fraction * label + (1 - fraction) * self.partners(label),
    }

  def partners(self, x: jax.Array) -> jax.Array:
    """Returns the rows of the partners, [B, …]."""
    return jnp.roll(x, 1, axis=0) if self.rules == 'big_vision' else x[::-1]


def draw_beta(key: jax.Array, alpha: float) -> jax.Array:
  """Returns λ ~ Beta(α, α), float32 []; 1 for α = 0.

  It interpolates the quantiles of the distribution. `jax.random.beta` has a
  loop that ends when all rows are accepted. With several devices, each
  iteration would wait for all of them.

  Args:
    key: random key.
    alpha: α.
  """
  if not alpha:
    return jnp.float32(1)
  quantiles = special.betaincinv(
    alpha, alpha, np.linspace(0, 1, _QUANTILES + 1)
  )
  quantiles = jnp.asarray(quantiles, jnp.float32)
  place = jax.random.uniform(key) * _QUANTILES
  below = jnp.minimum(jnp.floor(place).astype(jnp.int32), _QUANTILES - 1)
  low, high = quantiles[below], quantiles[below + 1]
  return low + (place - below) * (high - low)


def draw_box(
  key: jax.Array, fraction: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Returns the box of CutMix around a uniform center, cut at the border.

  Args:
    key: random key.
    fraction: λ, the intended fraction outside of the box.
    size: (H, W).

  Returns:
    int32 [4]; see `operations.in_box`.
  """
  limits = jnp.array(size)
  half = (limits * jnp.sqrt(1 - fraction)).astype(jnp.int32) // 2
  center = jax.random.randint(key, (2,), 0, limits)
  box = jnp.stack([center - half, center + half], axis=1)
  return jnp.clip(box, 0, limits[:, None]).ravel()
