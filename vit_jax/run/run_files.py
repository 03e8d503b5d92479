"""Small files in the run folder: settings, class names, data fingerprints."""

from collections.abc import Mapping
import datetime
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import tasks
from vit_jax.checkpoint import metadata
from vit_jax.data import class_names
from vit_jax.data import input_pipeline
from vit_jax.files import json_files
from vit_jax.optim import run_length
from vit_jax.optim import sam
from vit_jax.parallel import processes
from vit_jax.run import given as given_objects
from vit_jax.run import setup
from vit_jax.run.writers import metric_log

# Settings that may change when a run resumes: devices, machine, use of memory,
# intervals of logging and evaluation.
_MAY_CHANGE = (
  'mesh.data',
  'mesh.fsdp',
  'mesh.tensor',
  'batch_eval',
  'checkpoint_every',
  'compilation_cache_dir',
  'device_data_bytes',
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
  'tracker',
  'weights_sources',
)


# These may also change, if the learning rates of past updates stay equal.
_LENGTH = {'cooldown_steps', 'total_epochs', 'total_steps'}


def check_config(workdir: str, config: ConfigDict, step: int) -> None:
  """Raises ValueError if `workdir` has a run with other settings.

  Args:
    workdir: the run folder.
    config: settings of the run to resume.
    step: number of completed updates.
  """
  given, defaults = (
    json.loads(json.dumps(base_config.flatten(settings)))
    for settings in (config, base_config.get_config())
  )
  # A run of an earlier version may lack a setting. It used the default.
  before = metadata.read_config(workdir)
  stored = {**defaults, **before}
  if os.path.isdir(os.path.expanduser(stored['dataset'])):
    for name in ('pp.exif', 'pp.background'):  # folders ignored both
      stored[name] = before.get(name, 'ignore')
  differing = {
    name
    for name in stored.keys() | given.keys()
    if stored.get(name) != given.get(name)
    and name not in _MAY_CHANGE
    and not _is_of_new_evaluator(name, stored, given)
    # The folder or file may have moved. `check_data` compares its content.
    and not (
      name in ('dataset', 'labels')
      and os.path.exists(os.path.expanduser(given[name]))
    )
  }
  advice = ''
  if differing and differing <= _LENGTH:
    if _same_rates(workdir, config, stored, step):
      return
    advice = (
      '\nThe new length would change the learning rate or the weight decay of '
      f'the {step} completed updates. Only config.decay_type=constant, rsqrt '
      'and step allow another length, until a cool-down starts, and without '
      'config.weight_decay_end, config.augment.mix_off, config.sam.rho_min and '
      'config.task=dino. '
      'To train longer, start a new run from these weights: '
      f'config.pretrained={workdir} workdir=…'
    )
  if differing:
    raise ValueError(
      f'{workdir} has a run with other settings:\n'
      + '\n'.join(
        f'  config.{name}={stored.get(name)!r} in the folder, '
        f'{given.get(name)!r} now'
        for name in sorted(differing)
      )
      + '\nUse the settings in the folder to resume this run, or another '
      'workdir=… for a new run' + advice
    )


def _is_of_new_evaluator(name, stored, given):
  """Returns whether an evaluator was added or removed, or only its `every`.

  Then the metrics that the run already has keep their meaning.
  """
  group, _, rest = name.partition('.')
  evaluator, _, setting = rest.partition('.')
  kind = f'evaluators.{evaluator}.type'
  return group == 'evaluators' and (
    setting == 'every' or kind not in stored or kind not in given
  )


def _same_rates(workdir, config, stored, step):
  """Returns whether past updates would be equal with another length."""
  data = _read_data(workdir)
  if data is None or config.weight_decay_end is not None:
    return False
  if config.augment.mix_off or tasks.uses_length(config.task):
    return False
  before = config.copy_and_resolve_references()
  before.update_from_flattened_dict({name: stored[name] for name in _LENGTH})
  rates = []
  for settings in (before, config):
    length = run_length.resolve(settings, data['training images'])
    schedule, _ = setup.make_optimizer(settings, length)
    sharpness = sam.make(settings, schedule, length.total_steps)
    used = [schedule, sharpness.rho] if sharpness else [schedule]
    steps = jnp.arange(step)
    rates.append(
      [jax.vmap(lambda i, f=f: jnp.float32(f(i)))(steps) for f in used]
    )
  return bool(jnp.array_equal(jnp.stack(rates[0]), jnp.stack(rates[1])))


def _describe(data):
  names = {'train': 'training images'}
  return {
    **{names.get(k, f'{k} images'): n for k, n in data.num_examples.items()},
    'fingerprint': data.fingerprint,
  }


def _read_data(workdir):
  """Returns what `_describe` returned at the start; None without a file."""
  # The number of given batches is unknown.
  kind = {str: (int, str, None), 'fingerprint': str}
  return json_files.read_json(os.path.join(workdir, 'data.json'), kind)


def read_given(workdir: str) -> dict[str, Any] | None:
  """Returns what `Given.describe` returned at the start of a run, or None."""
  return json_files.read_json(
    os.path.join(workdir, 'given.json'), {str: (dict, None)}
  )


def check_data(workdir: str, data: input_pipeline.Datasets) -> None:
  """Raises ValueError if the run in `workdir` was started with other data.

  Args:
    workdir: the run folder.
    data: the datasets to compare.
  """
  names = metadata.read_class_names(workdir)
  stored = _read_data(workdir)
  # Runs of earlier versions stored the names of folders: WordNet ids.
  if names is not None and class_names.readable(names) != data.class_names:
    known = class_names.readable(names)
    changed = sorted(set(known) ^ set(data.class_names)) or ['their order']
    changes = f'other classes: {", ".join(changed)}'
  elif stored is not None and stored != _describe(data):
    changes = (
      ' and '.join(
        f'{stored.get(name, 0)} {name} then, {now} now'
        for name, now in _describe(data).items()
        if name != 'fingerprint' and stored.get(name) != now
      )
      or 'the number of images is equal, but the images are different'
    )
  else:
    return
  raise ValueError(
    f'the data have changed since the run in {workdir} started ({changes}). '
    'Restore the data, or start a new run in another workdir=…'
  )


def check_frozen(workdir: str, found: str | None) -> None:
  """Raises ValueError if the run was started with other frozen arrays.

  Args:
    workdir: the run folder.
    found: fingerprint of the frozen arrays, or None without them.
  """
  path = os.path.join(workdir, 'frozen.json')
  stored = json_files.read_json(path, {'sha256': str})
  if stored is not None and stored['sha256'] != found:
    raise ValueError(
      "the task's frozen arrays, such as a teacher's parameters or features, "
      'have changed '
      f'since the run in {workdir} started. Restore the arrays, or start a new '
      'run in another workdir=…'
    )


def check_given(workdir: str, given: given_objects.Given) -> None:
  """Raises ValueError if the run was started with other Python objects.

  Args:
    workdir: the run folder.
    given: the caller's objects that replace settings.
  """
  stored = read_given(workdir)
  if stored is not None:  # runs of earlier versions lack it
    rows = metric_log.read(os.path.join(workdir, 'metrics.jsonl'))
    measured = {name for row in rows for name in row}
    given.check_equal(stored, measured, workdir)


def save(
  workdir: str,
  config: ConfigDict,
  data: input_pipeline.Datasets,
  deployed: metadata.Description,
  given: given_objects.Given,
  frozen: str | None,
) -> None:
  """Writes the files that identify a run.

  Args:
    workdir: the run folder.
    config: settings of the run.
    data: datasets of the run.
    deployed: metadata of the model that the run trains.
    given: the caller's objects that replace settings.
    frozen: `initial_weights.fingerprint` of the task's frozen arrays, or None.
  """
  write = json_files.write_json
  write(metadata.config_path(workdir), base_config.flatten(config))
  write(metadata.class_names_path(workdir), list(data.class_names))
  write(os.path.join(workdir, 'data.json'), _describe(data))
  if data.findings:
    write(os.path.join(workdir, 'data_check.json'), data.findings)
  write(os.path.join(workdir, 'given.json'), given.describe())
  write(metadata.deployed_path(workdir), deployed.to_json())
  if frozen:
    write(os.path.join(workdir, 'frozen.json'), {'sha256': frozen})


def append_evaluation(workdir: str, row: Mapping[str, Any]) -> dict[str, Any]:
  """Appends a row to evaluations.jsonl, and returns it with the time."""
  now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
  row = {**row, 'time': now}
  if processes.is_main():
    path = os.path.join(workdir, 'evaluations.jsonl')
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')
  return row


class Chosen:
  """What the validation split chose at each evaluated step of a run.

  It is `means.Evaluation.chosen`, such as thresholds, of the parameters and of
  their moving average. `metadata.of_run` reads the file.
  """

  def __init__(self, workdir: str, first_step: int):
    """Reads the file; entries after `first_step` are of an earlier start.

    Args:
      workdir: the run folder.
      first_step: step from which the run resumes, or 0.
    """
    self._path = metadata.chosen_path(workdir)
    stored = metadata.read_all_chosen(workdir)
    self._steps = {k: x for k, x in stored.items() if int(k) <= first_step}
    processes.check_same({'chosen.json': self._steps})
    if len(self._steps) < len(stored):
      self._write()

  def at(self, step: int, params_set: str) -> dict[str, Any] | None:
    """Returns what was chosen for 'params' or 'ema' of a step, or None."""
    return self._steps.get(str(step), {}).get(params_set)

  def keep(self, step: int, chosen: Mapping[str, dict[str, Any]]) -> None:
    """Stores {'params' or 'ema': what was chosen} of a step, if anything."""
    chosen = {name: values for name, values in chosen.items() if values}
    if chosen:
      self._steps[str(step)] = chosen
      self._write()

  def _write(self):
    if processes.is_main():
      json_files.write_json(self._path, self._steps)
