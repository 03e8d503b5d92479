"""Metadata stored next to weights: architecture, image size, class names.

A run folder has `deployed.json`, `config.json` and `class_names.json`. The
metadata of an exported `NAME.npz` is `NAME.npz.json`. The metadata of a
`model.safetensors` is `config.json` in its folder. Our metadata has its own
key, so that this `config.json` can also contain timm's metadata.
"""

import dataclasses
import math
import os
from typing import Any
import unicodedata

import numpy as np

from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import npz_names
from vit_jax.checkpoint.other_libraries import hugging_face
from vit_jax.checkpoint.other_libraries import origin as origins
from vit_jax.checkpoint.other_libraries import vit_pytorch
from vit_jax.checkpoint.pretrained import mae_decoder
from vit_jax.data import data_settings
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import pillow_decoder
from vit_jax.files import json_files
from vit_jax.files import regular_files
from vit_jax.models import architecture
from vit_jax.models import variants

_KEY = 'vit_jax'  # The key of our metadata.
_LARGEST_OFFSET = 1e5  # Largest mean of targets, in standard deviations.
_OF_THE_START = ('license', 'origin')  # Fields that fine-tuning keeps.
# Keys of the header of our .safetensors files; each has at least one.
OUR_HEADER = frozenset(('num_heads', 'all_positions'))
OUTPUTS = ('softmax', 'sigmoid', 'identity')
# Kinds of the values in the files; see `json_files`.
_TEXTS = ([str], None)
_CHOSEN = {'thresholds?': ([float], None)}
_STORED = {
  _KEY: {
    **_CHOSEN,
    'model': {'name': (str, None)},
    'image_size?': ([int], None),
    'class_names?': _TEXTS,
    'exif?': str,
    'background?': str,
    'params_set?': str,
    'module?': str,
    'output?': str,
    'task?': str,
    'targets?': (
      {'names': [str], 'units': [str], 'mean': [float], 'std': [float]},
      None,
    ),
    'resizing?': {
      'resize?': str,
      'crop_fraction?': float,
      'interpolation?': str,
    },
    'license?': str,
    'mean_is_known?': bool,
    'origin?': (dict, None),
    'loss?': str,
  }
}
_OF_OTHERS = {
  'license?': (str, None),
  'label_names?': _TEXTS,
  'id2label?': ({str: str}, None),
}
_TIMM = {
  **_OF_OTHERS,
  'architecture': str,
  'model_args?': (
    {
      'embed_dim?': int,
      'depth?': int,
      'num_heads?': int,
      'mlp_ratio?': float,
      'patch_size?': (int, [int], None),
      'img_size?': (int, [int], None),
    },
    None,
  ),
  'pretrained_cfg?': {
    **_OF_OTHERS,
    'input_size?': [int],
    'mean?': [float],
    'std?': [float],
    'crop_pct?': (float, None),
    'crop_mode?': (str, None),
    'interpolation?': (str, None),
  },
}
_TOWER = {
  'hidden_size?': int,
  'num_hidden_layers?': int,
  'num_attention_heads?': int,
  'intermediate_size?': int,
  'image_size?': (int, [int]),
  'patch_size?': (int, [int]),
  'hidden_act?': str,
}
_HUGGING_FACE = {
  **_OF_OTHERS,
  **_TOWER,
  'model_type': str,
  'architectures?': _TEXTS,
  'problem_type?': (str, None),
  'vision_config?': _TOWER,
}
_SIZE = ({str: int}, int)
_PREPROCESSOR = {
  'image_processor_type?': (str, None),
  'feature_extractor_type?': (str, None),
  'size?': _SIZE,
  'crop_size?': _SIZE,
  'rescale_factor?': float,
  'image_mean?': (float, [float]),
  'image_std?': (float, [float]),
}
_CONFIG = {
  'dataset?': str,
  'pp.crop?': int,
  'pp.crop_width?': (int, None),
  'pp.exif?': str,
  'pp.background?': str,
  'model.name?': str,
}


@dataclasses.dataclass(frozen=True)
class Targets:
  """The T targets of a regression.

  The model's outputs are standardized: value = output * std + mean.

  Attributes:
    names: unique names of the targets.
    units: their units, such as 'kg'; '' for a target without a unit.
    mean: their means, in their units.
    std: their standard deviations, greater than 0.
  """

  names: tuple[str, ...]
  units: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __post_init__(self):
    if not self.names or len(set(self.names)) != len(self.names):
      raise ValueError(f'names={self.names!r} must be unique names.')
    for field in dataclasses.fields(self):
      found = getattr(self, field.name)
      if len(found) != len(self.names):
        raise ValueError(
          f'{field.name}={found!r} must have {len(self.names)} value(s), one '
          f'for each target: {", ".join(self.names)}.'
        )
    if not all(map(math.isfinite, self.mean)):
      raise ValueError(f'mean={self.mean!r} must be finite.')
    if not all(0 < x < math.inf for x in self.std):
      raise ValueError(f'std={self.std!r} must be finite and greater than 0.')
    for name, mean, std in zip(self.names, self.mean, self.std, strict=True):
      if abs(mean) > _LARGEST_OFFSET * std:
        raise ValueError(
          f'{name}: the mean {mean:.6g} is too large for the standard '
          f'deviation {std:.6g}, because float32 has 7 digits. Subtract a '
          'constant from the targets.'
        )

  def __str__(self):
    return ', '.join(
      f'{name} (mean {mean:.6g}, standard deviation {std:.6g}'
      + (f' {unit})' if unit else ')')
      for name, unit, mean, std in zip(*dataclasses.astuple(self), strict=True)
    )

  def standardize(self, values: Any) -> Any:
    """Returns values [B, T] in their units as standardized values [B, T]."""
    return (values - np.float32(self.mean)) / np.float32(self.std)

  def in_units(self, outputs: Any) -> np.ndarray:
    """Returns standardized values [B, T] in their units, float64."""
    return np.asarray(outputs, np.float64) * self.std + self.mean


@dataclasses.dataclass(frozen=True)
class Description:
  """Metadata that prediction and export need in addition to the weights.

  Attributes:
    path: path of the metadata or of its run folder, for messages.
    name: name of the architecture; None if it is unknown.
    settings: arguments of `models.get_model`, without name and num_classes.
    image_size: (height, width) in training.
    class_names: names of the classes, in the order of the logits.
    exif: whether image files are turned upright; see `decoding.resolve`.
    background: color under transparent pixels; see `decoding.resolve`.
    params_set: which parameters of a run are used: 'params' or 'ema', their
      moving average.
    module: part of the run's model that is used, such as 'encoder'; '': all.
    output: activation for the logits: 'softmax', 'sigmoid' or 'identity'.
    task: name of the task that trained the model; 'own' is a user's task. A run
      sets it. Published models are classifiers.
    targets: targets of a regression; else None.
    resizing: how images are resized in evaluation.
    license: name of the license of the weights; '' if it is unknown.
    mean_is_known: whether mean and deviation of the images are known.
    origin: content of the `config.json` of timm or Hugging Face from which the
      model comes; None for models of vit_jax.
    thresholds: of several labels per image: a class is predicted if its
      probability is above its threshold. None: 0.5 for each class.
    loss: loss of a classifier, 'softmax' or 'sigmoid'. With both, the output
      is a softmax: each image has one class.
  """

  path: str = ''
  name: str | None = None
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  class_names: tuple[str, ...] | None = None
  exif: str = 'auto'
  background: str = 'auto'
  params_set: str = 'params'
  module: str = ''
  output: str = 'softmax'
  task: str = 'classification'
  targets: Targets | None = None
  resizing: data_settings.Resizing = data_settings.DEFAULT_RESIZING
  license: str = ''
  mean_is_known: bool = True
  origin: dict[str, Any] | None = None
  thresholds: tuple[float, ...] | None = None
  loss: str = 'softmax'

  def __post_init__(self):
    for name, known in (
      ('params_set', ('params', 'ema')),
      ('output', OUTPUTS),
      ('loss', ('softmax', 'sigmoid')),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f'{name}={getattr(self, name)!r} is not one of {", ".join(known)}.'
        )
    decoding.resolve(self.exif, self.background)
    sides = self.image_size
    if sides is not None and (
      len(sides) != 2
      or min(sides) < 1
      or math.prod(sides) * 3 >= pillow_decoder.MAX_BYTES
    ):
      raise ValueError(
        f'the image size {list(sides)} must be the height and the width of an '
        'image in pixels.'
      )

  def to_json(self) -> dict[str, Any]:
    """Returns the dict for JSON that `of_weights` and `of_run` can read."""
    stored = {
      'model': {'name': self.name, **self.settings},
      'image_size': self.image_size,
      'class_names': self.class_names,
      'exif': self.exif,
      'background': self.background,
    }
    for field in dataclasses.fields(self)[_FIRST_OPTIONAL:]:
      value = getattr(self, field.name)
      if value != field.default:
        stored[field.name] = value
        if dataclasses.is_dataclass(value):
          stored[field.name] = dataclasses.asdict(value)
    return {_KEY: stored}


_FIRST_OPTIONAL = [
  field.name for field in dataclasses.fields(Description)
].index('params_set')


def _from_json(path, stored):
  """Returns the `Description` that was written with `to_json`."""
  # Earlier versions ignored orientation and alpha.
  stored = {'exif': 'ignore', 'background': 'ignore', **stored[_KEY]}
  if 'task' not in stored and stored.get('output', 'softmax') != 'softmax':
    stored['task'] = 'own'  # earlier versions had only one other task
  if stored.get('targets'):
    stored['targets'] = Targets(
      **{name: _tuple(value) for name, value in stored['targets'].items()}
    )
  if 'resizing' in stored:
    stored['resizing'] = data_settings.Resizing(**stored['resizing'])
  settings = {key: _tuple(value) for key, value in stored.pop('model').items()}
  return Description(
    path,
    variants.resolve(settings.pop('name')),
    settings,
    **{name: _tuple(value) for name, value in stored.items()},
  )


def deployed_path(workdir: str) -> str:
  """Returns the path of the metadata of a run's trained model."""
  return os.path.join(workdir, 'deployed.json')


def chosen_path(workdir: str) -> str:
  """Returns the path of what the validation split of a run chose.

  The file has {step: {'params' or 'ema': {field of `Description`: value}}}.
  """
  return os.path.join(workdir, 'chosen.json')


def config_path(workdir: str | os.PathLike) -> str:
  """Returns the path of the config of a run."""
  return os.path.join(workdir, 'config.json')


def class_names_path(workdir: str | os.PathLike) -> str:
  """Returns the path of the class names of a run."""
  return os.path.join(workdir, 'class_names.json')


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns the config of a run, {'pp.crop': 384, …}; {} if there is none."""
  return json_files.read_json(config_path(workdir), _CONFIG) or {}


def read_class_names(workdir: str | os.PathLike) -> list[str] | None:
  """Returns the class names of a run; None if they are not stored."""
  return json_files.read_json(class_names_path(workdir), [str])


def path_for(weights_path: str) -> str:
  """Returns the path of the metadata of a weights file or folder."""
  folder, name = os.path.split(weights_path)
  if os.path.isdir(weights_path):
    folder, name = weights_path, 'model.safetensors'
  return os.path.join(
    folder, 'config.json' if name == 'model.safetensors' else f'{name}.json'
  )


def of_run(
  folder: str, step: int | None = None, raw: bool = False
) -> Description:
  """Returns the `Description` of a run; without config, only class names.

  Args:
    folder: the run folder.
    step: step of the checkpoint. The result has what the validation split chose
      for this step, such as thresholds. None: the result has nothing of it.
    raw: whether to use the parameters in place of their moving average.

  Raises:
    ValueError: the metadata is damaged, or `raw` needs an average.
  """
  path = deployed_path(folder)
  stored = json_files.read_json(path, _STORED)
  if stored is not None:
    found = _checked(path, 'the run', lambda: _from_json(folder, stored))
    if raw:
      found = _raw(found)
    return found if step is None else _at_step(found, step)
  # Runs of earlier versions have no `deployed.json`; they train a classifier.
  if raw:
    _raw(Description(folder))
  config = read_config(folder)
  names = read_class_names(folder)
  if not config:
    return Description(folder, class_names=_tuple(names))
  settings = {
    key.removeprefix('model.'): _tuple(value)
    for key, value in config.items()
    if key.startswith('model.') and value is not None
  }

  def of_config():
    return Description(
      folder,
      variants.resolve(settings.pop('name')),
      settings,
      (config['pp.crop'], config['pp.crop_width'] or config['pp.crop']),
      _tuple(names),
      config.get('pp.exif', 'ignore'),
      config.get('pp.background', 'ignore'),
    )

  return _checked(config_path(folder), 'the run', of_config)


def start_of(description: Description) -> dict[str, Any]:
  """Returns what a run keeps of the weights it starts from."""
  return {name: getattr(description, name) for name in _OF_THE_START}


def read_start(folder: str) -> dict[str, Any]:
  """Returns `start_of` the first weights of a run, from its folder."""
  stored = json_files.read_json(deployed_path(folder), _STORED) or {}
  stored = stored.get(_KEY, {})
  return {name: stored[name] for name in _OF_THE_START if name in stored}


def read_chosen(folder: str, step: int, params_set: str) -> dict[str, Any]:
  """Returns what the validation split chose for 'params' or 'ema' of a step."""
  steps = read_all_chosen(folder)
  return steps.get(str(step), {}).get(params_set, {})


def read_all_chosen(folder: str) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns {step: {'params' or 'ema': what the validation split chose}}."""
  path = chosen_path(folder)
  steps = json_files.read_json(path, {str: {str: _CHOSEN}}) or {}
  if not all(map(str.isdecimal, steps)):
    raise ValueError(f'{path} has keys that are no steps. Repair the file.')
  return steps


def _raw(description):
  """Returns the description of the parameters that are not averaged."""
  if description.params_set != 'ema':
    raise ValueError(
      f'raw cannot be used: the run {description.path} has no moving average '
      '(config.ema_decay), so it has one set of parameters. Do not set raw'
    )
  return dataclasses.replace(description, params_set='params')


def _at_step(description, step):
  """Returns the description with what was chosen for a step of its run."""
  path = chosen_path(description.path)
  steps = read_all_chosen(description.path)
  if steps and str(step) not in steps:
    console.log_info(
      f'warning: {path} has nothing for step {step}, because the validation '
      'split was not evaluated at this step, so the defaults are used '
      '(thresholds of 0.5). It has the steps ' + ', '.join(steps)
    )

  def changed():
    chosen = read_chosen(description.path, step, description.params_set)
    return dataclasses.replace(
      description, **{name: _tuple(value) for name, value in chosen.items()}
    )

  return _checked(path, 'the run', changed)


def of_weights(weights_path: str) -> Description:
  """Returns the `Description` next to weights; it is empty without metadata.

  Raises:
    ValueError: the metadata is damaged, or no model of vit_jax computes what it
      describes.
  """
  path = _existing_path(weights_path)
  if path != path_for(weights_path):
    console.log_info(f'{weights_path}: {path} is used, the config next to it')
  found = _checked(
    path, os.path.basename(weights_path), lambda: _read(path, weights_path)
  )
  if found == Description(path):
    settings = mae_decoder.encoder_settings(weights_path)
    found = dataclasses.replace(found, settings=settings)
  return found


def origin_of(weights_path: str) -> origins.Origin | None:
  """Returns what a `config.json` of timm or Hugging Face says about arrays.

  It does not contain how images are prepared.

  Returns:
    None if there is no such file, or if vit_jax has written it.

  Raises:
    ValueError: see `of_weights`.
  """
  path = _existing_path(weights_path)
  return _checked(
    path,
    os.path.basename(weights_path),
    lambda: _origin(path, weights_path, of_images=False),
  )


def content_of(weights_path: str) -> dict[str, Any]:
  """Returns all keys of the metadata file of weights; {} if there is none."""
  return json_files.read_json(_existing_path(weights_path), dict) or {}


def _existing_path(weights_path):
  """Returns the path of the metadata of weights, for reading.

  A `config.json` also describes a .safetensors with another name, unless
  vit_jax wrote only one of the two.
  """
  path = path_for(weights_path)
  if os.path.exists(path) or not weights_path.endswith('.safetensors'):
    return path
  config = os.path.join(os.path.dirname(weights_path), 'config.json')
  stored = json_files.read_json(config, dict)
  if stored is None or not (_KEY in stored or origins.is_known(stored)):
    return path
  return config if _KEY in stored or not _has_our_header(weights_path) else path


def _read_json(path, weights):
  """Returns the content of the metadata of weights, or None.

  transformers keeps keys that it does not know when it saves a model, such as
  ours. Then our key describes the model before it was fine-tuned, so it is
  removed.

  Raises:
    ValueError: class names or outputs of the file contradict our key.
  """
  stored = json_files.read_json(path, dict)
  if stored is None or _KEY not in stored or 'model_type' not in stored:
    return stored
  json_files.check(stored, _STORED, path)
  if os.path.isdir(weights):
    weights = os.path.join(weights, 'model.safetensors')
  if not _has_our_header(weights):
    console.log_info(
      f'{path}: transformers has saved this model again, so the key {_KEY} of '
      'its export is ignored: classes, outputs and images are those of '
      'transformers'
    )
    return {key: value for key, value in stored.items() if key != _KEY}
  _check_not_edited(path, stored)
  return stored


def _has_our_header(path):
  """Returns whether vit_jax wrote a .safetensors, and no other library."""
  import safetensors

  try:
    with safetensors.safe_open(path, 'numpy') as file:
      return not OUR_HEADER.isdisjoint(file.metadata() or {})
  except FileNotFoundError:  # vit_jax writes no shards
    return not os.path.exists(
      os.path.join(os.path.dirname(path), npz_names.SHARDS)
    )
  except Exception:  # `weights_file.load` reports damaged files
    return True


def _check_not_edited(path, stored):
  """Raises ValueError if a config contradicts our key in the same file."""
  if not hugging_face.is_classifier(stored):
    return
  ours = stored[_KEY]
  names = origins.class_names_of(stored)
  targets = (ours.get('targets') or {}).get('names')
  expected = ours.get('class_names') or targets
  problem = stored.get('problem_type')
  output = hugging_face.PROBLEMS.get(problem, (None,))[0]
  for key, found, trained in (
    ('id2label', names and list(names), expected),
    ('problem_type', problem and output, ours.get('output', 'softmax')),
  ):
    if found and found != trained:
      raise ValueError(
        f'{path}: {key} contradicts the key {_KEY} in the same file. Remove '
        f'the key {_KEY} if {key} is right, or else correct {key}.'
      )


def _origin(path, weights, of_images=True):
  stored = _read_json(path, weights)
  if stored is None or _KEY in stored or not origins.is_known(stored):
    return None
  kinds = _TIMM if 'architecture' in stored else _HUGGING_FACE
  if vit_pytorch.KEY in stored:
    kinds = {**_OF_OTHERS, vit_pytorch.KEY: dict}
  json_files.check(stored, kinds, path)
  if not of_images:
    return origins.read(stored, None)
  preprocessor = json_files.read_json(
    os.path.join(os.path.dirname(path), 'preprocessor_config.json'),
    _PREPROCESSOR,
  )
  return origins.read(stored, preprocessor or {})


def _checked(path, weights, read):
  """Returns `read()`; all errors of damaged metadata become ValueError."""
  try:
    found = read()
    # A model checks the types and the values of its settings.
    if isinstance(found, Description) and found.name in variants.VARIANTS:
      models.get_model(found.name, num_classes=0, **found.settings)
    return found
  except origins.Unsupported as error:
    raise ValueError(f'{path}: {error}') from error
  except ValueError as error:
    if str(error).startswith(os.path.dirname(path) or path):  # it has a path
      raise
    raise ValueError(
      f'{path}, the metadata of {weights}, cannot be used: {error} Repair it, '
      'or use other weights.'
    ) from error
  except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
    reason = f'{type(error).__name__}: {error}'
    if isinstance(error, KeyError):
      reason = f'it lacks {error}'
    raise ValueError(
      f'{path}, the metadata of {weights}, cannot be used: {reason}. Repair '
      'it, or use other weights.'
    ) from error


def _read(path, weights):
  stored = _read_json(path, weights)
  if stored is None:
    return Description(path)
  if _KEY in stored:
    json_files.check(stored, _STORED, path)
    return _from_json(path, stored)
  origin = _origin(path, weights)
  if origin is None:  # of another program, or without the architecture
    return Description(path, class_names=origins.class_names_of(stored))
  name, settings = None, origin.statistics
  if origin.settings is not None:
    name, settings = architecture.nearest_to(
      origin.settings | origin.statistics
    )
  return Description(
    path,
    name,
    settings,
    image_size=origin.image_size,
    class_names=origin.class_names,
    output=origin.output,
    task=origin.task,
    targets=_raw_targets(origin.target_names),
    resizing=origin.resizing,
    license=origin.license,
    mean_is_known=origin.mean is not None,
    origin=dict(origin.config),
  )


def _raw_targets(names):
  """Returns targets that the model predicts without standardization."""
  num = len(names)
  if not names:
    return None
  return Targets(names, ('',) * num, (0.0,) * num, (1.0,) * num)


def _tuple(value):
  return tuple(value) if isinstance(value, list) else value


def class_names_in(path: str | os.PathLike) -> tuple[str, ...]:
  """Reads class names from a file: one per line, or a JSON list.

  Spaces around a name, and empty lines at the end, are removed.
  """
  regular_files.check(os.path.expanduser(path))
  try:
    with open(os.path.expanduser(path), encoding='utf-8-sig') as file:
      text = file.read().strip()
    is_json = text.startswith('[')
    names = json_files.loads(text) if is_json else text.splitlines()
    damage = ''
  except ValueError as error:
    names, damage = [], f' ({error})'
  if not names or not isinstance(names, list):
    raise ValueError(
      f'{path} contains no class names{damage}. Use a file with one name per '
      'line, or with a JSON list of strings.'
    )
  for i, name in enumerate(names, 1):
    if not isinstance(name, str) or not name.strip():
      raise ValueError(
        f'{path}: name {i} of {len(names)} is {name!r}, not a class name. '
        'Correct this file'
      )
  return tuple(unicodedata.normalize('NFC', name.strip()) for name in names)
