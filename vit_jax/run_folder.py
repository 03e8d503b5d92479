"""Small files in the folder of a run: its config, its class names."""

import json
import os

from vit_jax import base_config


# A run may go on with others of these: on other devices, another machine, in
# less memory.
_MAY_CHANGE = (
    'mesh.', 'batch_eval', 'checkpoint_every', 'compilation_cache_dir',
    'eval_only', 'keep', 'model.attention', 'model.remat', 'model.scan',
    'pretrained_dir', 'tfds_data_dir', 'weights_sources')


def read_json(path):
  """What `write_json` wrote; None where there is no file."""
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def write_json(path, value):
  """Writes a file that appears when whole."""
  partial = f'{path}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    json.dump(value, file, indent=2, ensure_ascii=False)
    file.write('\n')
  os.replace(partial, path)


def _config_path(workdir):
  return os.path.join(workdir, 'config.json')


def _names_path(workdir):
  return os.path.join(workdir, 'class_names.json')


def read_config(workdir):
  """{'pp.crop': 384, …} of the run in `workdir`; {} where there is none."""
  return read_json(_config_path(workdir)) or {}


def read_class_names(workdir):
  """The classes of the run in `workdir`; None where there is none."""
  return read_json(_names_path(workdir))


def check_config(workdir, config):
  """Raises a ValueError if `workdir` holds a run with other settings."""
  given, defaults = (
      json.loads(json.dumps(base_config.flatten(settings)))
      for settings in (config, base_config.get_config()))
  # What a run of an earlier version does not name had its default.
  stored = {**defaults, **read_config(workdir)}
  differing = [
      f'  config.{name}: {stored.get(name)!r} in the folder, '
      f'{given.get(name)!r} now'
      for name in sorted(stored.keys() | given.keys())
      if stored.get(name) != given.get(name)
      and not name.startswith(_MAY_CHANGE)]
  if differing:
    raise ValueError(
        f'{workdir} holds a run with other settings:\n' + '\n'.join(differing)
        + '\nGive the same settings to go on with it, or another folder '
        '(--workdir=…) for a new run')


def check_class_names(workdir, class_names):
  """Raises a ValueError if the run in `workdir` has other classes."""
  stored = read_class_names(workdir)
  if stored is not None and stored != list(class_names):
    changed = sorted(set(stored) ^ set(class_names)) or ['their order']
    raise ValueError(
        f'the classes of the data have changed since the run in {workdir} '
        f'began: {", ".join(changed)}. Restore the data, or begin a new run '
        'in another folder (--workdir=…)')


def save(workdir, config, class_names):
  """Writes both, for the run that begins or goes on."""
  write_json(_config_path(workdir), base_config.flatten(config))
  write_json(_names_path(workdir), list(class_names))
