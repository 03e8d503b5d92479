"""Evaluates a trained model on a whole data set; trains nothing.

The weights are those of `config.pretrained`, or of the run in the workdir. The
images are those of `config.test_split`, at the size of `config.pp`.
"""

import datetime
import json
import math
import os

import jax

from vit_jax import base_config
from vit_jax import console
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import search
from vit_jax.data import input_pipeline
from vit_jax.evaluators import accuracy
from vit_jax.models import architecture
from vit_jax.models import variants
from vit_jax.optim import loss_functions
from vit_jax.parallel import numerics
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import preemption


@numerics.fixed()
def evaluate_only(
  config, workdir, *, trained=None, loss_fn=loss_functions.softmax_cross_entropy
):
  """Accuracy and loss of trained weights over the whole test split.

  A line is added to `workdir`/evaluations.jsonl. A run that the folder holds is
  left as it is.

  Args:
    config: from `base_config`.
    workdir: folder of the run to evaluate, or for the numbers alone.
    trained: the `TrainedModel` to evaluate; None: the one that the config and
      the workdir name.
    loss_fn: (logits, labels) -> loss of each example [B].

  Returns:
    {'accuracy', 'loss', 'count', …}, the line written.

  Raises:
    ValueError: the weights, the settings and the data do not go together.
    preemption.Preempted: SIGTERM came; no number is written.
  """
  base_config.validate(config)
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor
  )
  sharding.check_batch('batch_eval', config.batch_eval, 1, mesh)
  image_size = input_pipeline.image_size(config)
  trained = trained or _load(config, workdir, image_size)
  console.log_info(f'{trained.source}: {trained}')
  if trained.trained_size != image_size:
    resampled = architecture.has_positions(weights_file.flatten(trained.params))
    console.log_info(
      ('its positions are resampled from' if resampled else 'it was trained on')
      + ' images of {} x {}'.format(*trained.trained_size)
    )

  data = processes.main_first(
    lambda: input_pipeline.get_datasets(
      input_pipeline.streaming(config),
      _cache_dir(config, workdir),
      sharding.share_of(mesh, jax.process_index()),
    )
  )
  params = class_mapping.match(
    trained.params,
    trained.class_names,
    data.class_names,
    trained.source,
    config.dataset,
  )
  console.log_info(
    f'{config.dataset}: {data.num_test} test images in '
    f'{len(data.class_names)} classes'
  )
  batches = console.counting(
    preemption.checked(data.test()),
    math.ceil(data.num_test / config.batch_eval),
    'evaluating',
  )
  with preemption.watching():
    numbers = accuracy.evaluate(
      accuracy.make_eval_fn(trained.model, mesh, loss_fn),
      jax.tree.map(sharding.put, params, sharding.by_rules(params, mesh)),
      batches,
      mesh,
      data.num_test,
    )
  row = {
    'weights': trained.source,
    'dataset': config.dataset,
    'split': config.test_split,
    'image_size': image_size,
    **numbers,
    'time': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
  }
  if processes.is_main():
    with open(
      os.path.join(workdir, 'evaluations.jsonl'), 'a', encoding='utf-8'
    ) as file:
      file.write(json.dumps(row) + '\n')
  console.log_info(
    f'{100 * numbers["accuracy"]:.2f} % of {numbers["count"]} test images '
    f'right ({round(numbers["accuracy"] * numbers["count"])}), loss '
    f'{numbers["loss"]:.4f}; written to {workdir}/evaluations.jsonl'
  )
  return row


def _load(config, workdir, image_size):
  """Returns the model that the config names, checked against its settings."""
  overrides = {
    name: value
    for name, value in config.model.items()
    if name != 'name' and value is not None
  }
  return trained_model.load_model(
    processes.main_first(lambda: _source(config, workdir)),
    model_name=config.model.name,
    overrides=overrides,
    image_size=image_size,
  )


def _source(config, workdir):
  """What to evaluate: the run in the workdir, unless other weights are named.

  The weights that the run itself began with are not other weights, so that its
  own command with `--config.eval_only=True` evaluates what it has trained.
  """
  if trained_model.is_run(workdir):
    stored = metadata.read_config(workdir)
    if config.pretrained in ('model', 'scratch', stored.get('pretrained')):
      return workdir
  if config.pretrained == 'scratch':
    raise ValueError(
      f'there is nothing to evaluate: {workdir} holds no checkpoint, and '
      "config.pretrained is 'scratch'. Give the --workdir of a run, or "
      'weights with --config.pretrained=…'
    )
  return search.find(
    config.pretrained,
    config.pretrained_dir,
    model_name=variants.resolve(config.model.name),
    sources=config.weights_sources,
  )


def _cache_dir(config, workdir):
  """`workdir`, but not where the run in it keeps notes on another data set."""
  stored = metadata.read_config(workdir).get('dataset', config.dataset)
  return workdir if stored == config.dataset else None
