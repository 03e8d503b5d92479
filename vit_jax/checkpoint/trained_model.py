"""A trained model, ready to use: from a run folder or from a weights file.

Metadata specifies what the arrays do not determine. Without metadata, the paths
and shapes of the arrays identify the architecture.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.other_libraries import open_settings
from vit_jax.checkpoint.other_libraries import origin as origins
from vit_jax.checkpoint.other_libraries import timm_table
from vit_jax.checkpoint.pretrained import registry
from vit_jax.checkpoint.pretrained import search
from vit_jax.data import data_settings
from vit_jax.data.image_files import decoding
from vit_jax.models import architecture
from vit_jax.models import param_paths
from vit_jax.models import variants
from vit_jax.parallel import numerics

# Settings that a copy of a published file does not keep; see `of_copy`.
_OF_THE_ORIGINAL = 'gelu', 'norm_epsilon', 'stem_epsilons'


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """An architecture, its parameters and its classes."""

  source: str  # Path of the weights, for messages.
  name: str  # Name of the architecture.
  settings: dict[str, Any]  # See `metadata.Description`.
  model: Any  # Linen module.
  params: Any  # Nested dict of NumPy arrays.
  image_size: tuple[int, int]  # Height and width in pixels.
  trained_size: tuple[int, int]  # Height and width during training.
  class_names: tuple[str, ...] | None  # None if they are unknown.
  output: str = 'softmax'  # See `metadata.Description`, also for the next two.
  task: str = 'classification'
  targets: metadata.Targets | None = None
  exif: str = 'auto'
  background: str = 'auto'
  resizing: data_settings.Resizing = data_settings.DEFAULT_RESIZING
  license: str = ''
  origin: dict[str, Any] | None = None
  thresholds: tuple[float, ...] | None = None
  loss: str = 'softmax'
  params_set: str = 'params'

  @property
  def description(self) -> metadata.Description:
    """The metadata to store next to the weights."""
    return metadata.Description(
      name=self.name,
      settings=self.settings,
      image_size=self.image_size,
      class_names=self.class_names,
      output=self.output,
      task=self.task,
      targets=self.targets,
      exif=self.exif,
      background=self.background,
      resizing=self.resizing,
      license=self.license,
      origin=self.origin,
      thresholds=self.thresholds,
      loss=self.loss,
      params_set=self.params_set,
    )

  @property
  def decoding(self) -> decoding.Decoding:
    """How a user's image files become pixels, as in training."""
    return decoding.resolve(self.exif, self.background)

  @property
  def shown_class_names(self) -> tuple[str, ...]:
    """A name for each output; see `class_mapping.shown` for classes."""
    if self.targets:
      return self.targets.names
    if self.output == 'identity':
      return tuple(f'output {i}' for i in range(self.model.num_classes))
    return class_mapping.shown(self.class_names, self.model.num_classes)

  @property
  def class_index(self) -> dict[str, int]:
    """{class name: index of the logit}; ImageNet classes also by WordNet id."""
    return class_mapping.index_of(self.class_names, self.model.num_classes)

  @property
  def num_params(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.params))

  @property
  def _outputs(self):
    if self.targets:
      return f'predicts {self.targets}'
    kind = 'outputs' if self.output == 'identity' else 'classes'
    return f'{self.model.num_classes} {kind}'

  def __str__(self):
    changed = ', '.join(
      f'{name} {value}'
      for name, value in self.settings.items()
      if affects_outputs(name)
    )
    changed = f' ({changed})' if changed else ''
    return (
      f'{self.name}{changed}, {self.num_params:,} parameters, '
      f'{self._outputs}, images {self.image_size[0]} x {self.image_size[1]}'
      + (f', license {self.license}' if self.license else '')
      + (', moving average (EMA)' if self.params_set == 'ema' else '')
    )


@numerics.fixed()
def load_model(
  source: str,
  *,
  model_name: str | None = None,
  overrides: Mapping[str, Any] | None = None,
  image_size: tuple[int, int] | None = None,
  class_names: Sequence[str] | None = None,
  step: int | None = None,
  raw: bool = False,
  folder: str = '.',
  sources: Sequence[str] = registry.SOURCES,
) -> TrainedModel:
  """Loads a `TrainedModel` from a run folder, a file or a published name.

  Args:
    source: a run folder, weights in any format that `weights_file.load` reads,
      or a name that `search.find` knows.
    model_name: name of the architecture. It is required if the name is not
      stored and the arrays match no known model. It must match a stored name.
    overrides: settings of the architecture. They must agree with stored
      settings, unless `affects_outputs` is false for the setting.
    image_size: (height, width) of the images; position embeddings are resampled
      to this size. None: the size used in training.
    class_names: names that replace the stored ones.
    step: step of the checkpoint, for a run; None: the newest.
    raw: for a run with a moving average (`config.ema_decay`): whether to load
      the parameters in place of their average.
    folder: folder of files that were downloaded by hand, as in `search.find`.
    sources: places of published files; see `registry.SOURCES`.

  Raises:
    ValueError: the model cannot be loaded, or an argument does not match it.
  """
  path, description = locate(source, step, folder, sources, raw)
  overrides = dict(overrides or {})
  given = given_settings(model_name, overrides)
  open_settings.check(path, description, given, model_name)
  loaded = weights_file.load(
    path,
    given.get('num_heads', description.settings.get('num_heads')),
    description.params_set,
  )
  shapes = {
    name: np.shape(array)
    for name, array in weights_file.flatten(loaded).items()
  }
  if description.name and not description.origin:
    _check_agrees(description, model_name, overrides)
    name = description.name
    overrides = {k: x for k, x in overrides.items() if not affects_outputs(k)}
    settings = {**description.settings, **overrides}
  else:
    name, settings = _settings_of_others(shapes, description, model_name, path)
    if not description.name:
      open_settings.log_positions(path, settings, given)
    settings = {**settings, **overrides}
  (num_classes,) = shapes.get(param_paths.HEAD_BIAS, (0,))
  _check_depth(settings, shapes, path)
  model = models.get_model(name, num_classes=num_classes, **settings)
  trained_size = description.image_size or _image_size(
    shapes, model, path, image_size
  )
  size = tuple(image_size or trained_size)
  grid = model.grid_size(*size)
  source_grid = model.grid_size(*trained_size)
  # Weights of other channels keep their kernel, and then refuse RGB images.
  images = (1, *size, architecture.num_channels(shapes))
  initial = jax.eval_shape(
    lambda images: model.init(jax.random.key(0), images, train=False),
    jax.ShapeDtypeStruct(images, jnp.float32),
  )['params']
  try:
    params = adaptation.adapt(
      loaded, initial, grid, keep_head=True, source_grid=source_grid
    )
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  if class_names and description.output == 'identity':
    raise ValueError(
      f'class_names cannot be used: {path} does not predict classes, because '
      f'its task is {description.task!r}.'
    )
  targets = description.targets
  if targets and len(targets.names) != num_classes:
    raise ValueError(
      f'{path}: the metadata has {len(targets.names)} targets, but the head '
      f'has {num_classes} outputs. Correct the metadata.'
    )
  thresholds = description.thresholds
  if thresholds is not None and len(thresholds) != num_classes:
    raise ValueError(
      f'{path}: the metadata has {len(thresholds)} thresholds, but the head '
      f'has {num_classes} classes. Use one threshold for each class.'
    )
  names = class_names or description.class_names
  if names and len(names) != num_classes:
    raise ValueError(
      f'{path}: there are {len(names)} class names, but the head has '
      f'{num_classes} classes. Use class_names=… with {num_classes} names.'
    )
  return TrainedModel(
    path,
    name,
    settings,
    model,
    params,
    size,
    trained_size,
    tuple(names) if names else None,
    description.output,
    description.task,
    description.targets,
    description.exif,
    description.background,
    description.resizing,
    description.license,
    description.origin,
    thresholds,
    description.loss,
    description.params_set,
  )


# --- location of the weights -------------------------------------------------


def is_run(folder: str | os.PathLike) -> bool:
  """Returns whether a folder is a run folder with a saved checkpoint."""
  return bool(weights_file.steps_in(os.path.join(folder, 'checkpoints')))


def run_and_step(path: str) -> tuple[str, int | None]:
  """Returns (run folder, step or None) for a path in a run folder."""
  folder = os.path.abspath(path)
  parent, name = os.path.split(folder)
  if name.isdecimal() and os.path.basename(parent) == 'checkpoints':
    return os.path.dirname(parent), int(name)
  return (parent if name == 'checkpoints' else folder), None


def locate(
  source: str,
  step: int | None = None,
  folder: str = '.',
  sources: Sequence[str] = registry.SOURCES,
  raw: bool = False,
) -> tuple[str, metadata.Description]:
  """Returns (path of the weights, metadata); arguments as in `load_model`."""
  path, is_copy = os.path.expanduser(source), False
  if not os.path.exists(path):
    is_copy = search.is_published(source)
    path = search.find(source, folder, sources=sources)
    if path is None:
      raise ValueError(
        f'{source!r} means randomly initialized parameters: there is nothing '
        'to load. Use a run folder, a weights file or a published name.'
      )
  run, step_of_path = run_and_step(path)
  steps = weights_file.steps_in(os.path.join(run, 'checkpoints'))
  if not steps:
    if step is not None:
      raise ValueError(
        f'step={step} cannot be selected: {path} is not a run folder with '
        'checkpoints. Use a run folder, or do not set step.'
      )
    if raw:
      raise ValueError(
        f'raw cannot be used: {path} is not a run folder with checkpoints, so '
        'it has one set of parameters. Use the run folder, or do not set raw.'
      )
    description = metadata.of_weights(path)
    return path, of_copy(description) if is_copy else description
  if step is None:
    step = steps[-1] if step_of_path is None else step_of_path
  if step not in steps:
    raise ValueError(
      f'step={step} has no checkpoint in {path}. Use a step that has one: '
      + ', '.join(map(str, steps))
    )
  found = metadata.of_run(run, step, raw)
  checkpoint = os.path.join(run, 'checkpoints', str(step))
  if not os.path.isabs(path):  # messages show the path as the user wrote it
    with contextlib.suppress(ValueError):  # another drive of Windows
      checkpoint = os.path.relpath(checkpoint)
  return checkpoint, found


def of_copy(description: metadata.Description) -> metadata.Description:
  """Returns the metadata of a copy that replaces a published file.

  timm and Hugging Face compute copies of the original code's files with the
  exact GELU and other epsilons, and resize images in another way. Who asks for
  the original file by its name gets its functions and its images, whichever
  server has answered.
  """
  if not description.origin:
    return description
  settings = {
    key: value
    for key, value in description.settings.items()
    if key not in _OF_THE_ORIGINAL
  }
  resizing = data_settings.DEFAULT_RESIZING
  found = dataclasses.replace(description, settings=settings, resizing=resizing)
  if found != description:
    replaced = [x for x in _OF_THE_ORIGINAL if x in description.settings]
    console.log_info(
      f'{os.path.dirname(description.path)} is a copy of a file of the '
      'original code, so it is used like the original: '
      + ''.join(f'{x} is that of the original, ' for x in replaced)
      + f'and images are resized with {resizing}'
    )
  return found


def _check_depth(settings, shapes, path):
  """Raises ValueError if a model has more layers than weights have arrays.

  Without this check, a wrong number would fill the memory with layers.
  """
  for name in ('num_layers', 'num_parallel', 'num_units', 'stem_units'):
    value = settings.get(name) or 0
    if np.sum(value, dtype=object) > len(shapes):
      raise ValueError(
        f'{path} has only {len(shapes)} arrays, but the model would have '
        f'{name}={value}. Correct the metadata next to the weights.'
      )


def affects_outputs(setting: str) -> bool:
  """Returns whether a model setting changes the outputs for given parameters.

  The other settings change only speed, memory, precision or training. All rates
  are used only in training.
  """
  return not setting.endswith('_rate') and setting not in (
    'attention',
    'drop_path_schedule',
    'dtype',
    'embedding_std',
    'remat',
    'scan',
  )


def _check_agrees(description, model_name, overrides):
  """Raises ValueError if the requested model is not the trained one."""
  if model_name and variants.resolve(model_name) != description.name:
    raise ValueError(
      f'model_name={variants.resolve(model_name)} does not match '
      f'{description.path}: the trained model is {description.name}. Use '
      f'model_name={description.name}.'
    )
  trained = models.get_model(
    description.name, num_classes=0, **description.settings
  )
  for key, value in overrides.items():
    stored = getattr(trained, key, None)
    if affects_outputs(key) and stored != value:
      raise ValueError(
        f'config.model.{key}={value} does not match {description.path}: the '
        f'model was trained with {key}={stored}. Use '
        f'config.model.{key}={stored}.'
      )


# --- architecture from the arrays, or from files of other libraries ----------


def given_settings(
  model_name: str | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the settings that a user has given, also by a timm name.

  Args:
    model_name: name of an architecture, also of timm; or None.
    overrides: settings of the architecture.
  """
  settings = {}
  if timm_table.is_known(model_name):
    settings = origins.settings_of_timm(model_name)
  elif model_name:
    settings = variants.VARIANTS.get(variants.resolve(model_name), {})
  return {**settings, **overrides}


def _settings_of_others(shapes, description, model_name, path):
  """Returns (name, settings) of a model that vit_jax has not described."""
  if timm_table.is_known(model_name):
    settings = origins.settings_of_timm(model_name)
    name, settings = architecture.nearest_to(settings)
  elif description.name and model_name:
    full = {**variants.VARIANTS[description.name], **description.settings}
    name = variants.resolve(model_name)
    settings = architecture.relative_to(name, full)
  elif description.name:
    name, settings = description.name, description.settings
  else:
    name, settings = recognize(shapes, model_name, path)
    settings = {**settings, **description.settings}
  settings = {**settings, **architecture.optional_layers(shapes)}
  return name, settings


def recognize(
  shapes: architecture.Shapes, model_name: str | None, path: str
) -> tuple[str, dict[str, Any]]:
  """Returns (name, settings) of an architecture that has these arrays.

  Args:
    shapes: {'/'-joined path: shape}.
    model_name: name of the architecture; None: the nearest.
    path: path of the weights, for messages.

  Raises:
    ValueError: no architecture has these arrays.
  """
  if model_name:
    name = variants.resolve(model_name)
    found = {
      key: value
      for key, value in architecture.settings_of(shapes).items()
      if key not in architecture.SIZES
    }
    if 'unpooled' in variants.VARIANTS.get(name, {}).get('classifier', ''):
      found.pop('classifier', None)
    return name, found
  found = architecture.nearest(shapes)
  if found:
    return found
  some = ', '.join(f'{name} {shapes[name]}' for name in sorted(shapes)[:3])
  raise ValueError(
    f'{path} has {len(shapes)} arrays ({some}, …) that match no known model, '
    'and there is no metadata next to it. If these are weights of a known '
    'architecture, use model_name=…'
  )


def _image_size(shapes, model, path, default):
  """Returns (height, width) in training, from the arrays or `default`."""
  grid = architecture.grid_of(shapes)
  if grid is None:
    if default:
      return default
    raise ValueError(
      f'{path} does not specify the image size used in training: it has no '
      'metadata and no position embeddings of a square grid. Use image_size=…, '
      'such as image_size=224.'
    )
  return architecture.image_size(model, grid)
