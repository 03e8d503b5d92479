"""Makes the evaluators of `config.evaluators`, with their datasets."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.data import input_pipeline
from vit_jax.evaluators import means
from vit_jax.evaluators import named
from vit_jax.evaluators import options
from vit_jax.inference import lit_classifier
from vit_jax.inference import lit_embeddings
from vit_jax.parallel import numerics
from vit_jax.parallel import preemption
from vit_jax.parallel import sharding
from vit_jax.run import messages
from vit_jax.run import run_files
from vit_jax.run import setup
from vit_jax.run.start import lit_evaluators


def of_model(
  deployed: metadata.Description,
  config: ConfigDict,
  params: Any,
  data: input_pipeline.Datasets,
  split: str,
  mesh: jax.sharding.Mesh,
) -> dict[str, Callable]:
  """Returns {name: evaluator} of the model that a run deploys.

  Args:
    deployed: metadata of the model.
    config: settings from `base_config`.
    params: all parameters, arrays or their shapes.
    data: data of the run, for evaluators without a dataset.
    split: split of these data for evaluators without a `test_split`.
    mesh: device mesh over which the batches are sharded.

  Raises:
    ValueError: an evaluator does not suit its data or the model.
  """
  if not config.evaluators:
    return {}
  if deployed.name is None:
    raise ValueError(
      'config.evaluators need a named architecture, but the task of the run '
      'describes none (Task.deployed). Remove these settings'
    )
  names = deployed.class_names or ()
  has_classes = deployed.output == 'softmax' and bool(names)
  subject = named.Subject(
    f'the model of the run ({deployed.name})',
    models.get_model(
      deployed.name,
      num_classes=len(names) if has_classes else 0,
      **deployed.settings,
    ),
    deployed.class_names,
    has_classes,
    deployed.module,
  )
  return make(config, subject, params, data, split, mesh)


def make(
  config: ConfigDict,
  subject: named.Subject,
  params: Any,
  data: input_pipeline.Datasets,
  split: str,
  mesh: jax.sharding.Mesh,
) -> dict[str, Callable]:
  """Returns {name: (params, Context) -> `means.Evaluation`}.

  Evaluators with equal datasets share the data and the features.

  Args:
    config: settings from `base_config`.
    subject: the model.
    params: all parameters, arrays or their shapes.
    data: data of the run, for evaluators without a dataset.
    split: split of these data for evaluators without a `test_split`.
    mesh: device mesh over which the batches are sharded.

  Raises:
    ValueError: an evaluator does not suit its data or the model.
  """
  groups, found = {}, {}
  for name, settings in config.evaluators.items():
    if settings.type == 'retrieval':  # it needs no classes
      found[name] = subject.towers.retrieval(
        settings.dataset or config.dataset, settings.captions, config.batch_eval
      )
      continue
    key = settings.dataset, settings.train_split, settings.test_split
    key += (settings.type == 'imagenet', settings.get('variant') == 'real')
    groups.setdefault(key, []).append(name)
  for (dataset, _, test_split, *_), names in groups.items():
    settings = config.evaluators[names[0]]
    own, measured = data, test_split or split
    if dataset:
      own, measured = _load(config, settings, names, mesh), 'test'
    if subject.towers:
      own = subject.towers.prepared(own)
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
    found |= named.make(kinds, subject, params, own, measured, mesh)
  return {name: found[name] for name in config.evaluators}


def measure(
  evaluators: Mapping[str, Callable], params: Any, context: Any
) -> means.Evaluation:
  """Returns the metrics METRIC_NAME and the tables TABLE_NAME of evaluators.

  Args:
    evaluators: from `make`.
    params: parameters on the mesh.
    context: `task.Context` of the evaluation.
  """
  numbers, tables = {}, {}
  for name, evaluator in evaluators.items():
    found = evaluator(params, context)
    numbers |= {f'{key}_{name}': x for key, x in found.numbers.items()}
    tables |= {f'{key}_{name}': rows for key, rows in found.tables.items()}
  return means.Evaluation(numbers, tables=tables)


def measure_trained(
  config: ConfigDict, workdir: str, trained: trained_model.TrainedModel
) -> dict[str, Any]:
  """Measures a trained model with `config.evaluators` on `config.dataset`.

  It appends a line to `workdir`/evaluations.jsonl. The model needs no head,
  unless an evaluator is of the type classifier.

  Args:
    config: settings from `base_config`.
    workdir: folder for the metrics.
    trained: the model.

  Returns:
    The appended line, as a dict, with {name: rows} of all tables as 'tables',
    which the file does not have.

  Raises:
    ValueError: the weights, the settings and the data do not match.
    preemption.Preempted: SIGTERM arrived. No metrics are written.
  """
  kinds = {name: x.type for name, x in config.evaluators.items()}
  options.check_towers(kinds, trained.source)
  console.log_info(f'{trained.source}: {trained}')
  subject = named.Subject(
    trained.source,
    trained.model,
    trained.class_names,
    trained.output == 'softmax',
  )
  return _measure(config, workdir, subject, trained.params, trained.params_set)


def measure_lit(
  config: ConfigDict,
  workdir: str,
  lit: lit_embeddings.Lit,
  source: str,
  class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Measures LiT as `measure_trained`: texts, or features of its image tower.

  Args:
    config: settings from `lit_evaluators.make_config`.
    workdir: folder for the metrics.
    lit: from `lit_embeddings.load`.
    source: description of the model, for messages.
    class_names: see `lit_evaluators.Towers`.

  Returns:
    See `measure_trained`.

  Raises:
    ValueError: the settings and the data do not match.
    preemption.Preempted: SIGTERM arrived. No metrics are written.
  """
  subject = named.Subject(
    source,
    lit_classifier.Classifier(lit.model, 0),
    has_classes=False,
    towers=lit_evaluators.Towers(lit, class_names),
  )
  return _measure(config, workdir, subject, {'towers': lit.params}, 'params')


@numerics.fixed()
def _measure(config, workdir, subject, params, params_set):
  """Returns what `measure_trained` returns."""
  base_config.validate(config)
  config = config.copy_and_resolve_references()
  own = [x for x in config.evaluators.values() if not x.dataset]
  kinds = {x.type for x in own}
  if kinds == {'imagenet'}:
    _adapt_data(config, own[0])
  mesh = sharding.make_mesh(**config.mesh)
  sharding.check_batch('batch_eval', config.batch_eval, 1, mesh)
  data, split, count = None, {}, {}
  if kinds != {'retrieval'}:
    data = setup.load_data(config, mesh)
    console.log_info(messages.describe_data(config, data))
    split, count = {'split': config.test_split}, {'count': data.num_test}
  evaluators = make(config, subject, params, data, 'test', mesh)
  shardings = sharding.by_rules(params, mesh)
  params = jax.tree.map(sharding.put, params, shardings)
  with preemption.watching():
    found = measure(evaluators, params, setup.fresh_context())
  source = subject.source
  row = {
    'weights': os.path.abspath(source) if os.path.exists(source) else source,
    'params_set': params_set,
    'dataset': config.dataset,
    **split,
    'image_size': base_config.image_size(config),
    **found.numbers,
    **count,
  }
  return {**run_files.append_evaluation(workdir, row), 'tables': found.tables}


def _adapt_data(config, settings):
  """Changes the data of a config for an evaluator of the type imagenet.

  It reads no training images, and the labels of ImageNet-ReaL.
  """
  if settings.type == 'imagenet':
    config.train_split = config.test_split
  if settings.get('variant') == 'real':
    config.labels, config.task = settings.labels, 'multi_label'


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
  _adapt_data(other, settings)
  data = setup.load_data(other, mesh)
  line = messages.describe_data(other, data)
  console.log_info(f'evaluators {", ".join(names)}: {line}')
  return data
