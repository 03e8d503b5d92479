"""The initial weights of a run, and its frozen arrays."""

from collections.abc import Collection
import dataclasses
import hashlib
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import mae_decoder
from vit_jax.checkpoint.pretrained import search
from vit_jax.models import variants
from vit_jax.optim import rules
from vit_jax.parallel import processes
from vit_jax.parallel import sharding
from vit_jax.run import messages
from vit_jax.run import setup
from vit_jax.tasks import task as tasks_task


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
  if config.task == 'mae':
    loaded = dataclasses.replace(loaded, decoder=_decoder(loaded, config))
  return loaded, []


def _decoder(loaded, config):
  """Returns the decoder in weights of a masked autoencoder; None without."""
  run, _ = trained_model.run_and_step(loaded.source)
  if not trained_model.is_run(run):
    return mae_decoder.load(loaded.source, config.mae.decoder_heads)
  if loaded.description.task != 'mae':
    return None
  return weights_file.load_module(
    loaded.source, 'decoder', loaded.description.params_set
  )


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
  if loaded.decoder:
    decoder = init_weights.fit_decoder(
      *(loaded, model, params['decoder'], parts.data.image_size)
    )
    fitted = {**fitted, 'decoder': decoder}
  elif warns and config.task == 'mae':
    console.log_info(
      f'{loaded.source} has no decoder, so the decoder starts from random '
      'values'
    )
  if warns:
    warn_of_frozen(parts, unchanged(params, fitted))
  return fitted


def unchanged(params: Any, fitted: Any) -> set[str]:
  """Returns the paths of the arrays of `params` that `fit` did not replace."""
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
