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
    """The settings of mean and deviation; 0.5, as in vit_jax, needs none."""
    if self.mean is None or {*self.mean, *self.std} == {0.5}:
      return {}
    return {'image_mean': self.mean, 'image_std': self.std}

  def __str__(self):
    return f'{self.program}, {self.architecture}'


def read(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Origin:
  """Returns the `Origin` of weights.

  Args:
    config: content of `config.json`.
    preprocessor: content of Hugging Face's `preprocessor_config.json`, or {}.

  Raises:
    Unsupported: no model of vit_jax computes what the file describes.
  """
  try:
    if vit_pytorch.KEY in config:
      return _of_vit_pytorch(config)
    if 'architecture' in config:
      return _of_timm(config)
    return _of_hugging_face(config, preprocessor)
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
  origin = _of_timm({'architecture': architecture})
  return origin.settings | origin.statistics


def _of_timm(config):
  architecture = config['architecture'].partition('.')[0]
  published = config.get('pretrained_cfg', config)
  settings, tags, facts = None, {}, {}
  if not timm_config.is_bit(config):
    facts = timm_config.facts_of(config)
    settings = timm_settings.settings_of(facts)
    tags = timm_table.published(architecture)
  size = published.get('input_size', (3, *facts.get('img_size', ())))[1:]
  if facts.get('pos_embed'):  # the size of the arrays
    size = facts['img_size']
  mean, std = (_statistics(x, published, tags) for x in ('mean', 'std'))
  return Origin(
    'timm',
    architecture,
    dict(config),
    settings,
    tuple(size) or None,
    mean,
    std,
    data_settings.Resizing(
      _resize(published.get('crop_mode') or 'center'),
      published.get('crop_pct') or 1.0,
      f'{published.get("interpolation") or "bicubic"}_antialias',
    ),
    embeds_tokens=not facts.get('no_embed_class') if facts else None,
    class_names=class_names_of(config),
    output='identity' if _is_projection(architecture, config) else 'softmax',
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


def _is_projection(architecture, config):
  """Returns whether the head of a CLIP model makes embeddings, not classes."""
  published = config.get('pretrained_cfg', config)
  num_outputs = config.get('num_classes', published.get('num_classes'))
  return (
    not class_names_of(config)
    and num_outputs in _EMBEDDINGS
    and any(x in architecture for x in ('_clip', '_mci', 'eva02_', '_siglip'))
  )


def _statistics(name, published, tags):
  """Returns the mean or deviation of a file; None if it is not stated."""
  if published.get(name) is not None:
    return tuple(published[name])
  values = {tuple(file[name]) for file in tags.values()}
  return values.pop() if len(values) == 1 else None
