"""Small files in the folder of a run: its config, its classes, its data."""

import json
import os

from vit_jax import base_config
from vit_jax.checkpoint import metadata
from vit_jax.data import json_files

# A run may go on with others of these: on other devices, another machine, in
# less memory.
_MAY_CHANGE = (
  'mesh.data',
  'mesh.fsdp',
  'mesh.tensor',
  'batch_eval',
  'checkpoint_every',
  'compilation_cache_dir',
  'eval_only',
  'keep',
  'model.attention',
  'model.remat',
  'model.scan',
  'pretrained_dir',
  'tfds_data_dir',
  'weights_sources',
)


def check_config(workdir, config):
  """Raises a ValueError if `workdir` holds a run with other settings."""
  given, defaults = (
    json.loads(json.dumps(base_config.flatten(settings)))
    for settings in (config, base_config.get_config())
  )
  # What a run of an earlier version does not name had its default.
  stored = {**defaults, **metadata.read_config(workdir)}
  differing = [
    f'  config.{name}: {stored.get(name)!r} in the folder, '
    f'{given.get(name)!r} now'
    for name in sorted(stored.keys() | given.keys())
    if stored.get(name) != given.get(name)
    and name not in _MAY_CHANGE
    # A folder of images may have moved: its content is compared later.
    and not (
      name == 'dataset' and os.path.isdir(os.path.expanduser(given[name]))
    )
  ]
  if differing:
    raise ValueError(
      f'{workdir} holds a run with other settings:\n'
      + '\n'.join(differing)
      + '\nGive the same settings to go on with it, or another folder '
      '(--workdir=…) for a new run'
    )


def _describe(data):
  return {
    'training images': data.num_train,
    'test images': data.num_test,
    'fingerprint': data.fingerprint,
  }


def check_data(workdir, data):
  """Raises a ValueError if the run in `workdir` began with other data.

  Args:
    workdir: the run's folder.
    data: an `input_pipeline.Datasets`.
  """
  names = metadata.read_class_names(workdir)
  stored = json_files.read_json(os.path.join(workdir, 'data.json'))
  if names is not None and names != list(data.class_names):
    changed = sorted(set(names) ^ set(data.class_names)) or ['their order']
    changes = f'other classes: {", ".join(changed)}'
  elif stored is not None and stored != _describe(data):
    changes = (
      ' and '.join(
        f'{stored[name]} {name} then, {now} now'
        for name, now in _describe(data).items()
        if name != 'fingerprint' and stored[name] != now
      )
      or 'as many images, of other names'
    )
  else:
    return
  raise ValueError(
    f'the data have changed since the run in {workdir} began ({changes}). '
    'Restore them, or begin a new run in another folder (--workdir=…)'
  )


def save(workdir, config, data):
  """Writes what identifies the run that begins or goes on."""
  json_files.write_json(
    metadata.config_path(workdir), base_config.flatten(config)
  )
  json_files.write_json(
    metadata.class_names_path(workdir), list(data.class_names)
  )
  json_files.write_json(os.path.join(workdir, 'data.json'), _describe(data))
