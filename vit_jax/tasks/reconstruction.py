"""What tasks have in common that learn from images with hidden patches.

Shapes:  B batch · N patches · P patch size · C channels
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vit_jax import models
from vit_jax.augment import picture
from vit_jax.checkpoint import metadata
from vit_jax.data import input_pipeline
from vit_jax.evaluators import means
from vit_jax.models import variants
from vit_jax.models.layers import patches
from vit_jax.parallel import sharding
from vit_jax.tasks import task

NUM_PICTURES = 8  # images of a picture
_GRAY = 0.0  # of hidden patches in a picture, in [-1, 1]
_MASKS = 9  # tag of the random key; augmentation uses 0 to 4


def check_model(
  config: ConfigDict,
) -> tuple[str, dict[str, Any], models.VisionTransformer]:
  """Returns (name, settings, model without a head) of `config.model`.

  Raises:
    ValueError: the model cannot be pre-trained without labels.
  """
  settings = task.model_settings(config)
  name = variants.resolve(settings.pop('name'))
  model = models.get_model(name, num_classes=0, **settings)
  start = f'config.task={config.task}'
  if not isinstance(model, models.VisionTransformer):
    raise ValueError(
      f'config.model.name={name!r} has no tokens that can be hidden. {start} '
      'needs a Vision Transformer, such as config.model.name=ViT-B_16'
    )
  if model.stem_units is not None:
    raise ValueError(
      f'config.model.name={name!r} has a convolutional stem, which sees the '
      f'pixels of hidden patches. {start} needs a model without a stem, such '
      'as config.model.name=ViT-B_16'
    )
  if model.classifier not in ('token', 'gap'):
    raise ValueError(
      f'config.model.classifier={model.classifier!r} cannot be used: {start} '
      'trains no pooling. Use token or gap'
    )
  if model.representation_size is not None or model.head_norm:
    raise ValueError(
      f'{start} trains no layer after the pooling. Remove '
      'config.model.representation_size and config.model.head_norm'
    )
  if model.patch_dropout_rate:
    raise ValueError(
      f'config.model.patch_dropout_rate={model.patch_dropout_rate} cannot be '
      f'used, because {start} already hides patches. Remove it'
    )
  return name, settings, model


def check_whole_patches(config: ConfigDict) -> None:
  """Raises ValueError for a model whose patches do not cover its images.

  A task that predicts pixels calls it in place of `check_model`.
  """
  _, _, model = check_model(config)
  if model.drop_remainder:
    raise ValueError(
      'config.model.drop_remainder=True cannot be used: config.task='
      f'{config.task} predicts the pixels of whole patches. Use '
      'config.model.drop_remainder=False, and a multiple of the patch size '
      f'{model.patch_size} as config.pp.crop'
    )


def make_encoder(
  config: ConfigDict, data: input_pipeline.Datasets, reads: str
) -> tuple[models.VisionTransformer, metadata.Description]:
  """Returns a ViT that returns tokens, and the metadata of `params['encoder']`.

  Args:
    config: settings from `base_config`.
    data: an `input_pipeline.Datasets`.
    reads: 'patches' for the tokens of patches [B, N, D], 'tokens' for class
      tokens and patches [B, T + N, D], or 'pooled' for one vector [B, D].

  Raises:
    ValueError: the model cannot be pre-trained in this way.
  """
  name, settings, model = check_model(config)
  deployed = metadata.Description(
    name=name,
    settings=settings,
    image_size=data.image_size,
    task=config.task,
    output='identity',
    module='encoder',
  )
  if reads == 'pooled':
    return model, deployed
  classifier = 'unpooled'
  if reads == 'tokens' and model.has_token:
    classifier = 'token_unpooled'
  return model.clone(
    classifier=classifier, class_token=model.has_token
  ), deployed


def mask_key(key: jax.Array) -> jax.Array:
  """Returns the key of the masks from the key of `Task.transform`."""
  return jax.random.fold_in(key, _MASKS)


def check_ratio(ratio: float, setting: str) -> None:
  """Raises ValueError unless a fraction of hidden patches is in (0, 1)."""
  if not 0 < ratio < 1:
    raise ValueError(f'{setting}={ratio} must be between 0 and 1')


def check_masks(
  ratio: float, num_hidden: int, num_patches: int, setting: str
) -> None:
  """Raises ValueError unless images have enough hidden and visible patches.

  Args:
    ratio: fraction of hidden patches.
    num_hidden: number of hidden patches of an image.
    num_patches: N.
    setting: name of the setting of the ratio, for messages.
  """
  visible = num_patches - num_hidden
  if not num_hidden or visible < 2:
    raise ValueError(
      f'{setting}={ratio}: of the {num_patches} patches of an image, '
      f'{num_hidden} would be hidden and {visible} visible. At least 1 must be '
      f'hidden and 2 visible. Change {setting}, config.model.patch_size or '
      'config.pp.crop'
    )


def draw(
  images: jax.Array, predicted: jax.Array, hidden: jax.Array, side: int
) -> jax.Array:
  """Returns images with hidden patches, predicted images and true images.

  Visible patches of the predicted images are the true ones.

  Args:
    images: [B, H, W, C] in [-1, 1].
    predicted: pixels [B, N, P²·C] of each patch.
    hidden: bool [B, N].
    side: P.

  Returns:
    [3, B, H, W, C].
  """
  grid = images.shape[1] // side, images.shape[2] // side
  true = patches.patchify(images, side)
  shown = [
    jnp.where(hidden[..., None], _GRAY, true),
    jnp.where(hidden[..., None], predicted, true),
    true,
  ]
  return jnp.stack([patches.unpatchify(x, grid, side) for x in shown])


class Reconstructions:
  """An evaluator of the mean loss, with a picture of the first images.

  The picture has three rows for eight images: masked, predicted and true.
  """

  def __init__(self, task_, data, split, mesh, reconstruct):
    self._means = means.Means(task_, data, split, mesh)
    self._data, self._split, self._mesh = data, split, mesh

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def rows(params, batch, context):
      batch = task_.checked_transform(context.key, batch, context.step, False)
      return reconstruct(params, batch, context)[:, :NUM_PICTURES]

    self._rows = rows

  def __call__(self, params, context):
    """Returns the `Evaluation` of parameters in a `task.Context`."""
    found = self._means(params, context)
    batch = next(iter(self._data.evaluate(self._split)))
    count = int(min(NUM_PICTURES, self._data.num_examples[self._split]))
    rows = jax.device_get(
      self._rows(
        params,
        sharding.put_batch(batch, self._mesh),
        context.replace(params=None, chosen=None),
      )
    )[:, :count]
    drawn = picture.draw(_rgb(rows.reshape(-1, *rows.shape[2:])), columns=count)
    return found._replace(pictures={'reconstructions': drawn})


def _rgb(images):
  """Returns images with 1 or 3 channels as RGB."""
  return np.repeat(images, 3 // images.shape[-1], axis=-1)


def evaluators(
  task_: task.Task,
  data: input_pipeline.Datasets,
  mesh: jax.sharding.Mesh,
  reconstruct: Callable[[Any, Mapping[str, Any], Any], jax.Array],
) -> dict[str, Callable]:
  """Returns `Reconstructions` for each split that training does not see.

  Args:
    task_: the task.
    data: an `input_pipeline.Datasets`.
    mesh: device mesh.
    reconstruct: (params, batch, context) -> the result of `draw`.
  """
  return {
    split: Reconstructions(task_, data, split, mesh, reconstruct)
    for split in data.sources
    if split != 'train'
  }


def make_task(
  method: Any,
  data: input_pipeline.Datasets,
  deployed: metadata.Description,
  **others: Any,
) -> task.Task:
  """Returns a task with pictures of held-out images.

  Args:
    method: has `model`, `loss` (see `task.Task`), and `reconstruct`: (params,
      batch, context) -> the result of `draw`.
    data: an `input_pipeline.Datasets`.
    deployed: metadata of the encoder.
    **others: other fields of `task.Task`.
  """
  return task.Task(
    model=method.model,
    loss=method.loss,
    deployed=deployed,
    check_batch=functools.partial(task.check_images, data=data),
    evaluators=functools.partial(evaluators, reconstruct=method.reconstruct),
    **others,
  )
