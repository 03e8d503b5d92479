"""The features of images, computed once, on which a run trains."""

import dataclasses
import json
import os
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_jax import console
from vit_jax import tasks
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint import trained_model
from vit_jax.data import input_pipeline
from vit_jax.data.in_memory import numpy_pipeline
from vit_jax.evaluators import features
from vit_jax.inference import feature_files
from vit_jax.optim import rules
from vit_jax.parallel import preemption
from vit_jax.parallel import sharding
from vit_jax.run import given as given_objects
from vit_jax.run import messages
from vit_jax.run import setup
from vit_jax.run.start import initial_weights
from vit_jax.tasks import task as tasks_task

# Settings of the data that do not change the features.
_NOT_IN_FEATURES = (
  *(
    'dataset',
    'tfds_data_dir',
    'data_on',
    'device_data_bytes',
    'in_memory_bytes',
    'shuffle_buffer',
    'max_bad_images',
  ),
  *('batch', 'batch_eval', 'seed', 'cropping', 'repeats'),
)


def encode_data(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  data: input_pipeline.Datasets,
  given: given_objects.Given,
  workdir: str | None,
  loaded: init_weights.Pretrained | None,
) -> input_pipeline.Datasets:
  """Returns the data that the task trains on: the images, or their features.

  Features of frozen weights are computed once, and kept in `workdir`/features.
  An interrupted computation continues where it stopped.

  Args:
    config: settings from `base_config`.
    mesh: from `setup.check`.
    data: the images, from `setup.load_data`.
    given: the caller's objects that replace settings.
    workdir: the run folder. None computes nothing: all features are 0.
    loaded: the weights; None if a run resumes, or without weights.

  Raises:
    ValueError: the task cannot use the data, the model or the weights.
  """
  make_encoder = tasks.encoder_maker(config.task)
  if make_encoder is None:
    return data
  encode, width = make_encoder(config, data)
  num_parts = sharding.num_row_parts(mesh)
  (shape, dtype), zero = data.spec()['label'], np.float32(0)
  empty = numpy_pipeline.in_full_batches(
    data,
    {
      split: {
        'feature': np.broadcast_to(zero, (count, width)),
        'label': np.broadcast_to(np.zeros((), dtype), (count, *shape)),
      }
      for split, count in data.num_examples.items()
    },
    num_parts,
  )
  parts = setup.make_parts(config, mesh, empty, given)
  if workdir is None:
    console.log_info(
      f'a run first computes the features of {sum(data.num_examples.values())} '
      'images once. The following costs are those of the head on the features'
    )
    return empty
  folder = os.path.join(workdir, 'features')
  key, params = _origin(config, data), None
  if not trained_model.is_run(workdir):
    params = _encoder_params(config, parts, loaded)
    key |= _origin_of_start(data, params, workdir)
  arrays = _stored_features(folder, key, data)
  if arrays is None:
    if params is None:  # the run resumes, and its features are gone
      params = _encoder_params(config, parts, initial_weights.find(config)[0])
      key |= _origin_of_start(data, params, workdir)
    feature_files.use_folder(folder, key, list(data.sources))
    arrays = _compute_features(folder, data, encode, params, mesh)
  return numpy_pipeline.in_full_batches(data, arrays, num_parts)


def _origin(config, data):
  """Returns what features depend on, except for the weights and the files."""
  settings = {
    name: value
    for name, value in dataclasses.asdict(data.settings).items()
    if name not in _NOT_IN_FEATURES
  }
  origin = {
    'the model': tasks_task.model_settings(config),
    'the list of images': [data.fingerprint, data.num_examples],
    'the classes': data.class_names,
    'the settings of the data': settings,
  }
  return json.loads(json.dumps(origin))  # as it is stored


def _origin_of_start(data, params, workdir):
  """Returns the rest, which may change after the first checkpoint.

  A run that resumes keeps its weights, and the images may be moved.
  """
  dataset = data.settings.dataset
  return {
    'the weights': initial_weights.fingerprint(params),
    'the folder of images': os.path.realpath(os.path.expanduser(dataset)),
    'the files': features.describe_files(dataset, workdir),
  }


def _stored_features(folder, origin, data):
  """Returns {split: arrays} of complete features in a folder, or None."""
  if not feature_files.matches(folder, origin):
    return None
  arrays = {split: feature_files.read(folder, split) for split in data.sources}
  for split, count in data.num_examples.items():
    if len(arrays[split].get('feature', ())) != count:
      return None
  console.log_info(f'using the features in {folder}')
  return arrays


def _encoder_params(config, parts, loaded):
  """Returns the frozen parameters on the mesh, as at the start of the run.

  Raises:
    ValueError: the weights lack frozen parameters, which would be random.
  """
  if not loaded:
    params = parts.init_fn(parts.keys.init).params
  else:
    zeros = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), parts.abstract_state.params
    )
    fitted = initial_weights.fit(loaded, config, parts, zeros, warns=False)
    found = initial_weights.unchanged(zeros, fitted) & parts.frozen_paths
    if found:
      modules = messages.first_names(rules.groups_of(sorted(found)))
      raise ValueError(
        f'{loaded.source} has no weights for {modules}, so the features would '
        'be random. Use config.model settings that match the weights, such as '
        'config.model.classifier, or other weights'
      )
    params = jax.tree.map(
      sharding.put, fitted, sharding.by_rules(fitted, parts.mesh)
    )
  return rules.select(
    params, set(rules.paths_of(params)) - set(parts.frozen_paths)
  )


def _compute_features(folder, data, encode, params, mesh):
  """Returns {split: arrays}, computed and written into the folder."""
  total, start = sum(data.num_examples.values()), time.monotonic()
  console.log_info(
    f'computing the features of {total} images once; they are kept in {folder}'
  )
  encode = features.make_encode_fn(encode, mesh)
  watched = dataclasses.replace(data, watch=preemption.checked)
  try:
    with preemption.watching():
      arrays = {
        split: features.compute(folder, split, watched, encode, params, mesh)
        for split in data.sources
      }
  except (KeyboardInterrupt, preemption.Preempted):
    console.log_info(
      'stopped; to continue with the remaining features, start the same '
      'command again'
    )
    raise
  width = arrays['train']['feature'].shape[1]
  console.log_info(
    f'computed {width} features of each image in '
    f'{time.monotonic() - start:.0f} s'
  )
  return arrays
