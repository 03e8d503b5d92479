"""LiT as a classifier of a whole data set, by the names of its classes."""

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax.data import input_pipeline
from vit_jax.data import tensorflow as tf
from vit_jax.evaluators import means
from vit_jax.inference import lit_classifier
from vit_jax.inference import lit_embeddings
from vit_jax.parallel import sharding
from vit_jax.run import setup
from vit_jax.tasks import classification


def dataset_config(dataset: str, **settings: Any) -> ConfigDict:
  """Settings for `evaluate_dataset`: those of `base_config`, for LiT's images.

  Args:
    dataset: a TFDS name, or a folder.
    **settings: others than these, such as `batch_eval=256`.
  """
  config = base_config.for_dataset(dataset)
  config.pp.crop = lit_embeddings.IMAGE_SIZE
  config.batch_eval = 64
  config.in_memory_bytes = 0  # each image is read once
  config.update(settings)
  return config


def get_datasets(config: ConfigDict) -> input_pipeline.Datasets:
  """`input_pipeline.get_datasets`, with images as LiT wants them."""

  def prepare(example, seed):
    del seed
    size = base_config.image_size(config)
    return {
      'image': lit_classifier.prepare(example['image'], size),
      'label': tf.cast(example['label'], tf.int32),
    }

  return setup.get_datasets(config, prepare=prepare)


def evaluate_dataset(
  lit: lit_embeddings.Lit,
  config: ConfigDict,
  names: Sequence[str] | None = None,
  prompts: Sequence[str] = lit_classifier.PROMPTS,
) -> dict[str, float]:
  """Accuracy and mean loss over the test split of a data set.

  Args:
    lit: from `lit_embeddings.load`.
    config: from `dataset_config`.
    names: of the classes in the order of the labels; None takes the data
      set's own, as `lit_classifier.readable` writes them.
    prompts: see `lit_classifier.embed_classes`.

  Returns:
    {'accuracy', 'loss', 'count'}, over every example once.

  Raises:
    ValueError: the data set cannot be had, or the names do not fit it.
  """
  mesh = sharding.make_mesh()
  sharding.check_batch('batch_eval', config.batch_eval, 1, mesh)
  data = get_datasets(config)
  if names is None:
    names = lit_classifier.readable(data.class_names)
  elif len(names) != len(data.class_names):
    raise ValueError(
      f'{len(names)} class names for {config.dataset}, which has '
      f'{len(data.class_names)} classes'
    )
  model, params = lit_classifier.make_classifier(lit, names, prompts)
  evaluate = means.Means(classification.of_model(model), data, 'test', mesh)
  params = jax.device_put(params, sharding.replicated(mesh))
  numbers = evaluate(params, setup.fresh_context()).numbers
  return {**numbers, 'count': data.num_test}
