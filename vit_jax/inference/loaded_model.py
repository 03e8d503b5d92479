"""The Python API of a trained model: `vit_jax.load('workdirs/quickstart')`.

Shapes:  B batch · H, W image height, width · C channels · K classes
         D width of the features
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint import trained_model
from vit_jax.inference import classify
from vit_jax.inference import outputs
from vit_jax.parallel import numerics


def load(source: str, **options: Any) -> 'LoadedModel':
  """Loads a model from a run folder, a weights file, or by its published name.

  Args:
    source: see `trained_model.load_model`.
    **options: more arguments of `trained_model.load_model`, such as
      `image_size=(384, 384)` or `class_names`.

  Raises:
    ValueError: the model cannot be loaded or does not match the options.
  """
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

  @functools.cached_property
  def _params_on_device(self):
    return jax.device_put(self.params)

  @functools.cached_property
  def _params_on_devices(self):
    return classify.put_on_devices(self._params_on_device)

  @functools.cached_property
  def _apply(self):
    return jax.jit(
      lambda model, params, images: model.apply(
        {'params': params}, images, train=False
      ),
      static_argnums=0,
    )

  @numerics.fixed()
  def _run(self, model, params, images):
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:3] != tuple(self.image_size):
      raise ValueError(
        f'images have the shape {list(images.shape)}. The model needs '
        f'[B, H, W, C] with {self.image_size[0]} x {self.image_size[1]} pixels '
        'in [-1, 1]. Resize the images or load the model with another '
        'image_size.'
      )
    count = len(images)
    fill = classify.padded_size(count) - count
    images = np.pad(images, [(0, fill)] + [(0, 0)] * 3)
    return np.asarray(self._apply(model, params, images))[:count]

  def logits(self, images: Any) -> np.ndarray:
    """Returns logits [B, K] of images [B, H, W, C] in [−1, 1].

    Raises:
      ValueError: the images have another size, or the model has no head.
    """
    if not self.model.num_classes:
      raise ValueError(
        f'{self.source}: the weights have no head. Use weights with a head, or '
        'use `features`.'
      )
    return self._run(self.model, self._params_on_device, images)

  def predict(self, images: Any, **options: Any) -> np.ndarray:
    """Returns the predictions of images: [B, K] of B images.

    They are class probabilities, or for a regression, values in their units;
    see `outputs.predictions`.

    Args:
      images: see `logits`.
      **options: more arguments of `logits`.

    Raises:
      ValueError: see `logits`.
    """
    return outputs.predictions(self, self.logits(images, **options))

  def features(self, images: Any) -> np.ndarray:
    """Returns the head's inputs [B, D] for images [B, H, W, C] in [−1, 1].

    Raises:
      ValueError: the images have another size.
    """
    params = {
      name: value
      for name, value in self._params_on_device.items()
      if name != 'head'
    }
    return self._run(self.model.clone(num_classes=0), params, images)

  def classify(
    self, images: Sequence, top: int = 5, batch: int = 64
  ) -> list[dict[str, float]]:
    """Returns {name: probability} per image, the most likely classes first.

    Args:
      images: paths of image files, or an array [B, H, W, C] in [−1, 1].
      top: number of classes to return, at most all classes of the model.
      batch: images per batch; used only if `images` are paths.

    Raises:
      ValueError: an image cannot be decoded, or the model does not predict
        classes; also see `logits`.
    """
    outputs.check_classes(self)
    names = self.shown_class_names
    if isinstance(images, str | os.PathLike):
      raise ValueError(
        f'images={images!r} is one path. Use a list of paths, or an array.'
      )
    if len(images) and isinstance(images[0], str | os.PathLike):
      paths = [os.path.expanduser(os.fspath(path)) for path in images]
      predictions = list(
        classify.classify(
          self, paths, top=top, batch=batch, params=self._params_on_devices
        )
      )
      bad = [p.path for p in predictions if p.classes is None]
      if bad:
        raise ValueError(
          f'{len(bad)} of {len(paths)} images cannot be read: '
          f'{", ".join(bad[:10])}. Remove them from the list.'
        )
      rows = [(p.classes, p.probabilities) for p in predictions]
    else:
      values = np.asarray(
        outputs.probabilities(self.logits(images), self.output)
      )
      order = np.argsort(-values, axis=-1, kind='stable')[:, :top]
      rows = zip(order, np.take_along_axis(values, order, -1), strict=True)
    return [
      {names[i]: float(p) for i, p in zip(classes, values, strict=True)}
      for classes, values in rows
    ]
