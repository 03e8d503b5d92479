"""Accuracy of LiT as a zero-shot classifier over a complete dataset."""

from collections.abc import Sequence
import dataclasses
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
  """Returns the settings for `evaluate_dataset`, with LiT's image size.

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


def get_datasets(config: ConfigDict) -> input_pipeline.Datasets:
  """Returns the datasets with images preprocessed for LiT."""

  def prepare(example, seed):
    del seed
    size = base_config.image_size(config)
    return {
      'image': lit_embeddings.prepare(example['image'], size, data.decoding),
      'label': tf.cast(example['label'], tf.int32),
    }

  data = setup.get_datasets(config)
  return dataclasses.replace(data, prepare=prepare)


def evaluate_dataset(
  lit: lit_embeddings.Lit,
  config: ConfigDict,
  names: Sequence[str] | None = None,
  prompts: Sequence[str] = lit_classifier.PROMPTS,
) -> dict[str, float]:
  """Returns accuracy and mean loss over the test split of a dataset.

  Args:
    lit: from `lit_embeddings.load`.
    config: from `dataset_config`.
    names: class names in the order of the labels. None uses the names of the
      dataset, formatted by `lit_classifier.readable`.
    prompts: see `lit_classifier.embed_classes`.

  Returns:
    {'accuracy', 'loss', 'count'}; each example counts once.

  Raises:
    ValueError: the dataset is not available, or the number of names is wrong.
  """
  mesh = sharding.make_mesh()
  sharding.check_batch('batch_eval', config.batch_eval, 1, mesh)
  data = get_datasets(config)
  if names is None:
    names = lit_classifier.readable(data.class_names)
  elif len(names) != len(data.class_names):
    raise ValueError(
      f'There are {len(names)} class names, but config.dataset='
      f'{config.dataset} has {len(data.class_names)} classes. Use one name '
      'for each class.'
    )
  model, params = lit_classifier.make_classifier(lit, names, prompts)
  evaluate = means.Means(classification.of_model(model), data, 'test', mesh)
  params = jax.device_put(params, sharding.replicated(mesh))
  metrics = evaluate(params, setup.fresh_context()).numbers
  return {**metrics, 'count': data.num_test}
