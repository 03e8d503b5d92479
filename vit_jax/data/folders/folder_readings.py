"""Decides whether sub-folders are splits or classes.

If both readings fit, the folder is rejected, and the message names the settings
that choose.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import re

from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders.split_names import part_of

_SETTING = {'train': 'train_split', 'test': 'test_split'}


@dataclasses.dataclass
class Layout:
  """The folders of the classes of each part.

  Attributes:
    root: the folder that contains the parts or the classes.
    parts: {part: [(class name, folder)]}. Without a 'test' part, images must be
      held out.
    names: {part: name of its sub-folder}, for messages.
    unlabelled: {part: folder} of parts whose images are in no class.
    skipped: see `listing.Listing`.
    notes: see `listing.Listing`.
  """

  root: str
  parts: dict[str, list[tuple[str, str]]] = dataclasses.field(
    default_factory=dict
  )
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  unlabelled: dict[str, str] = dataclasses.field(default_factory=dict)
  skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


def explicit(layout: Layout, settings: DataSettings) -> dict[str, str]:
  """Returns {part: name} of the parts that settings name.

  The defaults 'train' and 'test' name no part; './train' does.
  """
  chosen = {}
  for part, value in (
    ('train', settings.train_split),
    ('test', settings.test_split),
    ('validation', settings.validation),
  ):
    if not isinstance(value, str) or value == part and part != 'validation':
      continue
    if part == 'validation' and not value:
      continue
    name = os.path.normpath(value or '.')
    if not os.path.isdir(os.path.join(layout.root, name)):
      same = [
        other
        for other in image_folder.subfolders(layout.root)
        if part_of(other) and part_of(other) == part_of(name)
      ]
      name = same[0] if len(same) == 1 else name
    if not os.path.isdir(os.path.join(layout.root, name)):
      if part == 'validation':
        raise ValueError(
          f'config.validation={value!r}: there is no such folder in '
          f'{layout.root}. Use the name of an existing sub-folder, a fraction, '
          'or a number of training images.'
        )
      raise missing(os.path.join(layout.root, name), layout.root)
    chosen[part] = name
  return chosen


def missing(path: str, root: str) -> ValueError:
  """Returns the error about a split that is missing."""
  found = sorted(
    name
    for name in os.listdir(root)
    if os.path.isdir(os.path.join(root, name))
    and not image_folder.is_hidden(name)
  )
  return ValueError(
    f'{path} is missing. A folder of images has the structure '
    '{train,test}/{class}/image or {class}/image. If the parts have other '
    f'names, set config.train_split and config.test_split. {root} has the '
    f'sub-folders {listing.some(found, count=5)}.'
  )


def kind_of(path: str) -> str:
  """Returns what a folder has: 'classes', 'images' (no folders) or 'nothing'.

  Images next to class folders are skipped later.
  """
  if any(
    image_folder.has_image(os.path.join(path, name))
    for name in image_folder.subfolders(path)
  ):
    return 'classes'
  return 'images' if image_folder.has_image(path, False) else 'nothing'


def has_parts(layout: Layout, names: list[str], chosen: dict[str, str]) -> bool:
  """Returns whether the sub-folders `names` are parts, not classes.

  Raises:
    ValueError: both readings fit, or the parts have no labels.
  """
  root = layout.root
  kinds = {
    name: kind_of(os.path.join(root, name)) for name in names if part_of(name)
  }
  others = [
    name
    for name in names
    if name not in kinds
    and name not in chosen.values()
    and image_folder.has_image(os.path.join(root, name))
  ]
  if not kinds:
    return False
  parts = {part_of(name) for name in kinds}
  if not others:
    if 'train' not in parts and not chosen:
      raise missing(os.path.join(root, 'train'), root)
    train = [kind for name, kind in kinds.items() if part_of(name) == 'train']
    if train and 'classes' not in train and 'images' in train:
      raise _no_labels(root, list(kinds))
    return True
  train = [name for name in kinds if part_of(name) == 'train']
  if any(kinds[name] == 'classes' for name in train) and len(parts) > 1:
    listing.add(
      layout.skipped,
      'folders next to the parts',
      [os.path.join(root, name) for name in others],
    )
    return True
  if parts == {'train'} and set(kinds.values()) == {'images'}:
    layout.notes.append(
      f'{", ".join(kinds)} is read as a class, like {", ".join(others[:3])}'
    )
    return False
  if not train and all(
    kinds[name] == 'classes'
    and set(image_folder.subfolders(os.path.join(root, name))) <= set(others)
    for name in kinds
  ):
    _read_parts_next_to_classes(list(kinds), chosen)
    return False
  raise _two_readings(root, kinds, others)


def _read_parts_next_to_classes(names, chosen):
  """Chooses parts that have the classes next to them: {cat,dog,test/{cat}}."""
  for name in names:
    chosen.setdefault(part_of(name), name)
  if 'test' not in chosen and 'validation' in chosen:
    chosen['test'] = chosen.pop('validation')


def _two_readings(root, kinds, others):
  train = [
    name
    for name, kind in kinds.items()
    if part_of(name) == 'train' and kind == 'classes'
  ]
  rest = [name for name in kinds if part_of(name) != 'train']
  named = train + rest  # images in no class are no training images
  settings = [f'config.train_split=./{name}' for name in train[:1]]
  settings += [f'config.test_split=./{name}' for name in rest[:1]]
  if not train:
    settings.insert(0, 'config.train_split=.')
  return ValueError(
    f'{root}: {", ".join(named)} can be a part of the data, or a class like '
    f'{", ".join(others[:3])}. If all of these folders are classes, set '
    "config.train_split='.' If it is a part, set " + ' and '.join(settings)
  )


def _no_labels(root, names):
  return ValueError(
    f'{root}: the images in {", ".join(names)} are in no class. If these '
    "folders are the classes, set config.train_split='.' If they are parts of "
    'the data, put the images of each class into a sub-folder of the part, or '
    'give a table of labels: config.labels=PATH, a file such as labels.csv'
  )


def check_unique(root: str, part: str, names: Sequence[str]) -> None:
  """Raises ValueError if several sub-folders can be one split."""
  if len(names) > 1:
    setting = _SETTING.get(part, part)
    raise ValueError(
      f'{root}: {" and ".join(names)} can both be the {part} part. '
      f'Choose one: config.{setting}=./{names[0]}'
    )


def check_no_hidden_parts(
  root: str, names: Sequence[str], chosen: Mapping[str, str]
) -> None:
  """Raises ValueError if folders for classes look like splits: seg_train, ….

  The names of such splits start or end with the same word.
  """
  part_in = {}
  for name in names:
    words = re.split(r'[ ._-]+', name)
    part = part_of(words[0]) or part_of(words[-1])
    if part and len(words) > 1:
      part_in.setdefault(part, name)
  if 'train' not in part_in or len(part_in) == 1 or chosen:
    return
  settings = ' '.join(
    f'config.{_SETTING.get(part, part)}=./{name}'
    for part, name in part_in.items()
  )
  raise ValueError(
    f'{root}: {", ".join(part_in.values())} can be parts of the data or '
    f'classes. If they are parts, set {settings} If all of these folders are '
    "classes, set config.train_split='.'"
  )


def choose_parts(
  layout: Layout, names: Sequence[str], chosen: dict[str, str]
) -> dict[str, str]:
  """Returns {part: name of the sub-folder} of the parts of the root."""
  found = dict(chosen)
  for part in ('train', 'validation', 'test'):
    if part in found:
      continue
    usual = [
      name
      for name in names
      if part_of(name) == part
      and (part == 'train' or name not in chosen.values())
    ]
    check_unique(layout.root, part, usual)
    if usual:
      found[part] = usual[0]
  if 'train' not in found:
    raise missing(os.path.join(layout.root, 'train'), layout.root)
  return found
