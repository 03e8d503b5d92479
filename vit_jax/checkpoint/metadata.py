"""What lies beside weights and tells of them what arrays cannot.

Of a run that is its `config.json` and `class_names.json`. Beside exported
weights lies a description: `NAME.npz.json` for `NAME.npz`, and in a folder that
holds `model.safetensors` its `config.json`, with our part under a key of its
own, so that timm's can be there too.
"""

import dataclasses
import json
import os
from typing import Any

from vit_jax.data import json_files
from vit_jax.models import variants

_KEY = 'vit_jax'  # of our part


OUTPUTS = ('softmax', 'sigmoid', 'identity')


@dataclasses.dataclass(frozen=True)
class Description:
  """What prediction and export need to know about weights.

  Attributes:
    path: of the file that says it, for messages.
    name: of the architecture; None if only classes are known.
    settings: of `models.get_model`, beyond name and num_classes.
    image_size: (height, width) in training.
    class_names: in the order of the logits.
    params_set: of a run, which parameters are used: 'params' or 'ema'.
    module: where in them the model is, such as 'encoder'; '' is all of them.
    output: what makes answers of logits: 'softmax', 'sigmoid' or 'identity'.
  """

  path: str = ''
  name: str | None = None
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  class_names: tuple[str, ...] | None = None
  params_set: str = 'params'
  module: str = ''
  output: str = 'softmax'

  def __post_init__(self):
    for name, known in (('params_set', ('params', 'ema')), ('output', OUTPUTS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'{name} {getattr(self, name)!r} is not one of {", ".join(known)}'
        )

  def to_json(self) -> dict[str, Any]:
    """What `beside` and `of_run` read back, as a dict to be written as JSON."""
    stored = {
      'model': {'name': self.name, **self.settings},
      'image_size': self.image_size,
      'class_names': self.class_names,
    }
    for field in dataclasses.fields(self)[-3:]:
      if getattr(self, field.name) != field.default:
        stored[field.name] = getattr(self, field.name)
    return {_KEY: stored}


def _from_json(path, stored):
  """The `Description` that `to_json` has written."""
  stored = dict(stored[_KEY])
  settings = {key: _tuple(value) for key, value in stored.pop('model').items()}
  return Description(
    path,
    variants.resolve(settings.pop('name')),
    settings,
    **{name: _tuple(value) for name, value in stored.items()},
  )


def deployed_path(workdir: str) -> str:
  """The file that says what of a run is used by others."""
  return os.path.join(workdir, 'deployed.json')


def config_path(workdir: str | os.PathLike) -> str:
  """The file of a run's settings."""
  return os.path.join(workdir, 'config.json')


def class_names_path(workdir: str | os.PathLike) -> str:
  """The file of a run's class names."""
  return os.path.join(workdir, 'class_names.json')


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """{'pp.crop': 384, …} of the run in `workdir`; {} where there is none."""
  return json_files.read_json(config_path(workdir)) or {}


def read_class_names(workdir: str | os.PathLike) -> list[str] | None:
  """The classes of the run in `workdir`; None where there is none."""
  return json_files.read_json(class_names_path(workdir))


def path_for(weights_path: str) -> str:
  """Where the description of a file or folder of weights lies."""
  folder, name = os.path.split(weights_path)
  if os.path.isdir(weights_path):
    folder, name = weights_path, 'model.safetensors'
  return os.path.join(
    folder, 'config.json' if name == 'model.safetensors' else f'{name}.json'
  )


def of_run(folder: str) -> Description:
  """The `Description` of a run, empty if it has lost its settings."""
  path = deployed_path(folder)
  stored = json_files.read_json(path)
  if stored is not None:
    return _checked(path, 'the run', lambda: _from_json(folder, stored))
  # A run of an earlier version: what it has trained is a classifier.
  config = read_config(folder)
  names = read_class_names(folder)
  if not config:
    return Description(folder, class_names=_tuple(names))
  settings = {
    key.removeprefix('model.'): _tuple(value)
    for key, value in config.items()
    if key.startswith('model.') and value is not None
  }
  return Description(
    folder,
    variants.resolve(settings.pop('name')),
    settings,
    (config['pp.crop'], config['pp.crop_width'] or config['pp.crop']),
    _tuple(names),
  )


def beside(weights_path: str) -> Description:
  """The `Description` beside weights, empty where there is none.

  Of one by timm or Hugging Face, the names of the classes, and those settings
  that no array tells, without a name.

  Raises:
    ValueError: it is damaged, or wants images prepared in another way.
  """
  path = path_for(weights_path)
  return _checked(path, os.path.basename(weights_path), lambda: _read(path))


def _checked(path, weights, read):
  """What `read` returns, with one kind of error for a damaged file."""
  try:
    return read()
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{path}, which describes {weights}, cannot be used: '
      f'{type(error).__name__}: {error}'
    ) from error


def _read(path):
  stored = json_files.read_json(path)
  if stored is None:
    return Description(path)
  if _KEY in stored:
    return _from_json(path, stored)
  _check_scaling(path, stored)
  return Description(
    path,
    settings=_settings_of_others(stored),
    class_names=_names_of_others(stored),
  )


def _tuple(value):
  return tuple(value) if isinstance(value, list) else value


def _names_of_others(stored):
  """Class names as timm and Hugging Face write them, or None."""
  if stored.get('label_names'):
    return tuple(stored['label_names'])
  if stored.get('pretrained_cfg', {}).get('label_names'):
    return tuple(stored['pretrained_cfg']['label_names'])
  named = stored.get('id2label')
  return named and tuple(named[str(i)] for i in range(len(named)))


_GELUS = {
  'gelu': 'exact',
  'gelu_tanh': 'tanh',
  'gelu_new': 'tanh',
  'gelu_fast': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
}


def _settings_of_others(stored):
  """Settings that timm (`model_args`) and Hugging Face write, as ours."""
  settings = {}
  for value in (
    stored.get('hidden_act'),
    stored.get('model_args', {}).get('act_layer'),
  ):
    if value is None:
      continue
    if value not in _GELUS:
      raise ValueError(
        f'it wants the activation {value}; here there are ' + ', '.join(_GELUS)
      )
    settings['gelu'] = _GELUS[value]
  if stored.get('layer_norm_eps') is not None:
    settings['norm_epsilon'] = stored['layer_norm_eps']
  return settings


def _check_scaling(path, stored):
  """Raises unless others scale images to [−1, 1], as is done here.

  timm says so in the `config.json` itself, Hugging Face in the file beside it.
  """
  expected = stored.get('pretrained_cfg', {})
  preprocessor = (
    json_files.read_json(
      os.path.join(os.path.dirname(path), 'preprocessor_config.json')
    )
    or {}
  )
  for name in ('mean', 'std'):
    value = expected.get(name, preprocessor.get(f'image_{name}', [0.5] * 3))
    if list(value) != [0.5] * 3:
      raise ValueError(
        f'it wants pixels of {name} {value}; here they are '
        'scaled to [-1, 1], which is 0.5'
      )


def class_names_in(path: str | os.PathLike) -> tuple[str, ...]:
  """Class names from a file: one a line, or a list in JSON."""
  with open(os.path.expanduser(path), encoding='utf-8') as file:
    text = file.read()
  names = (
    json.loads(text) if text.lstrip().startswith('[') else (text.splitlines())
  )
  if not names or not all(isinstance(n, str) and n.strip() for n in names):
    raise ValueError(
      f'{path} holds no class names: it should have one on each '
      'line, or be a list of strings in JSON'
    )
  return tuple(names)
