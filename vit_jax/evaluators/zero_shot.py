"""LiT as a classifier of a data set, by the names of its classes."""

import jax

from vit_jax.data import input_pipeline
from vit_jax.evaluators import accuracy
from vit_jax.inference import lit_classifier
from vit_jax.optim import loss_functions
from vit_jax.parallel import sharding


def get_datasets(config):
  """`input_pipeline.get_datasets`, with test images as LiT wants them."""
  return input_pipeline.get_datasets(config, for_testing=lit_classifier.prepare)


def evaluate_dataset(lit, config, names=None, prompts=lit_classifier.PROMPTS):
  """Accuracy and mean loss over the test split of a data set.

  Args:
    lit: from `lit_embeddings.load`.
    config: from `dataset_config`.
    names: of the classes in the order of the labels; None takes the data
      set's own, `readable`.
    prompts: see `embed_classes`.

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
  eval_fn = accuracy.make_eval_fn(
    model, mesh, loss_functions.softmax_cross_entropy
  )
  params = jax.device_put(params, sharding.replicated(mesh))
  return accuracy.evaluate(eval_fn, params, data.test(), mesh, data.num_test)
