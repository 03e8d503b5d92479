"""The values of `config.augment.policy`, and their policies.

| policy | paper |
| --- | --- |
| randaug(2,15) | RandAugment, arXiv 1909.13719, as AugReg was trained |
| randaug_fixed(2,15) | the same without the mistakes of that code |
| rand-m9-mstd0.5-inc1 | RandAugment of timm |
| trivial | TrivialAugment Wide, arXiv 2103.10158 |
| 3augment | 3-Augment of DeiT III, arXiv 2204.07118, section 3.3 |
"""

import difflib
import math
import re

import jax
import jax.numpy as jnp

from vit_jax.augment import policies
from vit_jax.augment import strengths

_MAX_MAGNITUDE = 30  # of the RandAugment paper
# Parts of timm's grammar, with their defaults. mmax: largest magnitude.
_TIMM = {'m': 10.0, 'n': 2, 'p': 0.5, 'mstd': 0.0, 'mmax': 10.0, 'inc': 0}
_EXAMPLES = (
  *('randaug(2,15)', 'randaug_fixed(2,15)', 'rand-m9-mstd0.5-inc1'),
  *('trivial', '3augment'),
)


def parse(name: str) -> policies.Policy:
  """Returns the policy of a value of `config.augment.policy`.

  Raises:
    ValueError: there is no such policy, or its numbers cannot be used.
  """
  if name == 'trivial':
    return policies.Policy(
      strengths.TRIVIAL, layers=1, level=_uniform_bin, fill=0
    )
  if name == '3augment':
    return policies.Policy(
      strengths.THREE_AUGMENT, layers=1, level=lambda key: 0.0
    )
  found = re.fullmatch(r'(randaug|randaug_fixed)\((.*),(.*)\)', name)
  if found:
    return _randaug(name, *found.groups())
  if name.split('-')[0] == 'rand':
    return _timm(name)
  words = {x.partition('(')[0]: x for x in _EXAMPLES}
  near = difflib.get_close_matches(name.partition('(')[0], words, 1, 0.4)
  raise ValueError(
    f'config.augment.policy={name!r} is not a policy. '
    + (f'The nearest one is {words[near[0]]}. ' if near else '')
    + f"Use '' for none, or one of: {', '.join(_EXAMPLES)}"
  )


def _uniform_bin(key):
  return jax.random.randint(key, (), 0, 31)


def _randaug(name, kind, layers, magnitude):
  """Returns the policy randaug(layers,magnitude) or randaug_fixed(…)."""
  layers, magnitude = _number(layers), _number(magnitude)
  if not (layers in range(1, 17) and 0 <= magnitude <= _MAX_MAGNITUDE):
    raise ValueError(
      f'config.augment.policy={name!r} must be {kind}(L,M) with L operations '
      f'per image, from 1 to 16, and a magnitude M from 0 to {_MAX_MAGNITUDE}, '
      f'such as {kind}(2,15)'
    )
  table = strengths.TRAINED if kind == 'randaug' else strengths.FIXED
  return policies.Policy(table, int(layers), lambda key: magnitude)


def _number(text):
  """Returns the number in a text, or NaN."""
  try:
    return float(text)
  except ValueError:
    return math.nan


def _timm(name):
  """Returns the policy of a text such as 'rand-m9-n2-mstd0.5-inc1'."""
  values, given = dict(_TIMM), set()
  for part in name.split('-')[1:]:
    key, text = re.fullmatch(r'([^\d.]*)(.*)', part).groups()
    number = _number(text)
    if key not in _TIMM or key in given or not 0 <= number < math.inf:
      near = difflib.get_close_matches(key, _TIMM, 1, 0) or ['m']
      raise ValueError(
        f'config.augment.policy={name!r} has the part {part!r}. '
        + (
          f'The nearest known part is {near[0]}. '
          if key not in _TIMM
          else 'A part appears once, and has a number. '
        )
        + 'Parts are m (magnitude), n (operations per image), p (fraction of '
        'the operations that are applied), mstd (standard deviation of the '
        'magnitude), mmax (largest magnitude) and inc (1: stronger with the '
        'magnitude), as in rand-m9-mstd0.5-inc1'
      )
    given.add(key)
    values[key] = number
  if not (
    values['n'] in range(1, 17)
    and values['p'] <= 1
    and values['inc'] in (0, 1)
    and values['m'] <= values['mmax'] <= _MAX_MAGNITUDE
  ):
    raise ValueError(
      f'config.augment.policy={name!r}: n must be from 1 to 16, p at most 1, '
      f'inc 0 or 1, m at most mmax ({values["mmax"]:g}), and mmax at most '
      f'{_MAX_MAGNITUDE}'
    )
  mean, deviation, most = values['m'], values['mstd'], values['mmax']

  def level(key):
    if deviation > 100:  # timm's way to write a uniform distribution
      return jax.random.uniform(key, maxval=mean)
    return jnp.clip(mean + deviation * jax.random.normal(key), 0, most)

  return policies.Policy(
    strengths.TIMM_INCREASING if values['inc'] else strengths.TIMM,
    int(values['n']),
    level,
    rate=values['p'],
    bilinear=True,
  )
