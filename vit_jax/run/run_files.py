"""Small files in the folder of a run: its config, its classes, its data."""

import json
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax.checkpoint import metadata
from vit_jax.data import input_pipeline
from vit_jax.data import json_files
from vit_jax.run import setup
from vit_jax.tasks import task as tasks_task

# A run may go on with others of these: on other devices, another machine, in
# less memory, with other cadences.
_MAY_CHANGE = (
  'mesh.data',
  'mesh.fsdp',
  'mesh.tensor',
  'batch_eval',
  'checkpoint_every',
  'compilation_cache_dir',
  'eval_every',
  'eval_only',
  'keep',
  'log_every',
  'model.attention',
  'model.remat',
  'model.scan',
  'patience',
  'pretrained_dir',
  'tfds_data_dir',
  'weights_sources',
)


# And with others of these, if the learning rates so far stay as they are.
_LENGTH = {'cooldown_steps', 'total_epochs', 'total_steps'}


def check_config(workdir: str, config: ConfigDict, step: int) -> None:
  """Raises a ValueError if `workdir` holds a run with other settings.

  Args:
    workdir: the run's folder.
    config: of the run that is to go on.
    step: completed updates.
  """
  given, defaults = (
    json.loads(json.dumps(base_config.flatten(settings)))
    for settings in (config, base_config.get_config())
  )
  # What a run of an earlier version does not name had its default.
  stored = {**defaults, **metadata.read_config(workdir)}
  differing = {
    name
    for name in stored.keys() | given.keys()
    if stored.get(name) != given.get(name)
    and name not in _MAY_CHANGE
    # A folder of images may have moved: its content is compared later.
    and not (
      name == 'dataset' and os.path.isdir(os.path.expanduser(given[name]))
    )
  }
  how_to_go_on = ''
  if differing and differing <= _LENGTH:
    if _same_rates(workdir, config, stored, step):
      return
    how_to_go_on = (
      f'\nWith another length, the learning rate of the {step} updates so far '
      'would have been another (config.decay_type constant and rsqrt allow it, '
      'before their cool-down). To train on, begin a new run with the weights '
      f'of this one: --config.pretrained={workdir} --workdir=…'
    )
  if differing:
    raise ValueError(
      f'{workdir} holds a run with other settings:\n'
      + '\n'.join(
        f'  config.{name}: {stored.get(name)!r} in the folder, '
        f'{given.get(name)!r} now'
        for name in sorted(differing)
      )
      + '\nGive the same settings to go on with it, or another folder '
      '(--workdir=…) for a new run' + how_to_go_on
    )


def _same_rates(workdir, config, stored, step):
  """Whether the updates so far had the learning rates of `config`."""
  data = json_files.read_json(os.path.join(workdir, 'data.json'))
  if data is None:
    return False
  before = config.copy_and_resolve_references()
  before.update_from_flattened_dict({name: stored[name] for name in _LENGTH})
  rates = []
  for settings in (before, config):
    schedule, _ = setup.make_optimizer(
      settings, setup.resolve_steps(settings, data['training images'])
    )
    rates.append(jax.vmap(schedule)(jnp.arange(step)))
  return bool((rates[0] == rates[1]).all())


def _describe(data):
  names = {'train': 'training images'}
  return {
    **{names.get(k, f'{k} images'): n for k, n in data.num_examples.items()},
    'fingerprint': data.fingerprint,
  }


def check_data(workdir: str, data: input_pipeline.Datasets) -> None:
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


def check_frozen(workdir: str, found: str | None) -> None:
  """Raises a ValueError if a run began with other frozen arrays.

  Args:
    workdir: the run's folder.
    found: `setup.fingerprint` of what the task has loaded now.
  """
  stored = json_files.read_json(os.path.join(workdir, 'frozen.json'))
  if stored is not None and stored['sha256'] != found:
    raise ValueError(
      f'what the task of the run in {workdir} uses and does not train, such as '
      "a teacher's parameters, is not what it was when the run began. Restore "
      'it, or begin a new run in another folder (--workdir=…)'
    )


def save(
  workdir: str,
  config: ConfigDict,
  data: input_pipeline.Datasets,
  task: tasks_task.Task,
  frozen: str | None,
) -> None:
  """Writes what identifies the run that begins or goes on.

  Args:
    workdir: the run's folder.
    config: of the run.
    data: an `input_pipeline.Datasets`.
    task: a `task.Task`.
    frozen: `setup.fingerprint` of what the task does not train, or None.
  """
  write = json_files.write_json
  write(metadata.config_path(workdir), base_config.flatten(config))
  write(metadata.class_names_path(workdir), list(data.class_names))
  write(os.path.join(workdir, 'data.json'), _describe(data))
  write(metadata.deployed_path(workdir), task.deployed.to_json())
  if frozen:
    write(os.path.join(workdir, 'frozen.json'), {'sha256': frozen})
