"""Masked autoencoder (MAE): He et al. 2021, arXiv 2111.06377.

The encoder reads the visible patches only. A small decoder predicts the pixels
of the hidden patches. The trained model is the encoder, a plain ViT.

Shapes:  B batch · N patches · P patch size · C channels · F = P²·C
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax.data import input_pipeline
from vit_jax.models.layers import image_scale
from vit_jax.models.layers import patches
from vit_jax.models.pretraining import mae
from vit_jax.tasks import reconstruction
from vit_jax.tasks import task

_EPSILON = 1e-6  # added to the variance of a patch


def check(config: ConfigDict) -> None:
  """Raises ValueError for a model or `config.mae` that cannot be used."""
  s = config.mae
  reconstruction.check_whole_patches(config)
  reconstruction.check_ratio(s.mask_ratio, 'config.mae.mask_ratio')
  for name in ('decoder_size', 'decoder_layers', 'decoder_heads'):
    if s[name] < 1:
      raise ValueError(f'config.mae.{name}={s[name]} must be at least 1')
  if s.decoder_size % (4 * s.decoder_heads):
    raise ValueError(
      f'config.mae.decoder_size={s.decoder_size} must be a multiple of 4 times '
      f'config.mae.decoder_heads={s.decoder_heads}'
    )
  if s.decoder_positions not in ('sincos2d', 'learned'):
    raise ValueError(
      f'config.mae.decoder_positions={s.decoder_positions!r} is not one of '
      'sincos2d, learned'
    )


def statistics(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns mean and standard deviation of each patch, [B, N, 1] each.

  As in the authors' code, the variance is the unbiased one: its sum is divided
  by F - 1.

  Args:
    pixels: [B, N, F].
  """
  mean = pixels.mean(-1, keepdims=True)
  return mean, jnp.sqrt(pixels.var(-1, keepdims=True, ddof=1) + _EPSILON)


def squared_error(
  predicted: jax.Array, target: jax.Array, hidden: jax.Array
) -> jax.Array:
  """Returns the mean squared error over the hidden patches [B].

  Args:
    predicted: [B, N, F].
    target: [B, N, F].
    hidden: bool [B, N].
  """
  errors = jnp.square(predicted - target).mean(-1)
  return jnp.sum(errors * hidden, axis=1) / jnp.sum(hidden, axis=1)


def hidden_patches(order: jax.Array, num_visible: int) -> jax.Array:
  """Returns which patches are hidden, bool [B, N].

  Args:
    order: permutation [B, N] of the patches.
    num_visible: number of visible patches, the first ones of `order`.
  """
  return jnp.argsort(order, axis=1) >= num_visible


def make_transform(
  num_patches: int, augment: Callable = task.keep_batch
) -> Callable:
  """Returns the `Task.transform` that adds `order` [B, N] to a batch.

  Args:
    num_patches: N.
    augment: a `Task.transform` that runs before.
  """

  def transform(key, batch, step, train):
    batch = augment(key, batch, step, train)
    shape = len(batch['image']), num_patches
    noise = jax.random.uniform(reconstruction.mask_key(key), shape)
    return {**batch, 'order': jnp.argsort(noise, axis=1).astype(jnp.int32)}

  return transform


def init_params(model: mae.MaskedAutoencoder, num_visible: int) -> Callable:
  """Returns the `Task.init` of a masked autoencoder.

  As in section A.1 of the paper, the patch embedding is initialized as a dense
  layer with Xavier's uniform distribution. The class token is normal (0.02).
  """

  def init(key, batch_spec):
    image, order = batch_spec['image'], batch_spec['order']
    params = model.init(
      key,
      jnp.zeros((1, *image.shape[1:]), image.dtype),
      train=False,
      order=jnp.zeros((1, *order.shape[1:]), order.dtype),
      num_visible=num_visible,
    )['params']
    encoder = dict(params['encoder'])
    kernel = encoder['embedding']['kernel']  # [P, P, C, D]
    keys = jax.random.split(jax.random.fold_in(key, 1))
    flat = nn.initializers.xavier_uniform()(
      keys[0], (kernel[..., 0].size, kernel.shape[-1]), kernel.dtype
    )
    encoder['embedding'] = {
      **encoder['embedding'],
      'kernel': flat.reshape(kernel.shape),
    }
    if 'cls' in encoder:
      token = encoder['cls']
      encoder['cls'] = 0.02 * jax.random.normal(
        keys[1], token.shape, token.dtype
      )
    return {**params, 'encoder': encoder}

  return init


@dataclasses.dataclass(frozen=True)
class Method:
  """The loss and the pictures of a masked autoencoder.

  Attributes:
    model: the autoencoder.
    num_visible: number of visible patches of an image.
    normalize: whether targets are normalized, patch by patch.
  """

  model: mae.MaskedAutoencoder
  num_visible: int
  normalize: bool

  @property
  def side(self) -> int:
    """P."""
    return self.model.encoder.patch_size

  def predict(
    self, params: Any, batch: Mapping[str, Any], context: task.Context
  ) -> jax.Array:
    """Returns predicted targets of all patches [B, N, F]."""
    return self.model.apply(
      {'params': params},
      batch['image'],
      train=context.train,
      order=batch['order'],
      num_visible=self.num_visible,
      rngs={'dropout': context.key} if context.train else None,
    )

  def pixels(self, images: jax.Array) -> tuple[jax.Array, Any, Any]:
    """Returns (scaled pixels [B, N, F], mean, deviation) of all patches."""
    encoder = self.model.encoder
    scaled = image_scale.standardize(
      images.astype(jnp.float32), encoder.image_mean, encoder.image_std
    )
    pixels = patches.patchify(scaled, self.side)
    if not self.normalize:
      return pixels, 0.0, 1.0
    return pixels, *statistics(pixels)

  def loss(
    self, params: Any, batch: Mapping[str, Any], context: task.Context
  ) -> tuple[jax.Array, dict, None]:
    """The `Task.loss`."""
    pixels, mean, deviation = self.pixels(batch['image'])
    losses = squared_error(
      self.predict(params, batch, context),
      (pixels - mean) / deviation,
      hidden_patches(batch['order'], self.num_visible),
    )
    return losses, {}, None

  def reconstruct(
    self, params: Any, batch: Mapping[str, Any], context: task.Context
  ) -> jax.Array:
    """Returns the images of `reconstruction.draw`."""
    encoder, images = self.model.encoder, batch['image']
    _, mean, deviation = self.pixels(images)
    predicted = self.predict(params, batch, context) * deviation + mean
    shown = image_scale.unstandardize(
      patches.unpatchify(
        predicted, encoder.grid_size(*images.shape[1:3]), self.side
      ),
      encoder.image_mean,
      encoder.image_std,
    )
    return reconstruction.draw(
      images,
      patches.patchify(shown, self.side),
      hidden_patches(batch['order'], self.num_visible),
      self.side,
    )


def make(config: ConfigDict, data: input_pipeline.Datasets) -> task.Task:
  """Returns the task of predicting hidden pixels of the images of `data`."""
  encoder, deployed = reconstruction.make_encoder(config, data, 'tokens')
  ratio = config.mae.mask_ratio
  num_patches = encoder.layout(*data.image_size).num_patches
  num_visible = int(num_patches * (1 - ratio))  # as the authors' code
  reconstruction.check_masks(
    *(ratio, num_patches - num_visible, num_patches), 'config.mae.mask_ratio'
  )
  model = mae.MaskedAutoencoder(
    encoder=encoder,
    decoder_settings=mae.DecoderSettings(
      hidden_size=config.mae.decoder_size,
      num_layers=config.mae.decoder_layers,
      num_heads=config.mae.decoder_heads,
      positions=config.mae.decoder_positions,
    ),
  )
  method = Method(model, num_visible, config.mae.normalize)
  return reconstruction.make_task(
    method,
    data,
    deployed,
    init=init_params(model, num_visible),
    transform=make_transform(num_patches, task.make_transform(config, data)),
  )
