"""BiT-HyperRule: settings that a run takes from its training images."""

from typing import Any

from ml_collections import ConfigDict
import numpy as np

from vit_jax import base_config
from vit_jax import console
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.data import input_pipeline
from vit_jax.data import preprocess
from vit_jax.optim import hyperrule

_MOST_IMAGES = 100  # whose size is read
# Values that leave a setting to the rule.
_LEFT_TO_RULE = {
  'total_steps': 0,
  'warmup_steps': 0,
  'drop_steps': (),
  'augment.mixup': 0,
  'pp.train_size': 0,
  'pp.crop': 0,
}
_FIXED = {
  'total_epochs': 0,
  'warmup_epochs': 0,
  'decay_type': 'step',
  'pp.train_crop': 'squash',
}
_TASKS_WITH_CLASSES = ('classification', 'multi_label')


def adopt(
  config: ConfigDict, workdir: str | None = None, given: Any = None
) -> ConfigDict:
  """Returns a config with the settings of `hyperrule.settings`.

  A run that resumes has these settings in its folder. Without
  config.hyperrule, the config stays the same. The rule's mixup is only for
  tasks with classes. Other tasks keep `config.augment.mixup`.

  Args:
    config: settings from `base_config`. Each setting of the rule must be 0 or
      (), or have the rule's value.
    workdir: the run folder; None: the run starts.
    given: data that replace `config.dataset`; see `vit_jax.data`.

  Raises:
    ValueError: a setting contradicts the rule, or the data have no known size.
  """
  if not config.hyperrule:
    return config
  flat = base_config.flatten(config)
  for name, needed in _FIXED.items():
    if flat[name] != needed:
      raise ValueError(
        f'config.{name}={flat[name]!r} contradicts config.hyperrule=True, '
        f'which needs config.{name}={needed!r}. Remove this setting, or set '
        'config.hyperrule=False and choose all settings'
      )
  if workdir and trained_model.is_run(workdir):
    stored = metadata.read_config(workdir)
    found = {
      name: tuple(stored[name]) if name == 'drop_steps' else stored[name]
      for name in _LEFT_TO_RULE
    }
    images = 'the training images of this run'
  else:
    num_examples, size = _measure(config, given)
    found = hyperrule.settings(num_examples, size)
    images = f'{num_examples} training images of {size[0]} x {size[1]} pixels'
  if config.task not in _TASKS_WITH_CLASSES:
    del found['augment.mixup']
  for name, value in found.items():
    if flat[name] not in (_LEFT_TO_RULE[name], value):
      raise ValueError(
        f'config.{name}={flat[name]!r} contradicts config.hyperrule=True, '
        f'which uses config.{name}={value!r} for {images}. Set '
        f'config.{name}={_LEFT_TO_RULE[name]!r} to leave the choice to the '
        'rule, or set config.hyperrule=False and choose all settings'
      )
  console.log_info(
    f'BiT-HyperRule for {images}: '
    + ', '.join(f'{name}={value}' for name, value in found.items())
  )
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(found)
  return config


def _measure(config, given):
  """Returns (number of training images, (height, width) of the median area)."""
  data = input_pipeline.get_datasets(
    base_config.data_settings(config, **base_config.ONE_PASS, data_on='host'),
    check_images=False,
    given=given,
  )
  source, count = data.sources['train'], data.num_train
  if not count or not (source.arrays or source.read or source.stream):
    raise ValueError(
      'config.hyperrule=True needs the number and the size of the training '
      'images, which batches from Python do not have. Use '
      'config.hyperrule=False, and choose the settings yourself'
    )
  if source.arrays:
    return count, source.arrays['image'].shape[1:3]
  if source.read:
    numbers = np.linspace(0, count - 1, min(count, _MOST_IMAGES)).astype(int)
    images = (source.read(i)['image'] for i in numbers)
  else:
    images = (x['image'] for x in source.stream(None, None).take(_MOST_IMAGES))
  sizes = [preprocess.decode(x, data.decoding).shape[:2] for x in images]
  sizes.sort(key=lambda size: size[0] * size[1])
  return count, tuple(map(int, sizes[len(sizes) // 2]))
