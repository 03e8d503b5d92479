"""Errors for weights that do not match a model, with hints for a fix."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.models import architecture
from vit_jax.models import param_paths

# `classifier` and `class_token` determine which of these arrays a model has.
_POOLING = (param_paths.CLASS_TOKEN, param_paths.PROBE)
_QUERY = f'{param_paths.block(0)}{param_paths.ATTENTION}/query/kernel'


def check(
  adapted: Mapping[str, Any],
  model: Mapping[str, Any],
  file: Mapping[str, Any],
  keep_head: bool,
) -> None:
  """Raises ValueError unless adapted weights have the arrays of a model.

  Args:
    adapted: {path: array}, the adapted weights.
    model: {path: array}, the initial parameters of the model.
    file: {path: array}, the weights before they were adapted.
    keep_head: whether the model keeps the head of the file.
  """
  adapted, model, file = (
    {path: np.shape(array) for path, array in flat.items()}
    for flat in (adapted, model, file)
  )
  problems = [
    f'  missing from the file: {path} {model[path]}'
    for path in sorted(model.keys() - adapted.keys())
  ]
  problems += [
    f'  not in the model: {path} {adapted[path]}'
    for path in sorted(adapted.keys() - model.keys())
  ]
  problems += [
    f'  {path}: {adapted[path]} in the file, {model[path]} in the model'
    for path in sorted(model.keys() & adapted.keys())
    if adapted[path] != model[path]
  ]
  if problems:
    hints = [
      *_hints_for_the_head(adapted, model),
      *_hints_for_sizes(adapted, model),
      *_names(file, keep_head),
    ]
    raise ValueError(
      '\n'.join(['the weights do not match the model:', *problems, *hints])
    )


def _hints_for_the_head(adapted, model):
  """Yields settings with which the model can keep the file's head."""
  settings = architecture.settings_of(adapted)
  size = settings.get('representation_size')
  if size and f'{param_paths.PRE_LOGITS}/kernel' not in model:
    yield (
      "The file's head needs its representation layer. Use "
      f'config.model.representation_size={size}'
    )
  is_vit = 'num_heads' in settings and param_paths.VIT_PATCHES in model
  if is_vit and any((path in adapted) != (path in model) for path in _POOLING):
    classifier = settings.get('classifier', 'token')
    yield f"For the file's head, use config.model.classifier={classifier}" + (
      f' config.model.class_token={param_paths.CLASS_TOKEN in adapted}'
      if classifier != 'token'
      else ''
    )
  given, wanted = (x.get(param_paths.HEAD_KERNEL, ()) for x in (adapted, model))
  if given[-1:] != wanted[-1:]:
    yield (
      'For other classes, use config.pretrained_head=fresh (keep_head=False).'
    )


def _hints_for_sizes(adapted, model):
  """Yields fixes if patches, images or attention heads differ in size."""

  def both(path, rank):
    shapes = adapted.get(path, ()), model.get(path, ())
    return shapes if all(len(shape) == rank for shape in shapes) else ((), ())

  for path in (param_paths.VIT_PATCHES, param_paths.MIXER_PATCHES):
    given, wanted = both(path, 4)
    if given[:2] != wanted[:2] and given[2:] == wanted[2:]:
      yield (
        'Patches can be resized: set config.model.patch_size, or call adapt '
        'with resize_patches=True.'
      )
  given, wanted = both(param_paths.MIXER_PATCHES, 4)
  if given and given[:2] == wanted[:2]:
    given, wanted = both(param_paths.TOKEN_MIXING, 2)
    if given[:1] != wanted[:1] and architecture.grid_of(adapted):
      yield (
        'A Mixer works only at the image size of its weights. Use '
        f'{_square_images(adapted)}'
      )
  given, wanted = both(_QUERY, 3)
  if given[1:] != wanted[1:] and (
    (given[0], given[1] * given[2]) == (wanted[0], wanted[1] * wanted[2])
  ):
    yield (
      f'The file was loaded with {given[1]} attention heads. Use '
      f'config.model.num_heads={given[1]}. If the file does not contain the '
      f'number of heads, use checkpoint.load(…, num_heads={wanted[1]}).'
    )


def _square_images(mixer):
  side = architecture.grid_of(mixer)[0] * mixer[param_paths.MIXER_PATCHES][0]
  return f'config.pp.crop={side} config.pp.crop_width=0'


def _names(file, keep_head):
  """Yields the architecture that has all arrays of the file, if any."""
  names = architecture.fitting(file, with_head=keep_head)
  if not names:
    return
  more = ''
  size = architecture.settings_of(file).get('representation_size')
  if keep_head and size:
    more = f' config.model.representation_size={size}'
  if param_paths.TOKEN_MIXING in file:
    more = f' {_square_images(file)}'
  yield (
    f'The file matches config.model.name={" or ".join(names)}{more}. Remove '
    'other settings of config.model.'
  )
