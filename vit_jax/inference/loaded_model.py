"""The Python API of a trained model: `vit_jax.load('workdirs/quickstart')`.

Shapes:  B batch · H, W image height, width · C channels · K classes
         D width of the features
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import inspect
import os
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint import trained_model
from vit_jax.data import preprocess
from vit_jax.inference import classify
from vit_jax.inference import inputs
from vit_jax.inference import outputs
from vit_jax.models import block_outputs
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding


def load(source: str, **options: Any) -> 'LoadedModel':
  """Loads a model from a run folder, a weights file, or by its published name.

  Args:
    source: see `trained_model.load_model`.
    **options: more arguments of `trained_model.load_model`, such as
      `image_size=(384, 384)` or `class_names`. Other names are settings of the
      model, such as `num_heads=6`, for weights that do not contain them.

  Raises:
    ValueError: the model cannot be loaded or does not match the options.
  """
  known = inspect.signature(trained_model.load_model).parameters
  settings = {x: options.pop(x) for x in options.keys() - known.keys()}
  if settings:
    options['overrides'] = {**options.get('overrides', {}), **settings}
  trained = trained_model.load_model(os.fspath(source), **options)
  return LoadedModel(
    **{
      field.name: getattr(trained, field.name)
      for field in dataclasses.fields(trained)
    }
  )


@dataclasses.dataclass(frozen=True)
class LoadedModel(trained_model.TrainedModel):
  """A `TrainedModel` with methods that process images."""

  # See `inputs.batches`; None: as in evaluation.
  prepare: Callable | None = None

  @functools.cached_property
  def _params_on_devices(self):
    return classify.put_on_devices(self.params)

  @numerics.fixed()
  def _run(self, function, images, batch, pixel_range):
    """Returns the outputs of `function(params, images)` as NumPy arrays.

    One image has outputs without a batch axis.
    """
    images, is_single = inputs.read(images, self.image_size, pixel_range)
    mesh = sharding.make_mesh(jax.local_devices())
    batch = classify.batch_size(len(images), batch, mesh.size)
    # No image is one batch of padding, which gives outputs of the right shape.
    parts = (
      inputs.all_batches(
        images,
        self.image_size,
        batch,
        self.prepare or preprocess.evaluation_of(self.resizing),
        self.decoding,
      )
      if len(images)
      else [np.zeros((0, *self.image_size, 3), np.float32)]
    )

    def run(rows):
      x = sharding.put_batch(classify.pad(rows, batch), mesh)
      y = jax.device_get(function(self._params_on_devices, x))
      return jax.tree.map(lambda y: y[: len(rows)], y)

    found = jax.tree.map(lambda *ys: np.concatenate(ys), *map(run, parts))
    return jax.tree.map(lambda y: y[0], found) if is_single else found

  def logits(
    self,
    images: Any,
    batch: int = 64,
    pixel_range: tuple[float, float] | None = None,
  ) -> np.ndarray:
    """Returns logits: [B, K] of B images, [K] of one image.

    Args:
      images: one image or several, of the kinds that `inputs` describes: paths,
        bytes, PIL images, uint8 pixels, or floats [B, H, W, C] in [−1, 1].
      batch: largest number of images in a batch.
      pixel_range: (low, high) of float pixels, such as (0, 1). They are scaled
        to [−1, 1]. None means (−1, 1), and rejects pixels that seem to be in
        0…1; see `input_checks.check_images`.

    Raises:
      ValueError: an image cannot be used, or the model has no head.
    """
    if not self.model.num_classes:
      raise ValueError(
        f'{self.source}: the weights have no head. Use weights with a head, or '
        'use `features`.'
      )
    function = functools.partial(_apply, self.model)
    return self._run(function, images, batch, pixel_range)

  def predict(self, images: Any, **options: Any) -> np.ndarray:
    """Returns predictions: [B, K] of B images, [K] of one image.

    They are class probabilities, or for a regression, values in their units;
    see `outputs.predictions`.

    Args:
      images: see `logits`.
      **options: more arguments of `logits`.

    Raises:
      ValueError: see `logits`.
    """
    return outputs.predictions(self, self.logits(images, **options))

  def features(
    self,
    images: Any,
    blocks: Sequence[int] | None = None,
    batch: int = 64,
    pixel_range: tuple[float, float] | None = None,
  ) -> np.ndarray | dict[int, block_outputs.BlockOutput]:
    """Returns the inputs of the head, or the outputs of blocks.

    Args:
      images: see `logits`.
      blocks: numbers of blocks, such as [3, 11] or [-1]; see
        `block_outputs.get`. None: the input of the head.
      batch: see `logits`.
      pixel_range: see `logits`.

    Returns:
      Features [B, D], or {block: `BlockOutput`}, where the grid of patches has
      the shape [B, h, w, D]. One image has features without a batch axis.

    Raises:
      ValueError: an image cannot be used, or a block does not exist.
    """
    headless = self.model.clone(num_classes=0)
    if blocks is None:
      function = functools.partial(_apply, headless)
    else:
      block_outputs.resolve(headless, blocks)
      function = functools.partial(
        block_outputs.get, headless, blocks=list(blocks)
      )

    def without_head(params, x):
      return function(
        {name: y for name, y in params.items() if name != 'head'}, x
      )

    found = self._run(without_head, images, batch, pixel_range)
    if blocks is None:
      return found
    return {block: found[block] for block in blocks}  # in the given order

  def predicted_classes(
    self, images: Any, **options: Any
  ) -> dict[str, float] | list[dict[str, float]]:
    """Returns {name: probability} of all classes that each image has.

    These are the classes above their thresholds (`self.thresholds`; without
    them, 0.5), the most likely first.

    Args:
      images: see `logits`.
      **options: more arguments of `logits`.

    Returns:
      A list of dicts; for one image, a dict. A dict may be empty.

    Raises:
      ValueError: see `logits`, or the model has one label per image.
    """
    if self.output != 'sigmoid':
      raise ValueError(
        f"{self.source}: the model's output is {self.output!r}, so it does not "
        'predict several labels per image. Use `classify` or `predict`.'
      )
    values = self.predict(images, **options)
    names = self.shown_class_names
    found = []
    for row in np.atleast_2d(values):
      order = np.argsort(-row, kind='stable')
      above = outputs.above_thresholds(self, order, row[order])
      found.append({names[i]: value for i, value in above})
    return found[0] if values.ndim == 1 else found

  @numerics.fixed()
  def classify(
    self,
    images: Any,
    top: int = 5,
    batch: int = 64,
    pixel_range: tuple[float, float] | None = None,
  ) -> dict[str, float] | list[dict[str, float]]:
    """Returns {name: probability} of each image, the most likely classes first.

    Args:
      images: see `logits`.
      top: number of classes to return, at most all classes of the model.
      batch: see `logits`.
      pixel_range: see `logits`.

    Returns:
      A list of dicts; for one image, a dict.

    Raises:
      ValueError: an image cannot be used, the model has no head, or it does not
        predict classes.
    """
    outputs.check_classes(self)
    images, is_single = inputs.read(images, self.image_size, pixel_range)
    predictions = list(
      classify.classify(
        self,
        images,
        prepare=self.prepare,
        top=top,
        batch=batch,
        params=self._params_on_devices,
      )
    )
    bad = [i for i, p in enumerate(predictions) if p.classes is None]
    if bad:
      inputs.reject(images, bad)
    names = self.shown_class_names
    found = [
      {names[i]: x for i, x in zip(p.classes, p.probabilities, strict=True)}
      for p in predictions
    ]
    return found[0] if is_single else found


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, images):
  return model.apply({'params': params}, images, train=False)
