"""Settings that a run takes from its weights and from its training images."""

import dataclasses

from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import console
from vit_jax.checkpoint import init_weights
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint.pretrained import mae_decoder
from vit_jax.checkpoint.pretrained import search
from vit_jax.models import variants
from vit_jax.parallel import processes
from vit_jax.tasks import task as tasks_task

# Settings that `mae_decoder.run_settings` finds.
_OF_MAE = (
  'model.positions',
  *(f'mae.decoder_{x}' for x in ('size', 'layers', 'heads', 'positions')),
  'mae.normalize',
)
_RESIZING = ('pp.resize', 'pp.crop_fraction', 'pp.interpolation')


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
    of_mae = {name: stored[name] for name in _OF_MAE if name in stored}
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
    of_mae = _of_mae_run(path) or mae_decoder.run_settings(path)
    name = None if by_weights else variants.resolve(config.model.name)
    given = tasks_task.model_settings(config)
    is_copy = search.is_published(config.pretrained)
    adopted = init_weights.adopt(path, name, given, is_copy)
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
  if config.task == 'mae':
    _adopt_decoder(config, of_mae, defaults)
  if not config.pp.crop:
    if not size[0]:
      raise ValueError(
        f'config.pp.crop=0 is the image size of the weights, but '
        f'{config.pretrained} does not contain it. Set config.pp.crop'
      )
    config.pp.crop, config.pp.crop_width = size
  return config


def _of_mae_run(path):
  """Returns the settings `_OF_MAE` of a run of config.task=mae; else {}."""
  run, _ = trained_model.run_and_step(path)
  stored = metadata.read_config(run) if trained_model.is_run(run) else {}
  if stored.get('task') != 'mae':
    return {}
  return {name: stored[name] for name in _OF_MAE if name in stored}


def _adopt_decoder(config, found, defaults):
  """Puts what weights say of the decoder in place of the default settings."""
  flat, defaults = base_config.flatten(config), dict(defaults)
  defaults['model.positions'] = 'sincos2d'  # of configs/mae.py
  changed = {}
  for key, value in found.items():
    if flat[key] == defaults[key] != value:
      changed[key] = value
    elif flat[key] != value and key.startswith('mae.decoder'):
      raise ValueError(
        f'config.{key}={flat[key]}, but the decoder of {config.pretrained} was '
        f'trained with {value}. Remove this setting'
      )
  config.update_from_flattened_dict(changed)
  if changed:
    console.log_info(
      f'of {config.pretrained}: '
      + ' '.join(f'config.{key}={value}' for key, value in changed.items())
    )


def _find_here(*args, **sources):
  """Returns the path of weights that are on this machine, or None."""
  return search.look(*args, **sources)[0]
