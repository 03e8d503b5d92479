"""Loads the initial weights of a run and checks them against their metadata."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import traverse_util
import flax.linen as nn
import numpy as np

from vit_jax import console
from vit_jax import models
from vit_jax.checkpoint import adaptation
from vit_jax.checkpoint import class_mapping
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import trained_model
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.other_libraries import open_settings
from vit_jax.data import data_settings
from vit_jax.models import architecture
from vit_jax.models import param_paths
from vit_jax.models import variants
from vit_jax.models.layers import positions

# Settings of a named architecture that a run keeps, whatever the weights have.
_OF_THE_RUN = (
  *architecture.SIZES,
  *('classifier', 'class_token', 'num_registers', 'layer_scale'),
  *(f'{param_paths.HEAD}_norm', 'encoder_norm', 'representation_size'),
)
# Settings that change the outputs, but not always the arrays.
_UNSEEN = ('gelu', 'norm_epsilon', 'positions', 'positions_at')


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Parameters as they are stored, and their metadata."""

  source: str  # Path of the weights, for messages.
  params: Any  # Nested dict of NumPy arrays.
  description: metadata.Description
  keep_head: bool
  decoder: Any = None  # Parameters of `mae_decoder.load`.


@dataclasses.dataclass(frozen=True)
class Adopted:
  """What a run takes from the weights it starts from.

  Attributes:
    name: name of the architecture.
    settings: settings of the architecture that differ from it.
    image_size: (height, width) in training; None if it is unknown.
    resizing: how images are resized in evaluation.
  """

  name: str
  settings: dict[str, Any]
  image_size: tuple[int, int] | None
  resizing: data_settings.Resizing


def adopt(
  path: str,
  name: str | None,
  given: Mapping[str, Any] | None = None,
  is_copy: bool = False,
) -> Adopted:
  """Returns what a run takes from weights in its settings.

  Args:
    path: path of weights or of a run folder.
    name: architecture of the run. Then only settings that no array contains,
      such as the activation, are taken from files of timm and Hugging Face.
      None: the architecture of the weights.
    given: settings of the architecture that the user has given. The weights
      need not contain them.
    is_copy: see `trained_model.of_copy`.

  Raises:
    ValueError: the weights cannot be read, or their architecture is unknown.
  """
  path, found = trained_model.locate(path)
  if is_copy:
    found = trained_model.of_copy(found)
  if name:
    settings = {}
    if found.origin and found.name:
      settings = architecture.relative_to(
        name, {**variants.VARIANTS[found.name], **found.settings}
      )
    elif not found.name:
      settings = found.settings
    settings = {k: x for k, x in settings.items() if k not in _OF_THE_RUN}
    return Adopted(name, settings, found.image_size, found.resizing)
  given = given or {}
  open_settings.check(path, found, given, None)
  name, settings, size = found.name, found.settings, found.image_size
  if not name:
    heads = given.get('num_heads', settings.get('num_heads'))
    loaded = weights_file.flatten(weights_file.load(path, heads))
    shapes = {array: np.shape(x) for array, x in loaded.items()}
    name, recognized = trained_model.recognize(shapes, None, path)
    settings = {**recognized, **settings}
    open_settings.log_positions(path, settings, given)
    grid = architecture.grid_of(shapes)
    model = models.get_model(name, num_classes=0, **settings)
    size = size or grid and architecture.image_size(model, grid)
  return Adopted(name, settings, size, found.resizing)


def read(
  path: str, settings: Mapping[str, Any], keep_head: bool, is_copy: bool = False
) -> Pretrained:
  """Loads a `Pretrained` from a path.

  If the head is kept, the settings must be those used in training. With a new
  head, differences between the settings are only logged.

  Args:
    path: path of weights or of a run folder.
    settings: arguments of `models.get_model`, without `num_classes`.
    keep_head: whether the model keeps the head of the weights.
    is_copy: see `trained_model.of_copy`.

  Raises:
    ValueError: the weights cannot be read, or `keep_head` is True and the
      weights were trained with other settings.
  """
  try:
    path, description = trained_model.locate(path)
  except ValueError as error:
    if keep_head:
      raise
    console.log_info(f'warning: {error}')
    description = metadata.Description(path)
  if is_copy:
    description = trained_model.of_copy(description)
  if description.license:
    console.log_info(f'{path}: license {description.license}')
  different = _different(description, settings, keep_head)
  if different:
    message = (
      f'{description.path}: the weights were trained with '
      + ', '.join(f'{name}={trained}' for name, trained, _ in different)
      + ', but the model has '
      + ', '.join(f'{name}={value}' for name, _, value in different)
      + '. Use '
      + ' '.join(
        f'config.model.{name}={trained}' for name, trained, _ in different
      )
    )
    if keep_head:
      raise ValueError(
        f'{message}, or a new head (config.pretrained_head=fresh).'
      )
    console.log_info(f'warning: {message}, unless the difference is intended.')
  overrides = {key: x for key, x in settings.items() if key != 'name'}
  model = models.get_model(settings['name'], num_classes=0, **overrides)
  params = weights_file.load(path, getattr(model, 'num_heads', None))
  return Pretrained(path, params, description, keep_head)


def _different(description, settings, keep_head):
  """Returns [(setting, value of the weights, value of the model)]."""
  overrides = {key: x for key, x in settings.items() if key != 'name'}
  model = models.get_model(settings['name'], num_classes=0, **overrides)
  names, values = _UNSEEN, description.settings
  if description.name:
    trained = models.get_model(
      description.name, num_classes=0, **description.settings
    )
    if type(trained) is not type(model):
      return []  # `adapt` lists the arrays that differ, which is clearer.
    names += ('classifier',) if keep_head else ()
    values = {name: getattr(trained, name, None) for name in names}
  elif keep_head:
    # timm and Hugging Face store their own activation even for weights that
    # were converted from JAX, so a setting of the user has priority.
    values = {
      name: value for name, value in values.items() if name not in settings
    }
  found = [
    (name, values[name], getattr(model, name, None))
    for name in names
    if name in values
  ]
  if not keep_head:  # `_with_positions` makes them equal
    found = [x for x in found if x != ('positions', 'sincos2d', 'learned')]
  return [row for row in found if row[1] != row[2]]


def check_head(pretrained: Pretrained, deployed: metadata.Description) -> None:
  """Raises ValueError if a kept head was trained for another task.

  Args:
    pretrained: result of `read`.
    deployed: metadata of the model to train.
  """
  found = pretrained.description
  if not pretrained.keep_head:
    return
  advice = 'Use a new head: config.pretrained_head=fresh'
  if found.output != deployed.output or (
    found.task != deployed.task and 'own' not in (found.task, deployed.task)
  ):
    raise ValueError(
      f'{pretrained.source}: its head was trained for the task {found.task} '
      f'with the output {found.output}, but this run trains the task '
      f'{deployed.task} with the output {deployed.output}. {advice}.'
    )
  if found.targets != deployed.targets:
    raise ValueError(
      f'{pretrained.source}: its head predicts {found.targets}, but this run '
      f'has the targets {deployed.targets}. {advice}, or set config.targets '
      'to the values of the weights.'
    )


def fit(
  pretrained: Pretrained,
  model: nn.Module,
  initial: Mapping[str, Any],
  image_size: tuple[int, int],
  class_names: Sequence[str],
  dataset: str,
  resize_patches: bool,
) -> dict[str, Any]:
  """Returns parameters for a model, adapted from a `Pretrained`.

  Args:
    pretrained: result of `read`.
    model: linen module.
    initial: randomly initialized parameters of the model.
    image_size: (height, width) of the model's images.
    class_names: class names of the dataset, if it has classes. The classes of
      a kept head are sorted in this order.
    dataset: name of the dataset, for messages.
    resize_patches: as in `adaptation.adapt`.

  Raises:
    ValueError: the weights do not match the model, or a kept head has other
      classes than the dataset.
  """
  params, keep_head = pretrained.params, pretrained.keep_head
  if keep_head and class_names and 'head' in params:
    try:
      params = class_mapping.match(
        params,
        pretrained.description.class_names,
        class_names,
        pretrained.source,
        dataset,
      )
    except ValueError as error:
      raise ValueError(
        f'{error} Or train a new head: config.pretrained_head=fresh.'
      ) from error
  return adaptation.adapt(
    _with_positions(pretrained, model, params),
    initial,
    model.grid_size(*image_size),
    keep_head,
    source_grid=_grid(pretrained),
    resize_patches=resize_patches,
  )


def fit_decoder(
  pretrained: Pretrained,
  encoder: nn.Module,
  initial: Mapping[str, Any],
  image_size: tuple[int, int],
) -> dict[str, Any]:
  """Returns the parameters of a decoder, adapted from a `Pretrained`.

  Args:
    pretrained: result of `read`, with a decoder.
    encoder: the encoder of the masked autoencoder, a linen module.
    initial: randomly initialized parameters of the decoder.
    image_size: (height, width) of the images.

  Raises:
    ValueError: the decoder has other sizes.
  """
  # `adapt` needs class tokens to know which rows of a table are of patches.
  token, width = param_paths.CLASS_TOKEN, initial['mask_token'].shape[-1]
  tokens = {token: np.zeros((1, 1, width), np.float32)}
  try:
    found = adaptation.adapt(
      {**pretrained.decoder, **tokens},
      {**initial, **(tokens if encoder.has_token else {})},
      encoder.grid_size(*image_size),
      source_grid=_grid(pretrained),
    )
  except ValueError as error:
    raise ValueError(
      f'the decoder of {pretrained.source}: {error}\nThe settings of the '
      'decoder are config.mae.decoder_…'
    ) from error
  found.pop(token, None)
  return found


def _with_positions(pretrained, model, params):
  """Returns parameters; fixed positions become the start of learned ones."""
  trained = _trained_model(pretrained.description)
  if getattr(model, 'positions', None) != 'learned' or (
    getattr(trained, 'positions', None) != 'sincos2d'
    or (trained.positions_at, model.positions_at) != ('input', 'input')
  ):
    return params
  layout = trained.layout(*pretrained.description.image_size)
  table = positions.sincos_2d(layout.grid, trained.hidden_size)
  table = np.pad(table, ((layout.num_tokens, 0), (0, 0)))[None]
  console.log_info(
    f'{pretrained.source}: the fixed positions (sincos2d) are the first values '
    'of the learned positions of this model'
  )
  flat = weights_file.flatten(params)
  return traverse_util.unflatten_dict(
    {**flat, param_paths.POSITIONS: table}, sep='/'
  )


def _trained_model(description):
  """Returns the model that weights were trained with; None if unknown."""
  if not description.name or not description.image_size:
    return None
  return models.get_model(
    description.name, num_classes=0, **description.settings
  )


def _grid(pretrained):
  """Returns (rows, columns) of patches in the weights' images, or None.

  Without metadata, the grid is assumed to be square, as in published files.
  """
  trained = _trained_model(pretrained.description)
  if trained:
    return trained.grid_size(*pretrained.description.image_size)
  return architecture.grid_of(
    {
      path: np.shape(array)
      for path, array in weights_file.flatten(pretrained.params).items()
    }
  )
