"""A trained model, ready to use: from the folder of a run, or from weights.

What its arrays cannot tell is in a `description`; without one, the architecture
is recognised by their paths and shapes.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import registry
from vit_jax.checkpoint.pretrained import search
from vit_jax.models import architecture
from vit_jax.models import param_paths
from vit_jax.models import variants
from vit_jax.parallel import numerics


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """An architecture, its parameters and what it was trained to tell apart."""

  source: str  # path of the weights, for messages
  name: str  # of the architecture
  settings: dict[str, Any]  # of `models.get_model`, beyond name and num_classes
  model: Any  # linen module
  params: Any  # nested dict of NumPy arrays
  image_size: tuple[int, int]  # height, width in pixels
  trained_size: tuple[int, int]  # the same, in training
  class_names: tuple[str, ...] | None  # None where nothing tells them
  output: str = 'softmax'  # see `metadata.Description`

  @property
  def description(self) -> dict[str, Any]:
    """What `load` reads beside the weights, to be written as JSON."""
    return metadata.Description(
      name=self.name,
      settings=self.settings,
      image_size=self.image_size,
      class_names=self.class_names,
      output=self.output,
    ).to_json()

  @property
  def shown_class_names(self) -> tuple[str, ...]:
    """A name for each logit: ImageNet's, or numbers, where nothing tells."""
    return class_mapping.shown(self.class_names, self.model.num_classes)

  @property
  def class_index(self) -> dict[str, int]:
    """{name: index of the logit}, of ImageNet's classes by WordNet id too."""
    return class_mapping.index_of(self.class_names, self.model.num_classes)

  @property
  def num_params(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.params))

  def __str__(self):
    changed = ', '.join(
      f'{name} {value}'
      for name, value in self.settings.items()
      if not is_free(name)
    )
    changed = f' ({changed})' if changed else ''
    return (
      f'{self.name}{changed}, {self.num_params:,} parameters, '
      f'{self.model.num_classes} classes, images {self.image_size[0]} x '
      f'{self.image_size[1]}'
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
  folder: str = '.',
  sources: Sequence[str] = registry.SOURCES,
) -> TrainedModel:
  """The `TrainedModel` in a run's folder, a file, or a published file.

  Args:
    source: the folder of a run, weights in any layout that `weights_file.load`
      reads, or a name that `search.find` knows.
    model_name: of the architecture; needed where nothing tells, else checked.
    overrides: settings of the architecture; likewise, but for those that
      `is_free` knows.
    image_size: (height, width) of images, to which position embeddings are
      resampled; None: as in training.
    class_names: in place of the stored ones.
    step: of a run: the checkpoint to take; None: the newest.
    folder: of files fetched by hand, as for `search.find`.
    sources: of published files; see `registry.SOURCES`.

  Raises:
    ValueError: it cannot be loaded, or is not what was asked for.
  """
  path, told = locate(source, step, folder, sources)
  loaded = weights_file.load(path)
  shapes = {
    name: np.shape(array)
    for name, array in weights_file.flatten(loaded).items()
  }
  if told.name:
    _check_agrees(told, model_name, overrides or {})
    name, settings = (
      told.name,
      {
        **told.settings,
        **{
          key: value for key, value in (overrides or {}).items() if is_free(key)
        },
      },
    )
  else:
    name, found = _recognise(shapes, model_name, path)
    settings = {**found, **told.settings, **(overrides or {})}
  (num_classes,) = shapes.get(param_paths.HEAD_BIAS, (0,))
  model = models.get_model(name, num_classes=num_classes, **settings)
  trained_size = told.image_size or _image_size(shapes, model, path, image_size)
  size = tuple(image_size or trained_size)
  grid = model.grid_size(*size)
  source_grid = model.grid_size(*trained_size)
  initial = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)
  )['params']
  try:
    params = adaptation.adapt(
      loaded, initial, grid, keep_head=True, source_grid=source_grid
    )
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  names = class_names or told.class_names
  if names and len(names) != num_classes:
    raise ValueError(
      f'{path}: {len(names)} class names for a head of {num_classes} classes'
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
    told.output,
  )


# --- where the weights are ---------------------------------------------------


def is_run(folder: str | os.PathLike) -> bool:
  """Whether a folder holds a run that has saved a checkpoint."""
  return bool(weights_file.steps_in(os.path.join(folder, 'checkpoints')))


def _run_and_step(path):
  """(folder of the run, step or None) of a path in a run's folder."""
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
) -> tuple[str, metadata.Description]:
  """(path of the weights, what lies beside them); arguments as of `load`."""
  path = os.path.expanduser(source)
  if not os.path.exists(path):
    path = search.find(source, folder, sources=sources)
    if path is None:
      raise ValueError(
        f'{source!r} names no weights, but random ones: give '
        'the folder of a run, or a file or name of weights'
      )
  run, step_of_path = _run_and_step(path)
  steps = weights_file.steps_in(os.path.join(run, 'checkpoints'))
  if not steps:
    if step is not None:
      raise ValueError(
        f'{path} is not the folder of a run with checkpoints: '
        'it has no steps to choose from'
      )
    return path, metadata.beside(path)
  if step is None:
    step = steps[-1] if step_of_path is None else step_of_path
  if step not in steps:
    raise ValueError(
      f'{path} holds no checkpoint of step {step}, but of '
      + ', '.join(map(str, steps))
    )
  return os.path.join(run, 'checkpoints', str(step)), metadata.of_run(run)


def is_free(setting: str) -> bool:
  """Whether a setting leaves as they are what the parameters give as answer.

  That is what concerns speed, memory or, as all rates do, training alone.
  """
  return setting.endswith('_rate') or setting in (
    'attention',
    'dtype',
    'remat',
    'scan',
  )


def _check_agrees(told, model_name, overrides):
  """Raises unless the model asked for is the one that was trained."""
  if model_name and variants.resolve(model_name) != told.name:
    raise ValueError(
      f'{told.path}: the model is {told.name}, not '
      f'{variants.resolve(model_name)}, which was asked for by '
      'config.model.name or --model'
    )
  trained = models.get_model(told.name, num_classes=0, **told.settings)
  for key, value in overrides.items():
    if not is_free(key) and getattr(trained, key, None) != value:
      raise ValueError(
        f'{told.path}: the model has {key} {getattr(trained, key, None)}, '
        f'not {value}, which was asked for'
      )


# --- what the arrays tell ----------------------------------------------------


def _recognise(shapes, model_name, path):
  """(name, settings) of an architecture with these arrays."""
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
    f'{path}: no model here has its {len(shapes)} arrays ({some}, …), and no '
    'description lies beside it. Where it is one all the same, give the name '
    'of the architecture with --model'
  )


def _image_size(shapes, model, path, default):
  """(height, width) in training, if the arrays tell or images were square."""
  grid = architecture.grid_of(shapes)
  if grid is None:
    if default:
      return default
    raise ValueError(
      f'{path}: the arrays do not tell the size of the images in training: '
      'they have no positions, or not those of a square. Give it with '
      '--image_size, such as 224'
    )
  return architecture.image_size(model, grid)
