"""The usual names of splits."""

import re

from vit_jax.data.data_settings import DataSettings

_NAMES = {
  **dict.fromkeys(('train', 'training', 'trn'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation', 'dev'), 'validation'),
  **dict.fromkeys(('test', 'testing', 'tst', 'eval', 'evaluation'), 'test'),
}
_ENDINGS = re.compile(r'[ ._-]?(set|split|data|images|imgs|part)$')


def part_of(name: str) -> str | None:
  """Returns the part that a name usually means, or None: 'Val' -> validation.

  Endings such as those of `training_set` and `test-images` are allowed.
  """
  name = name.lower()
  return _NAMES.get(name) or _NAMES.get(_ENDINGS.sub('', name))


def check_settings(settings: DataSettings) -> None:
  """Raises ValueError if a setting of a folder names a slice of TFDS."""
  for name in ('train_split', 'test_split', 'validation'):
    value = getattr(settings, name)
    if isinstance(value, str) and re.search(r'[\[\]%+]', value):
      raise ValueError(
        f'config.{name}={value!r} is a slice of a TFDS dataset, but '
        f'config.dataset={settings.dataset!r} is a folder. Use the name of a '
        f"sub-folder, such as config.{name}='train', or config.validation=0.1 "
        'to hold out images'
      )
