"""The levels of augmentation of AugReg (arXiv 2106.10270, section 3.2)."""

import difflib

# {level: (policy, α of mixup)}. Magnitude 0 of the policy changes images: its
# code also blends and inverts them.
LEVELS = {
  'none': ('', 0.0),
  'light1': ('randaug(2,0)', 0.0),
  'light2': ('randaug(2,10)', 0.2),
  'medium1': ('randaug(2,15)', 0.2),
  'medium2': ('randaug(2,15)', 0.5),
  'strong1': ('randaug(2,20)', 0.5),
  'strong2': ('randaug(2,20)', 0.8),
}


def settings(level: str) -> dict[str, str | float]:
  """Returns the settings of `config.augment` of a level.

  Raises:
    ValueError: there is no such level.
  """
  if level not in LEVELS:
    near = difflib.get_close_matches(level, LEVELS, 1, 0)
    raise ValueError(
      f'{level!r} is not a level of augmentation. '
      + (f'The nearest one is {near[0]}. ' if near else '')
      + f'The levels are {", ".join(LEVELS)}'
    )
  policy, mixup = LEVELS[level]
  return {'policy': policy, 'mixup': mixup, 'mix_rules': 'big_vision'}
