"""Reads the `config.json` of another library next to a weights file.

It gives the settings of the model, so that nothing is guessed, and how timm or
transformers prepare images. Export writes the file back. For vit-pytorch, which
has no such file, the user writes it.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from vit_jax.checkpoint.other_libraries import hugging_face
from vit_jax.checkpoint.other_libraries import hugging_face_images
from vit_jax.checkpoint.other_libraries import timm_config
from vit_jax.checkpoint.other_libraries import timm_settings
from vit_jax.checkpoint.other_libraries import timm_table
from vit_jax.checkpoint.other_libraries import vit_pytorch
from vit_jax.data import data_settings

# Widths of image embeddings in timm's CLIP models.
_EMBEDDINGS = (512, 640, 768, 1024, 1152, 1280)


class Unsupported(ValueError):
  """No model of vit_jax computes what an intact file describes."""


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a `config.json` of another library says.

  Attributes:
    program: 'timm', 'Hugging Face' or 'vit-pytorch'.
    architecture: timm's name, the `model_type` of Hugging Face, or 'ViT'.
    config: the content of the file.
    settings: complete arguments of `models.get_model`; None if the arrays
      determine them.
    image_size: (height, width) of the model's images; None if it is unknown.
    mean: mean of each channel, for pixels in [0, 1]; None if it is unknown.
    std: standard deviation of each channel; None if it is unknown.
    resizing: how images are resized.
    embeds_tokens: whether class token and registers have position embeddings;
      None if the shapes of the arrays decide.
    class_names: names of the classes; None if they are unknown.
    output: see `metadata.Description`, also for the task.
    task: name of the task.
    target_names: names of the targets of a regression; they have no units.
    license: name of the license; '' if it is unknown.
  """

  program: str
  architecture: str
  config: dict[str, Any]
  settings: dict[str, Any] | None
  image_size: tuple[int, int] | None
  mean: tuple[float, ...] | None
  std: tuple[float, ...] | None
  resizing: data_settings.Resizing
  embeds_tokens: bool | None = None
  class_names: tuple[str, ...] | None = None
  output: str = 'softmax'
  task: str = 'classification'
  target_names: tuple[str, ...] = ()
  license: str = ''

  @property
  def statistics(self) -> dict[str, Any]:
    """The settings of mean and deviation; {} if they are 0.5 or unknown."""
    return _image_settings(self.mean, self.std)

  def __str__(self):
    return f'{self.program}, {self.architecture}'


def read(
  config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None
) -> Origin:
  """Returns the `Origin` of weights.

  Args:
    config: content of `config.json`.
    preprocessor: content of Hugging Face's `preprocessor_config.json`, or {}.
      None: only the arrays are needed, so how images are resized may be open.

  Raises:
    Unsupported: no model of vit_jax computes what the file describes.
  """
  try:
    if vit_pytorch.KEY in config:
      return _of_vit_pytorch(config)
    if 'architecture' in config:
      return _of_timm(config, preprocessor is not None)
    return _of_hugging_face(config, preprocessor or {})
  except ValueError as error:
    raise Unsupported(str(error)) from error


def is_known(config: Mapping[str, Any]) -> bool:
  """Returns whether a `config.json` names an architecture for `read`."""
  return bool({'architecture', 'model_type', vit_pytorch.KEY} & {*config})


def class_names_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Returns class names of a `config.json`; None if it has none."""
  published = config.get('pretrained_cfg', config)
  names = published.get('label_names') or config.get('label_names')
  if isinstance(names, list):
    return tuple(names)
  return hugging_face.class_names_of(config)


def settings_of_timm(architecture: str) -> dict[str, Any]:
  """Returns the settings of timm's model of this name.

  The mean and deviation are included, if all its published files share them.

  Raises:
    ValueError: vit_jax does not have this model.
  """
  facts = timm_config.facts_of({'architecture': architecture})
  mean, std = (_statistics(x, {}, architecture) for x in ('mean', 'std'))
  return timm_settings.settings_of(facts) | _image_settings(mean, std)


def _image_settings(mean, std):
  """Returns settings of mean and deviation; 0.5, as in vit_jax, needs none."""
  if mean is None or {*mean, *std} == {0.5}:
    return {}
  return {'image_mean': mean, 'image_std': std}


def _of_timm(config, needs_resizing):
  architecture, _, tag = config['architecture'].partition('.')
  published = config.get('pretrained_cfg', config)
  published = {**published, 'tag': published.get('tag') or tag}
  settings, facts = None, {}
  if not timm_config.is_bit(config):
    facts = timm_config.facts_of(config)
    settings = timm_settings.settings_of(facts)
  size = published.get('input_size', (3, *facts.get('img_size', ())))[1:]
  if facts.get('pos_embed'):  # the size of the arrays
    size = facts['img_size']
  mean, std = (_statistics(x, published, architecture) for x in ('mean', 'std'))
  resizing = data_settings.DEFAULT_RESIZING
  if needs_resizing:
    resizing = data_settings.Resizing(
      _resize(published.get('crop_mode') or 'center'),
      _needed('crop_pct', published, architecture),
      f'{_needed("interpolation", published, architecture)}_antialias',
    )
  return Origin(
    'timm',
    architecture,
    dict(config),
    settings,
    tuple(size) or None,
    mean,
    std,
    resizing,
    embeds_tokens=not facts.get('no_embed_class') if facts else None,
    class_names=class_names_of(config),
    output=_output(config, published['tag']),
    license=published.get('license') or '',
  )


def _resize(crop_mode):
  """Returns `Resizing.resize` for timm's name of a mode."""
  known = {'center': 'crop', 'squash': 'squash'}
  if crop_mode not in known:
    raise ValueError(
      f'its config.json has crop_mode={crop_mode}; vit_jax has only '
      f'{" and ".join(known)}.'
    )
  return known[crop_mode]


def _of_hugging_face(config, preprocessor):
  kind, _ = hugging_face.tower_of(config)
  facts = hugging_face.facts_of(config)
  prepared = hugging_face_images.preparation_of(preprocessor, kind)
  size = prepared.pop('size', None)
  output, task = hugging_face.output_of(config)
  is_regression = task == 'regression'
  if facts['pos_embed'] or facts.get('rel_pos') or not size:
    size = facts['img_size']  # the size of the arrays
  return Origin(
    'Hugging Face',
    kind,
    dict(config),
    timm_settings.settings_of(facts),
    tuple(size),
    *hugging_face_images.mean_and_std(preprocessor),
    data_settings.Resizing(**prepared),
    class_names=None if is_regression else hugging_face.class_names_of(config),
    output=output,
    task=task,
    target_names=hugging_face.target_names_of(config) if is_regression else (),
    license=config.get('license') or '',
  )


def _of_vit_pytorch(config):
  arguments = vit_pytorch.arguments_of(config)
  return Origin(
    'vit-pytorch',
    'ViT',
    dict(config),
    vit_pytorch.settings_of(arguments),
    vit_pytorch.image_size_of(arguments),
    mean=None,
    std=None,
    resizing=data_settings.DEFAULT_RESIZING,
    class_names=class_names_of(config),
  )


def _output(config, tag):
  """Returns `metadata.Description.output` of a model of timm.

  Outputs are embeddings in published CLIP models: the table has their sizes.

  Raises:
    ValueError: a CLIP model has the size of embeddings, but no names of classes
      and no tag of a published file.
  """
  architecture = config['architecture'].partition('.')[0]
  published = config.get('pretrained_cfg', config)
  num_outputs = config.get('num_classes', published.get('num_classes'))
  if class_names_of(config) or num_outputs not in _EMBEDDINGS:
    return 'softmax'
  if not timm_table.is_known(architecture):  # a BiT
    return 'softmax'
  files = timm_table.published(architecture)
  sizes = {file['num_classes'] for file in files.values()}
  if tag in files and files[tag]['num_classes'] == num_outputs:
    return 'identity'
  if num_outputs not in sizes:
    return 'softmax'
  raise ValueError(
    f'its config.json has num_classes={num_outputs}, which is the size of the '
    f'embeddings of {architecture}, so its outputs may be embeddings or '
    'logits of classes. For classes, write label_names, a list of their names. '
    'For embeddings, write into pretrained_cfg the tag of a published file: '
    + ', '.join(
      repr(tag) for tag, x in files.items() if x['num_classes'] == num_outputs
    )
  )


def _values(name, published, architecture):
  """Returns the possible values of a file's entry.

  Args:
    name: key of `pretrained_cfg`.
    published: content of `pretrained_cfg`, and its tag.
    architecture: name of an architecture. If `published` does not have the
      value, its published file has it, or else all its files are possible.
  """
  if published.get(name) is not None:
    return [published[name]]
  if not timm_table.is_known(architecture):
    return []
  files = timm_table.published(architecture)
  file = files.get(published.get('tag'))
  return [x[name] for x in ([file] if file else files.values())]


def _statistics(name, published, architecture):
  """Returns the mean or deviation of a file; None if it is not determined."""
  values = {tuple(x) for x in _values(name, published, architecture)}
  return values.pop() if len(values) == 1 else None


def _needed(name, published, architecture):
  """Returns the value of a file; raises ValueError if it is not determined."""
  values = {*_values(name, published, architecture)}
  if len(values) == 1:
    return values.pop()
  known = ', '.join(map(str, sorted(values)))
  raise ValueError(
    f'its config.json has no {name}'
    + (f', and published files of {architecture} have {known}' if known else '')
    + f'. Write {name} into its pretrained_cfg.'
  )
