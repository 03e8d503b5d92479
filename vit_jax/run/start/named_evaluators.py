"""Makes the evaluators of `config.evaluators`, with their datasets."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import metadata
from vit_jax.data import input_pipeline
from vit_jax.evaluators import named
from vit_jax.evaluators import options
from vit_jax.parallel import preemption
from vit_jax.run import messages
from vit_jax.run import setup


def of_run(parts: setup.Parts, config: ConfigDict) -> dict[str, Callable]:
  """Returns {name: evaluator} of a run.

  Args:
    parts: the parts of the run.
    config: settings from `base_config`.

  Raises:
    ValueError: an evaluator does not suit its data or the model.
  """
  if not config.evaluators:
    return {}
  subject = _subject_of(parts.task.deployed, parts)
  return make(
    config, subject, parts.abstract_state.params, parts.data, parts.mesh
  )


def _subject_of(deployed: metadata.Description, parts: setup.Parts):
  """Returns the model that a run deploys."""
  if deployed.name is None:
    raise ValueError(
      'config.evaluators need a named architecture, but the task of the run '
      'describes none (Task.deployed). Remove these settings'
    )
  names = deployed.class_names or ()
  model = models.get_model(
    deployed.name, num_classes=len(names), **deployed.settings
  )
  return named.Subject(
    f'the model of the run ({deployed.name})',
    model,
    deployed.class_names,
    deployed.output == 'softmax' and bool(names),
    deployed.module,
  )


def make(
  config: ConfigDict,
  subject: named.Subject,
  params: Any,
  data: input_pipeline.Datasets,
  mesh: jax.sharding.Mesh,
) -> dict[str, Callable]:
  """Returns {name: (params, Context) -> `means.Evaluation`}.

  Evaluators with equal datasets share the data and the features.

  Args:
    config: settings from `base_config`.
    subject: the model.
    params: all parameters, arrays or their shapes.
    data: data of the run, for evaluators without a dataset.
    mesh: device mesh over which the batches are sharded.

  Raises:
    ValueError: an evaluator does not suit its data or the model.
  """
  groups = {}
  for name, settings in config.evaluators.items():
    key = settings.dataset, settings.train_split, settings.test_split
    groups.setdefault(key, []).append(name)
  found = {}
  for (dataset, _, test_split), names in groups.items():
    settings = config.evaluators[names[0]]
    own, split = data, test_split
    if dataset:
      own, split = _load(config, settings, names, mesh), 'test'
    elif not split:
      split = 'validation' if 'validation' in data.sources else 'test'
    kinds = {
      name: (
        config.evaluators[name].type,
        {
          option: config.evaluators[name][option]
          for option in options.defaults(config.evaluators[name].type)
        },
      )
      for name in names
    }
    own = dataclasses.replace(own, watch=preemption.checked)
    found |= named.make(kinds, subject, params, own, split, mesh)
  return {name: found[name] for name in config.evaluators}


def _load(config, settings, names, mesh):
  """Returns the data of an evaluator, with images prepared as in the run."""
  other = base_config.for_dataset(settings.dataset)
  for split in ('train_split', 'test_split'):
    other[split] = settings[split] or other[split]
  other.pp.update(
    {
      name: config.pp[name]
      for name in (
        *('crop', 'crop_width', 'resize', 'crop_fraction', 'interpolation'),
        *('exif', 'background'),
      )
    }
  )
  for name in ('tfds_data_dir', 'batch_eval', 'in_memory_bytes', 'mesh'):
    other[name] = config[name]
  other.validation = 0
  data = setup.load_data(other, mesh)
  line = messages.describe_data(other, data)
  console.log_info(f'{", ".join(names)}: {line}')
  return data
