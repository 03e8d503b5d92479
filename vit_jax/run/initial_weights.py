"""The initial weights of a run, its frozen arrays, and features of images."""

from collections.abc import Collection
import dataclasses
import hashlib
import json
import os
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_jax import base_config
from vit_jax import console
from vit_jax import models
from vit_jax import tasks
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint.pretrained import search
from vit_jax.data import input_pipeline
from vit_jax.data.in_memory import numpy_pipeline
from vit_jax.evaluators import features
from vit_jax.models import variants
from vit_jax.optim import rules
from vit_jax.parallel import preemption
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import given as given_objects
from vit_jax.run import messages
from vit_jax.run import setup
from vit_jax.tasks import task as tasks_task

_RESIZING = ('pp.resize', 'pp.crop_fraction', 'pp.interpolation')
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


def adopt(
  config: ConfigDict, workdir: str | None = None, fetches: bool = True
) -> ConfigDict:
  """Returns a config with what the run takes from its initial weights.

  With config.model.name=weights, this is the whole architecture and the way
  images are resized. With the name of an architecture, it is what no array of
  timm's or Hugging Face's files contains, such as the activation. Settings of
  the user have priority. A run that resumes has all settings in its folder.

  Args:
    config: settings from `base_config`.
    workdir: the run folder; None: the run starts.
    fetches: whether to download weights that are not on this machine. With
      config.model.name=weights, they are always needed.

  Raises:
    ValueError: the weights cannot be read, or their architecture is unknown.
  """
  by_weights = config.model.name == 'weights'
  if config.pretrained in ('model', 'scratch'):
    if by_weights:
      raise ValueError(
        f'config.model.name=weights needs weights, but config.pretrained='
        f'{config.pretrained}. Set config.pretrained to a path, URL or name'
      )
    return config
  config = config.copy_and_resolve_references()
  stored = metadata.read_config(workdir) if workdir else {}
  if workdir and trained_model.is_run(workdir):
    found = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in stored.items()
      if name in base_config.flatten(config)
      and (name.startswith('model.') or (by_weights and name in _RESIZING))
    }
    size = stored.get('pp.crop'), stored.get('pp.crop_width')
  elif not by_weights and search.is_published(config.pretrained):
    return config
  else:
    find = search.find if fetches or by_weights else _find_here
    path = processes.main_first(
      lambda: find(
        config.pretrained, config.pretrained_dir, sources=config.weights_sources
      )
    )
    if path is None:
      return config
    name = None if by_weights else variants.resolve(config.model.name)
    adopted = init_weights.adopt(path, name)
    found = {f'model.{key}': x for key, x in adopted.settings.items()}
    found['model.name'] = adopted.name
    resizing = dataclasses.asdict(adopted.resizing)
    found |= {f'pp.{key}': x for key, x in resizing.items() if by_weights}
    size = adopted.image_size or (0, 0)
    if by_weights:
      console.log_info(f'the architecture of {path} is used')
  flat, defaults = map(base_config.flatten, (config, base_config.get_config()))
  for key, value in found.items():
    if flat.get(key) in (None, 'weights') or (
      key in _RESIZING and flat[key] == defaults[key]
    ):
      config.update_from_flattened_dict({key: value})
  if not config.pp.crop:
    if not size[0]:
      raise ValueError(
        f'config.pp.crop=0 is the image size of the weights, but '
        f'{config.pretrained} does not contain it. Set config.pp.crop'
      )
    config.pp.crop, config.pp.crop_width = size
  return config


def _find_here(*args, **sources):
  """Returns the path of weights that are on this machine, or None."""
  return search.look(*args, **sources)[0]


def find(
  config: ConfigDict, fetches: bool = True
) -> tuple[init_weights.Pretrained | None, list[str]]:
  """Finds and reads the initial weights of a run.

  Args:
    config: settings from `base_config`.
    fetches: whether to download weights that are not on this machine.

  Returns:
    (weights, places). The weights are None for random initialization, and if
    they would have to be downloaded. In the second case, `places` lists the
    addresses in the order in which a run would try them.

  Raises:
    ValueError: no weights were found, or they need other model settings.
  """
  find = search.find if fetches else search.look
  found = processes.main_first(
    lambda: find(
      config.pretrained,
      config.pretrained_dir,
      model_name=variants.resolve(config.model.name),
      sources=config.weights_sources,
    )
  )
  path, places = (found, []) if fetches else found
  if path is None:
    return None, places
  loaded = init_weights.read(
    path,
    tasks_task.model_settings(config),
    config.pretrained_head == 'keep',
    is_copy=config.pretrained == 'model'
    or search.is_published(config.pretrained),
  )
  return loaded, []


def fit(
  loaded: init_weights.Pretrained,
  config: ConfigDict,
  parts: setup.Parts,
  params: Any,
  warns: bool = True,
) -> Any:
  """Returns `params`; a file's weights replace those of the deployed model.

  Args:
    loaded: weights from `find`.
    config: settings from `base_config`.
    parts: from `setup.make_parts`.
    params: randomly initialized NumPy arrays of the task's entire model.
    warns: whether to log a warning if random parameters are frozen.

  Raises:
    ValueError: the weights do not match the model.
  """
  deployed, model = parts.task.deployed, parts.task.model
  init_weights.check_head(loaded, deployed)
  path = [name for name in deployed.module.split('/') if name]
  if path:
    model = models.get_model(
      deployed.name,
      num_classes=len(deployed.class_names or ()),
      **deployed.settings,
    )

  def replace(tree, path):
    if path:
      return {**tree, path[0]: replace(tree[path[0]], path[1:])}
    return init_weights.fit(
      loaded,
      model,
      tree,
      parts.data.image_size,
      parts.data.class_names,
      config.dataset,
      resize_patches=config.model.patch_size is not None,
    )

  if parts.frozen_paths:
    params = jax.tree.map(np.asarray, params)
  fitted = replace(params, path)
  if warns:
    warn_of_frozen(parts, _unchanged(params, fitted))
  return fitted


def _unchanged(params, fitted):
  """Returns the paths of the arrays that the weights did not replace."""
  return {
    rules.path_of(path)
    for (path, old), new in zip(
      jax.tree.leaves_with_path(params), jax.tree.leaves(fitted), strict=True
    )
    if new is old  # `adapt` returns arrays that the file does not replace
  }


def warn_of_frozen(parts: setup.Parts, random_paths: Collection[str]) -> None:
  """Logs a warning if randomly initialized parameters are frozen.

  Args:
    parts: from `setup.make_parts`.
    random_paths: paths of the parameters that no file replaces.
  """
  found = sorted(parts.frozen_paths.intersection(random_paths))
  modules = messages.first_names(rules.groups_of(found))
  if found:
    console.log_info(
      f'warning: config.freeze freezes {len(found)} array(s) that are randomly '
      f'initialized and would stay random, in {modules}. Change config.freeze '
      'or the weights, unless this is intended'
    )


def load_frozen(parts: setup.Parts) -> tuple[Any, str | None]:
  """Returns (frozen arrays of the task on the mesh, their fingerprint)."""
  frozen = parts.task.load_frozen(parts.mesh)
  if not jax.tree.leaves(frozen):
    return frozen, None
  digest = fingerprint(frozen)
  processes.check_same({'the fingerprint of the frozen arrays': digest})
  return jax.tree.map(
    sharding.put, frozen, sharding.by_rules(frozen, parts.mesh)
  ), digest


def fingerprint(tree: Any) -> str:
  """Returns the SHA-256 of the arrays and paths of a pytree."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    x = np.asarray(x)
    digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).data)
  return digest.hexdigest()


# --- data of features --------------------------------------------------------


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
      params = _encoder_params(config, parts, find(config)[0])
      key |= _origin_of_start(data, params, workdir)
    features.use_folder(folder, key, list(data.sources))
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
    'the weights': fingerprint(params),
    'the folder of images': os.path.realpath(os.path.expanduser(dataset)),
    'the files': features.describe_files(dataset, workdir),
  }


def _stored_features(folder, origin, data):
  """Returns {split: arrays} of complete features in a folder, or None."""
  if not features.matches(folder, origin):
    return None
  arrays = {split: features.read(folder, split) for split in data.sources}
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
    fitted = fit(loaded, config, parts, zeros, warns=False)
    found = _unchanged(zeros, fitted) & parts.frozen_paths
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
