"""What evaluators of LiT need: prepared images, zero-shot logits, retrieval.

Shapes:  B batch · K classes
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax.data import input_pipeline
from vit_jax.data import tensorflow as tf
from vit_jax.data.folders.labels import captions
from vit_jax.evaluators import means
from vit_jax.evaluators.metrics import retrieval
from vit_jax.inference import lit_classifier
from vit_jax.inference import lit_embeddings


def make_config(dataset: str, **settings: Any) -> ConfigDict:
  """Returns the settings to evaluate LiT, with its image size.

  Args:
    dataset: TFDS name or folder.
    **settings: settings that differ, such as `batch_eval=256`.
  """
  config = base_config.for_dataset(dataset)
  config.pp.crop = lit_embeddings.IMAGE_SIZE
  config.batch_eval = 64
  config.in_memory_bytes = 0  # stream: images are read only once
  config.update(settings)
  return config


@dataclasses.dataclass(frozen=True)
class Towers:
  """LiT for the evaluators zero_shot and retrieval.

  Attributes:
    lit: from `lit_embeddings.load`.
    class_names: class names in the order of the labels. None: the names of the
      dataset, formatted by `lit_classifier.readable`.
  """

  lit: lit_embeddings.Lit
  class_names: Sequence[str] | None = None

  def prepared(self, data: input_pipeline.Datasets) -> input_pipeline.Datasets:
    """Returns the data with images prepared for LiT."""

    def prepare(example, seed):
      del seed
      image = lit_embeddings.prepare(
        example['image'], data.image_size, data.decoding
      )
      return {'image': image, 'label': tf.cast(example['label'], tf.int32)}

    return dataclasses.replace(data, prepare=prepare)

  def zero_shot(
    self, data: input_pipeline.Datasets, prompts: Sequence[str]
  ) -> Callable:
    """Returns (params, images [B, H, W, 3]) -> logits [B, K].

    Args:
      data: data with the classes.
      prompts: see `lit_classifier.embed_classes`.

    Raises:
      ValueError: the number of class names is wrong, or see `embed_classes`.
    """
    names = self.class_names
    if names is None:
      names = lit_classifier.readable(data.class_names)
    elif len(names) != len(data.class_names):
      raise ValueError(
        f'There are {len(names)} class names, but the dataset '
        f'{data.settings.dataset} has {len(data.class_names)} classes. Use one '
        'name for each class'
      )
    model, params = lit_classifier.make_classifier(self.lit, names, prompts)
    classes = params['classes']

    def logits(params, images):
      return model.apply({'params': {**params, 'classes': classes}}, images)

    return logits

  def retrieval(self, folder: str, table: str, batch: int) -> Callable:
    """Returns the evaluator of captions: (params, Context) -> `Evaluation`.

    Args:
      folder: folder of images.
      table: path of the table of captions; see `captions.read`.
      batch: images per batch.

    Raises:
      ValueError: the folder or the table cannot be used.
    """
    if not os.path.isdir(folder):
      raise ValueError(
        f'retrieval needs a folder of images, but config.dataset={folder!r} is '
        'no folder. Use the folder of the images in the table of captions'
      )
    paths, texts, owners = captions.read(folder, table)

    def evaluate(params, context):
      del params, context  # each process embeds with its own copy
      found = retrieval.measure(
        lit_embeddings.embed_images(self.lit, paths, batch),
        lit_embeddings.embed_texts(self.lit, texts),
        owners,
      )
      counts = {'images': float(len(paths)), 'captions': float(len(texts))}
      return means.Evaluation(found | counts)

    return evaluate
