"""The settings `config.augment`, and the order of the changes to a batch.

Shapes:  B batch · H, W height and width · K classes
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from vit_jax.augment import affine
from vit_jax.augment import blends
from vit_jax.augment import erasing
from vit_jax.augment import grey_levels
from vit_jax.augment import mixing
from vit_jax.augment import policy_names

# Numbers that are folded into the key of a step, one for each purpose.
_PAD, _POLICY, _JITTER, _ERASING, _MIXING = range(5)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings `config.augment`; `base_config` describes them."""

  policy: str
  jitter: float
  erasing: float
  pad: int
  mixup: float
  cutmix: float
  mix_rules: str
  mix_prob: float
  switch_prob: float
  mix_mode: str
  mix_off: float

  @property
  def mixes(self) -> bool:
    """Whether images are mixed."""
    return bool((self.mixup or self.cutmix) and self.mix_prob)

  @property
  def changes(self) -> list[str]:
    """Names of the settings that change a batch."""
    names = ['pad', 'policy', 'jitter', 'erasing']
    names += ['mixup', 'cutmix'] if self.mix_prob else []
    return [name for name in names if getattr(self, name)]

  @property
  def is_on(self) -> bool:
    """Whether anything changes a batch."""
    return bool(self.changes)

  def check(self, batch: int) -> None:
    """Raises ValueError for the first setting with a wrong value.

    Args:
      batch: number of rows of a batch.
    """
    if self.policy:
      policy_names.parse(self.policy)
    for name in ('jitter', 'pad', 'mixup', 'cutmix'):
      if not 0 <= getattr(self, name) < math.inf:
        raise _error(name, getattr(self, name), 'must be at least 0 (0: off)')
    for name in ('erasing', 'mix_prob', 'switch_prob', 'mix_off'):
      if not 0 <= getattr(self, name) <= 1:
        raise _error(name, getattr(self, name), 'must be from 0 to 1')
    for name, known in (
      ('mix_rules', mixing.RULES),
      ('mix_mode', mixing.MODES),
    ):
      if getattr(self, name) not in known:
        raise _error(
          name, repr(getattr(self, name)), f'is not one of {", ".join(known)}'
        )
    if self.mix_rules == 'big_vision' and self.mix_mode != 'batch':
      raise _error(
        'mix_mode',
        repr(self.mix_mode),
        "needs config.augment.mix_rules='timm', because big_vision draws one "
        "number for the batch. Use config.augment.mix_mode='batch'",
      )
    if self.mixes and batch < 2:
      raise ValueError(
        f'config.batch={batch}: config.augment.mixup and config.augment.cutmix '
        'mix two rows of a batch. Use a batch of 2 or more'
      )
    if self.mixes and self.mix_rules == 'timm' and batch % 2:
      raise ValueError(
        f'config.batch={batch} must be even, because mixing pairs row i with '
        'row batch - 1 - i (config.augment.mix_rules=timm). Use '
        f'config.batch={batch + 1} or config.augment.mix_rules=big_vision'
      )

  def make(
    self, num_classes: int | None, total_steps: int | None = None
  ) -> Callable:
    """Returns the augmentation (key, batch, step) -> batch.

    It changes `image` [B, H, W, 3], uint8 or float in [-1, 1], to float32 in
    [-1, 1]. Noise of erasing may be outside of this range. If images are mixed,
    `label` [B] or [B, K] becomes float32 [B, K].

    Args:
      num_classes: K, for labels that are class numbers.
      total_steps: steps of the run; only used with `mix_off`.
    """
    policy = policy_names.parse(self.policy) if self.policy else None
    end = math.ceil((1 - self.mix_off) * total_steps) if self.mix_off else None
    mixer = mixing.Mixing(
      mixup=self.mixup,
      cutmix=self.cutmix,
      rules=self.mix_rules,
      rate=self.mix_prob,
      switch_rate=self.switch_prob,
      mode=self.mix_mode,
      end=end,
    )

    def augment(key, batch, step):
      def keys(purpose):
        """Returns a key for each row of the global batch."""
        rows = jnp.arange(len(batch['image']))
        of_purpose = jax.random.fold_in(key, purpose)
        return jax.vmap(jax.random.fold_in, (None, 0))(of_purpose, rows)

      def each(change, purpose, images, **settings):
        """Returns the images, each changed with its own key."""
        change = functools.partial(change, **settings)
        return jax.vmap(change)(keys(purpose), images)

      images = batch['image']
      if self.pad:
        _check_pad(self.pad, images.shape)
        images = each(affine.pad_and_crop, _PAD, images, pad=self.pad)
      if policy or self.jitter:
        _check_channels(images.shape)
        images = grey_levels.from_images(images)
      if policy:
        images = policy.apply(keys(_POLICY), images)
      if self.jitter:
        images = each(blends.jitter, _JITTER, images, strength=self.jitter)
      images = grey_levels.to_images(images)
      if self.erasing:
        images = each(erasing.erase, _ERASING, images, rate=self.erasing)
      batch = {**batch, 'image': images}
      if self.mixes:
        labels = batch['label']
        if labels.ndim == 1:
          labels = jax.nn.one_hot(labels, num_classes)
        batch = mixer.apply(
          jax.random.fold_in(key, _MIXING),
          {**batch, 'label': labels.astype(jnp.float32)},
          step,
        )
      return batch

    return augment


def _error(name, value, problem):
  return ValueError(f'config.augment.{name}={value} {problem}')


def _check_pad(pad, shape):
  if pad >= min(shape[1:3]):
    raise ValueError(
      f'config.augment.pad={pad} must be smaller than the images, which have '
      f'{shape[1]} x {shape[2]} pixels'
    )


def _check_channels(shape):
  if shape[-1] != 3:
    raise ValueError(
      'config.augment.policy and config.augment.jitter change colors, so they '
      f'need images with 3 channels, but the images have {shape[-1]}'
    )
