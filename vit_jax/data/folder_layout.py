"""Which sub-folders of a data set are parts, and which ones are classes.

The parts of a folder can have the usual names: `{train,val,test}/{class}/`. A
class can have such a name, too. If both readings fit, the folder is refused,
and the message names the settings that choose.
"""

from collections.abc import Sequence
import dataclasses
import os
import re

from vit_jax.data import image_folder
from vit_jax.data import listing
from vit_jax.data.data_settings import DataSettings

_NAMES = {
  **dict.fromkeys(('train', 'training', 'trn'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation', 'dev'), 'validation'),
  **dict.fromkeys(('test', 'testing', 'tst', 'eval', 'evaluation'), 'test'),
}
_ENDINGS = re.compile(r'[ ._-]?(set|split|data|images|imgs|part)$')
_SETTING = {'train': 'train_split', 'test': 'test_split'}


def part_of(name: str) -> str | None:
  """Returns the part that a name usually means, or None: 'Val' -> validation.

  Endings such as those of `training_set` and `test-images` are allowed.
  """
  name = name.lower()
  return _NAMES.get(name) or _NAMES.get(_ENDINGS.sub('', name))


@dataclasses.dataclass
class Layout:
  """The folders of the classes of each part.

  Attributes:
    root: the folder that contains the parts or the classes.
    parts: {part: [(class name, folder)]}. Without a 'test' part, images must be
      held out.
    names: {part: name of its sub-folder}, for messages.
    unlabelled: {part: folder} of parts whose images are in no class.
    left_out: see `listing.Listing`.
    notes: see `listing.Listing`.
  """

  root: str
  parts: dict[str, list[tuple[str, str]]] = dataclasses.field(
    default_factory=dict
  )
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  unlabelled: dict[str, str] = dataclasses.field(default_factory=dict)
  left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


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


def subfolders(
  folder: str, left_out: dict[str, list[str]] | None = None
) -> list[str]:
  """Returns the sorted names of the sub-folders that can have images.

  Args:
    folder: path of the folder.
    left_out: hidden folders and folders of runs are added to this dict; see
      `listing.Listing`. None: nothing is logged.
  """
  names, quiet = [], left_out is None
  left_out = {} if quiet else left_out
  for name in sorted(os.listdir(folder)):
    path = os.path.join(folder, name)
    if not os.path.isdir(path):
      continue
    if image_folder.is_hidden(name):
      listing.add(left_out, 'hidden folders', [path])
    elif image_folder.leads_back(path, set(), quiet):
      continue
    elif image_folder.is_run(path) or image_folder.contains_only_runs(path):
      listing.add(left_out, 'folders of runs', [path])
    else:
      names.append(name)
  return names


def find(folder: str, settings: DataSettings) -> Layout:
  """Returns the `Layout` of a folder of images.

  Args:
    folder: path of the folder.
    settings: `train_split`, `test_split` and `validation` name sub-folders, if
      they are not the defaults.

  Raises:
    ValueError: several readings fit, or a part is missing.
  """
  check_settings(settings)
  layout = Layout(_descend(folder, settings))
  if layout.root != folder:
    inner = listing.key_of(layout.root, folder)
    layout.notes.append(f'the images are in its only sub-folder, {inner}')
  names = subfolders(layout.root, layout.left_out)
  chosen = _explicit(layout, settings)
  if chosen.get('train') == '.':
    _read_classes(layout, [n for n in names if n not in chosen.values()])
  elif 'train' in chosen or _has_parts(layout, names, chosen):
    found = _choose_parts(layout, names, chosen)
    layout.names = {k: v for k, v in found.items() if v}
    _read_parts(layout)
  elif _parts_are_inside(layout.root, names):
    _read_inner_parts(layout, names)
  else:
    _read_classes(layout, [n for n in names if n not in chosen.values()])
  for part in ('test', 'validation'):
    if part in chosen and part not in layout.parts:
      layout.names[part] = chosen[part]
      _read_part(layout, part)
  return layout


def _descend(folder, settings):
  """Returns the first folder below `folder` that has several sub-folders."""
  for _ in range(3):
    names = subfolders(folder)
    chosen = {settings.train_split, settings.test_split, settings.validation}
    if len(names) != 1 or part_of(names[0]) or names[0] in chosen:
      return folder
    inner = os.path.join(folder, names[0])
    if image_folder.has_image(folder, below=False) or (
      image_folder.has_image(inner, below=False) or not subfolders(inner)
    ):
      return folder
    folder = inner
  return folder


def _explicit(layout, settings):
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
      if part == 'validation':
        raise ValueError(
          f'config.validation={value!r}: there is no such folder in '
          f'{layout.root}. Use the name of an existing sub-folder, a fraction, '
          'or a number of training images.'
        )
      raise _missing(os.path.join(layout.root, name), layout.root)
    chosen[part] = name
  return chosen


def _missing(path, root):
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


def _kind(path):
  """Returns what a folder has: 'classes', 'images' (no folders) or 'nothing'.

  Images next to class folders are left out later.
  """
  if any(
    image_folder.has_image(os.path.join(path, name))
    for name in subfolders(path)
  ):
    return 'classes'
  return 'images' if image_folder.has_image(path, False) else 'nothing'


def _has_parts(layout, names, chosen):
  """Returns whether the sub-folders `names` are parts, not classes.

  Raises:
    ValueError: both readings fit, or the parts have no labels.
  """
  root = layout.root
  kinds = {
    name: _kind(os.path.join(root, name)) for name in names if part_of(name)
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
      raise _missing(os.path.join(root, 'train'), root)
    train = [kind for name, kind in kinds.items() if part_of(name) == 'train']
    if train and 'classes' not in train and 'images' in train:
      raise _no_labels(root, list(kinds))
    return True
  train = [name for name in kinds if part_of(name) == 'train']
  if any(kinds[name] == 'classes' for name in train) and len(parts) > 1:
    listing.add(
      layout.left_out,
      'folders next to the parts',
      [os.path.join(root, name) for name in others],
    )
    return True
  if parts == {'train'} and set(kinds.values()) == {'images'}:
    layout.notes.append(
      f'{", ".join(kinds)} is read as a class, like {listing.some(others)}'
    )
    return False
  if not train and all(
    kinds[name] == 'classes'
    and set(subfolders(os.path.join(root, name))) <= set(others)
    for name in kinds
  ):
    _read_parts_next_to_classes(layout, list(kinds), chosen)
    return False
  raise _two_readings(root, list(kinds), others)


def _read_parts_next_to_classes(layout, names, chosen):
  """Chooses parts that have the classes next to them: {cat,dog,test/{cat}}."""
  for name in names:
    _check_unique(layout, part_of(name), [name])
    chosen.setdefault(part_of(name), name)
  if 'test' not in chosen and 'validation' in chosen:
    chosen['test'] = chosen.pop('validation')


def _two_readings(root, named, others):
  train = [name for name in named if part_of(name) == 'train']
  rest = [name for name in named if part_of(name) != 'train']
  settings = [f'config.train_split=./{name}' for name in train[:1]]
  settings += [f'config.test_split=./{name}' for name in rest[:1]]
  if not train:
    settings.insert(0, 'config.train_split=.')
  return ValueError(
    f'{root}: {", ".join(named)} can be a part of the data, or a class like '
    f'{listing.some(others)}. If all of these folders are classes, set '
    "config.train_split='.' If it is a part, set " + ' and '.join(settings)
  )


def _no_labels(root, names):
  return ValueError(
    f'{root}: the images in {", ".join(names)} are in no class. If these '
    "folders are the classes, set config.train_split='.' If they are parts of "
    'the data, put the images of each class into a sub-folder of the part, or '
    'give a table of labels: config.labels=PATH, a file such as labels.csv'
  )


def _check_unique(layout, part, names):
  if len(names) > 1:
    setting = _SETTING.get(part, part)
    raise ValueError(
      f'{layout.root}: {" and ".join(names)} can both be the {part} part. '
      f'Choose one: config.{setting}=./{names[0]}'
    )


def _choose_parts(layout, names, chosen):
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
    _check_unique(layout, part, usual)
    if usual:
      found[part] = usual[0]
  if 'train' not in found:
    raise _missing(os.path.join(layout.root, 'train'), layout.root)
  return found


def _read_parts(layout):
  for part in ('train', 'validation', 'test'):
    if part in layout.names:
      _read_part(layout, part)


def _read_part(layout, part):
  """Reads the classes of the part `layout.names[part]`."""
  path = os.path.join(layout.root, layout.names[part])
  names = subfolders(path, layout.left_out)
  known = {name for name, _ in layout.parts.get('train', [])}
  if len(names) == 1 and names[0] not in known:
    inner = os.path.join(path, names[0])
    deeper = subfolders(inner)
    if (set(deeper) <= known) if known else len(deeper) > 1:
      path, names = inner, deeper or names
  if part != 'train' and _kind(path) == 'images':
    layout.unlabelled[part] = path
    del layout.names[part]
    return
  layout.parts[part] = [(name, os.path.join(path, name)) for name in names]


def _read_classes(layout, names):
  layout.parts['train'] = [
    (name, os.path.join(layout.root, name)) for name in names
  ]


def _parts_are_inside(root, names: Sequence[str]) -> bool:
  """Returns whether each class has parts: `{class}/{train,test}/`."""
  inner = [subfolders(os.path.join(root, name)) for name in names]
  return len(names) > 1 and all(
    'train' in map(part_of, parts)
    and len(parts) > 1
    and all(map(part_of, parts))
    and not image_folder.has_image(os.path.join(root, name), below=False)
    for name, parts in zip(names, inner, strict=True)
  )


def _read_inner_parts(layout, names):
  for name in names:
    path = os.path.join(layout.root, name)
    by_part = {}
    for inner in subfolders(path, layout.left_out):
      by_part.setdefault(part_of(inner), []).append(inner)
    for part, found in by_part.items():
      _check_unique(Layout(path), part, found)
      layout.names[part] = f'CLASS/{found[0]}'
      layout.parts.setdefault(part, []).append(
        (name, os.path.join(path, found[0]))
      )
