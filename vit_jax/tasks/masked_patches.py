"""Masked patch prediction: ViT paper (arXiv 2010.11929), appendix B.1.2.

Half of the patch embeddings of an image are corrupted: 80 % of them are
masked, 10 % become the embedding of another patch of the image, and 10 % stay
as they are. For each corrupted patch, a dense layer predicts the patch. The
number of corrupted patches is exactly round(N · ratio).

Shapes:  B batch · N patches · P patch size · C channels
         Q colors of a patch: 1 or 16 · F outputs for each patch
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from vit_jax.data import input_pipeline
from vit_jax.models.layers import patches
from vit_jax.models.pretraining import masked_patches
from vit_jax.tasks import reconstruction
from vit_jax.tasks import task

TARGETS = ('color', 'color_4x4', 'l2', 'l1')
_LEVELS = 8  # of a channel: 3 bits
_MASKED, _EXCHANGED = 0.8, 0.1  # fractions of the corrupted patches


def check(config: ConfigDict) -> None:
  """Raises ValueError for a setting that cannot be used."""
  reconstruction.check_whole_patches(config)
  ratio = config.masked_patches.ratio
  reconstruction.check_ratio(ratio, 'config.masked_patches.ratio')
  target = config.masked_patches.target
  if target not in TARGETS:
    raise ValueError(
      f'config.masked_patches.target={target!r} is not one of '
      + ', '.join(TARGETS)
    )


def color_classes(
  images: jax.Array, side: int, cells: int = 1
) -> jax.Array:  # -> int32 [B, N, cells²]
  """Returns the class of the mean color of each patch, or of its cells.

  The mean of a channel, in 0…255, has 8 levels. The class of an RGB patch is
  64 · r + 8 · g + b. That of a gray patch is its level.

  Args:
    images: [B, H, W, C] in [-1, 1].
    side: P.
    cells: number of cells in each direction of a patch.
  """
  cell = side // cells
  pixels = jnp.clip(images.astype(jnp.float32) * 127.5 + 127.5, 0, 255)
  batch, height, width, channels = images.shape
  means = pixels.reshape(
    batch, height // cell, cell, width // cell, cell, channels
  ).mean((2, 4))
  # Float32 means can be a little below a whole level.
  levels = jnp.floor(means * (_LEVELS / 256) + 1e-4).astype(jnp.int32)
  classes = jnp.zeros(levels.shape[:-1], jnp.int32)
  for channel in range(channels):
    classes = classes * _LEVELS + levels[..., channel]
  return patches.patchify(classes[..., None], cells)


def num_outputs(target: str, side: int, channels: int) -> int:
  """Returns F for a target of `TARGETS`, patch size P and C channels."""
  colors = _LEVELS**channels
  return {'color': colors, 'color_4x4': 16 * colors}.get(
    target, side**2 * channels
  )


def patch_losses(
  predicted: jax.Array, images: jax.Array, target: str, side: int
) -> jax.Array:
  """Returns the loss of each patch [B, N].

  Args:
    predicted: [B, N, F].
    images: [B, H, W, C] in [-1, 1].
    target: 'color' (cross-entropy of the class of the mean color), 'color_4x4'
      (its mean over 4 x 4 cells), 'l2' or 'l1' (mean over all pixels).
    side: P.
  """
  if target in ('color', 'color_4x4'):
    classes = color_classes(images, side, 1 if target == 'color' else 4)
    logits = predicted.reshape(*classes.shape, -1)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, classes
    ).mean(-1)
  errors = predicted - patches.patchify(images.astype(jnp.float32), side)
  return (jnp.square(errors) if target == 'l2' else jnp.abs(errors)).mean(-1)


def draw_corruption(
  key: jax.Array, batch_size: int, num_patches: int, num_corrupted: int
) -> dict[str, jax.Array]:
  """Returns which patches are corrupted, and how.

  Args:
    key: random key.
    batch_size: B.
    num_patches: N, at least 2.
    num_corrupted: number of corrupted patches of each image.

  Returns:
    'corrupted': bool [B, N]. 'masked': bool [B, N], corrupted patches whose
    embedding is masked. 'source': int32 [B, N], the patch whose embedding is
    used: another one for an exchanged patch, else the patch itself.
  """
  keys = jax.random.split(key, 3)
  shape = batch_size, num_patches
  rank = jnp.argsort(jnp.argsort(jax.random.uniform(keys[0], shape), axis=1))
  corrupted = rank < num_corrupted
  kind = jax.random.uniform(keys[1], shape)
  masked = corrupted & (kind < _MASKED)
  exchanged = corrupted & ~masked & (kind < _MASKED + _EXCHANGED)
  own = jnp.arange(num_patches)
  other = own + jax.random.randint(keys[2], shape, 1, num_patches)
  source = jnp.where(exchanged, other % num_patches, own).astype(jnp.int32)
  return {'corrupted': corrupted, 'masked': masked, 'source': source}


def make_transform(
  num_patches: int, num_corrupted: int, augment: Callable = task.keep_batch
) -> Callable:
  """Returns the `Task.transform` that adds `draw_corruption` to a batch."""

  def transform(key, batch, step, train):
    batch = augment(key, batch, step, train)
    drawn = draw_corruption(
      *(reconstruction.mask_key(key), len(batch['image'])),
      *(num_patches, num_corrupted),
    )
    return {**batch, **drawn}

  return transform


def most_likely_pixels(
  predicted: jax.Array, target: str, side: int, channels: int
) -> jax.Array:
  """Returns predictions as pixels [B, N, P²·C] in [-1, 1].

  Args:
    predicted: [B, N, F].
    target: see `patch_losses`. A class becomes the middle color of its levels.
    side: P.
    channels: C.
  """
  if target in ('l2', 'l1'):
    return predicted
  cells = 1 if target == 'color' else 4
  batch, count = predicted.shape[:2]
  classes = predicted.reshape(batch, count, cells**2, -1).argmax(-1)
  powers = _LEVELS ** jnp.arange(channels - 1, -1, -1)
  levels = classes[..., None] // powers % _LEVELS
  colors = ((levels + 0.5) * (256 / _LEVELS) - 127.5) / 127.5
  square = colors.reshape(batch * count, cells, cells, channels)
  for axis in (1, 2):
    square = jnp.repeat(square, side // cells, axis)
  return square.reshape(batch, count, -1)


@dataclasses.dataclass(frozen=True)
class Method:
  """The loss and the pictures of masked patch prediction.

  Attributes:
    model: predicts all patches.
    target: one of `TARGETS`.
  """

  model: masked_patches.MaskedPatchModel
  target: str

  @property
  def side(self) -> int:
    """P."""
    return self.model.encoder.patch_size

  def predict(
    self, params: Any, batch: Mapping[str, Any], context: task.Context
  ) -> jax.Array:
    """Returns the predictions of all patches [B, N, F]."""
    return self.model.apply(
      {'params': params},
      batch['image'],
      train=context.train,
      source=batch['source'],
      masked=batch['masked'],
      rngs={'dropout': context.key} if context.train else None,
    )

  def loss(
    self, params: Any, batch: Mapping[str, Any], context: task.Context
  ) -> tuple[jax.Array, dict, None]:
    """The `Task.loss`: the mean over corrupted patches."""
    losses = patch_losses(
      *(self.predict(params, batch, context), batch['image']),
      *(self.target, self.side),
    )
    corrupted = batch['corrupted']
    total = jnp.sum(losses * corrupted, axis=1)
    return total / jnp.sum(corrupted, axis=1), {}, None

  def reconstruct(
    self, params: Any, batch: Mapping[str, Any], context: task.Context
  ) -> jax.Array:
    """Returns the images of `reconstruction.draw`."""
    images = batch['image']
    pixels = most_likely_pixels(
      self.predict(params, batch, context),
      *(self.target, self.side, images.shape[-1]),
    )
    return reconstruction.draw(images, pixels, batch['corrupted'], self.side)


def make(config: ConfigDict, data: input_pipeline.Datasets) -> task.Task:
  """Returns the task of predicting corrupted patches of images."""
  encoder, deployed = reconstruction.make_encoder(config, data, 'patches')
  target, side = config.masked_patches.target, encoder.patch_size
  if target == 'color_4x4' and side % 4:
    raise ValueError(
      'config.masked_patches.target=color_4x4 needs a patch size that is a '
      f'multiple of 4, not {side}'
    )
  ratio = config.masked_patches.ratio
  num_patches = encoder.layout(*data.image_size).num_patches
  num_corrupted = round(num_patches * ratio)
  reconstruction.check_masks(
    ratio, num_corrupted, num_patches, 'config.masked_patches.ratio'
  )
  channels = data.spec()['image'][0][-1]
  model = masked_patches.MaskedPatchModel(
    encoder=encoder, num_outputs=num_outputs(target, side, channels)
  )
  method = Method(model, target)
  return reconstruction.make_task(
    method,
    data,
    deployed,
    transform=make_transform(
      num_patches, num_corrupted, task.make_transform(config, data)
    ),
  )
