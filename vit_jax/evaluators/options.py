"""Types of evaluators that a config or `evaluate --with` can name.

This module imports no JAX, because help pages list the options.
"""

from collections.abc import Mapping
import difflib
import math
from typing import Any

# {type: {option: default}}.
TYPES = {
  # Accuracy, top-5, balanced accuracy and calibration error of a classifier.
  'classifier': {},
  # Accuracy of an ImageNet classifier on another test set of ImageNet.
  'imagenet': {'variant': '', 'labels': ''},
  # Weighted votes of the k nearest training features, as DINO.
  'knn': {'k': (10, 20), 'temperature': 0.07},
  # Ridge regression on a few images of each class, as the ViT paper.
  'few_shot': {'shots': (1, 5, 10, 25), 'seeds': (0, 1, 2), 'l2': 1024.0},
  # Logistic regression. A fraction of the training images selects the penalty.
  'linear_probe': {
    'l2_strengths': (
      *(10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4),
      *(3e-5, 1e-5),
    ),
    'held_out': 0.1,
  },
  # Accuracy of an image and a text tower on a dataset, by its class names.
  'zero_shot': {'prompts': ('a photo of a {}.',)},
  # Recall of images and captions, of an image and a text tower.
  'retrieval': {'captions': ''},
}
_OF_TWO_TOWERS = ('zero_shot', 'retrieval')

# {setting of every evaluator: meaning}; `base_config.add_evaluator` has them.
SETTINGS = {
  'type': f'adds the evaluator NAME: {", ".join(TYPES)}',
  'dataset': 'a folder, an .npz file or a TFDS name; without: data of the run',
  'train_split': 'its training split; without: as in a run on this dataset',
  'test_split': 'its test split; without: as in a run; of the data of the run, '
  'the validation split, or else the test split',
  'every': 'steps between evaluations, 0: only the last step; without: '
  'config.eval_every',
}
VARIANTS = ('real', 'v2', 'a', 'r', 'sketch', 'objectnet')
MEANINGS = {
  'variant': f'the test set: {", ".join(VARIANTS)}',
  'labels': 'file of the labels of real, or of the classes of objectnet',
  'k': 'numbers of neighbors',
  'temperature': 'divides the cosines of the votes',
  'shots': 'numbers of training images of each class',
  'seeds': 'seeds of the choice of these images',
  'l2': 'strength of the penalty',
  'l2_strengths': 'strengths of the penalty; one is selected',
  'held_out': 'fraction of the training images that selects it',
  'prompts': 'texts with {} in the place of the class name; the mean of their '
  'embeddings represents the class',
  'captions': 'table with the columns file and caption, of the images in the '
  'folder that is the dataset',
}
_WHOLE = 'different integers of 1 or more'
_KINDS = {
  'k': _WHOLE,
  'shots': _WHOLE,
  'seeds': 'different integers of 0 or more',
  'temperature': 'greater than 0',
  'l2': 'greater than 0',
  'l2_strengths': 'different numbers greater than 0',
  'held_out': 'greater than 0 and below 1',
}


def defaults(kind: str) -> dict[str, Any]:
  """Returns {option: default} of a type; raises ValueError if it is unknown."""
  if kind not in TYPES:
    near = difflib.get_close_matches(kind, TYPES, n=1)
    raise ValueError(
      f'there is no evaluator {kind!r}'
      + (f'; did you mean {near[0]!r}?' if near else '.')
      + f' The types are {", ".join(TYPES)}'
    )
  return dict(TYPES[kind])


def check(given: Mapping[str, Any], prefix: str) -> None:
  """Raises ValueError for the first option with a wrong value.

  Args:
    given: {option: value}.
    prefix: text before the name of an option in the message.
  """
  if 'variant' in given:
    _check_variant(given['variant'], given['labels'], prefix)
  if given.get('captions') == '':
    raise ValueError(
      f"{prefix}captions='' must be the path of a table of captions"
    )
  if 'prompts' in given:
    prompts = given['prompts']
    if not prompts or not all(
      isinstance(x, str) and '{}' in x and x == x.strip() for x in prompts
    ):
      raise ValueError(
        f'{prefix}prompts={prompts} must be texts with {{}} in the place of '
        "the class name, such as 'a photo of a {}.'. Commas separate prompts; "
        'for a comma in a prompt, use a list: "[\'a {}, a type of pet.\']"'
      )
  for name, value in given.items():
    if name not in _KINDS:
      continue
    expected = _KINDS[name]
    values = value if expected.startswith('different') else (value,)
    if not values or len(set(values)) < len(values):
      raise ValueError(f'{prefix}{name}={value} must be {expected}')
    for x in values:
      least = 0 if name == 'seeds' else 1
      if (
        (isinstance(x, bool) or not isinstance(x, int | float))
        or ('integers' in expected and not (isinstance(x, int) and x >= least))
        or ('0 and' in expected and not 0 < x < 1)
        or ('greater' in expected and not 0 < x < math.inf)
      ):
        raise ValueError(f'{prefix}{name}={value} must be {expected}')


def check_towers(kinds: Mapping[str, str], source: str) -> None:
  """Raises ValueError if an evaluator needs a text tower.

  Args:
    kinds: {name: type} of the evaluators of a model without a text tower.
    source: description of the model, for the message.
  """
  for name, kind in kinds.items():
    if kind in _OF_TWO_TOWERS:
      raise ValueError(
        f'the evaluator {name!r} compares images with texts, but {source} has '
        'no text tower. Use a LiT model such as LiT-B16B'
      )


def _check_variant(variant, labels, prefix):
  """Raises ValueError for options of the type imagenet."""
  if variant not in VARIANTS:
    raise ValueError(
      f'{prefix}variant={variant!r} is not one of {", ".join(VARIANTS)}'
    )
  if variant == 'objectnet' and not labels:
    raise ValueError(
      f'{prefix}variant=objectnet needs {prefix}labels, a JSON file with the '
      'classes of ImageNet of each class of ObjectNet, {"mug": ["n03063599"]}. '
      'This list is not part of vit_jax. Make it from the mappings of '
      'ObjectNet, and cut off the red frames of its images'
    )
  if labels and variant not in ('real', 'objectnet'):
    raise ValueError(
      f'{prefix}labels={labels!r} is only used with {prefix}variant=real or '
      'objectnet'
    )
