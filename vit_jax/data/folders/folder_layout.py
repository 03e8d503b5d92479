"""Which sub-folders of a dataset are splits, and which ones are classes.

The splits of a folder can have the usual names: `{train,val,test}/{class}/`. A
class can have such a name, too. If both readings fit, the folder is rejected,
and the message names the settings that choose.
"""

from collections.abc import Sequence
import os

from vit_jax.data.data_settings import DataSettings
from vit_jax.data.folders import folder_readings
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders import split_names


def find(folder: str, settings: DataSettings) -> folder_readings.Layout:
  """Returns the `Layout` of a folder of images.

  Args:
    folder: path of the folder.
    settings: `train_split`, `test_split` and `validation` name sub-folders, if
      they are not the defaults.

  Raises:
    ValueError: several readings fit, or a part is missing.
  """
  split_names.check_settings(settings)
  layout = folder_readings.Layout(root=_descend(folder, settings))
  if layout.root != folder:
    inner = listing.key_of(layout.root, folder)
    layout.notes.append(f'the images are in its only sub-folder, {inner}')
  names = image_folder.subfolders(layout.root, layout.skipped)
  chosen = folder_readings.explicit(layout, settings)
  if chosen.get('train') == '.':
    _read_classes(layout, [n for n in names if n not in chosen.values()])
  elif 'train' in chosen or folder_readings.has_parts(layout, names, chosen):
    found = folder_readings.choose_parts(layout, names, chosen)
    layout.names = {k: v for k, v in found.items() if v}
    _read_parts(layout)
  elif _parts_are_inside(layout.root, names):
    _read_inner_parts(layout, names)
  else:
    folder_readings.check_no_hidden_parts(layout.root, names, chosen)
    _read_classes(layout, [n for n in names if n not in chosen.values()])
  for part in ('test', 'validation'):
    if part in chosen and part not in layout.parts:
      layout.names[part] = chosen[part]
      _read_part(layout, part)
  return layout


def _descend(folder, settings):
  """Returns the first folder below `folder` that has several sub-folders."""
  for _ in range(3):
    names = image_folder.subfolders(folder)
    chosen = {settings.train_split, settings.test_split, settings.validation}
    if len(names) != 1 or split_names.part_of(names[0]) or names[0] in chosen:
      return folder
    inner = os.path.join(folder, names[0])
    if image_folder.has_image(folder, below=False) or (
      image_folder.has_image(inner, below=False)
      or not image_folder.subfolders(inner)
    ):
      return folder
    folder = inner
  return folder


def _read_parts(layout):
  for part in ('train', 'validation', 'test'):
    if part in layout.names:
      _read_part(layout, part)


def _read_part(layout, part):
  """Reads the classes of the part `layout.names[part]`."""
  path = os.path.join(layout.root, layout.names[part])
  names = image_folder.subfolders(path, layout.skipped)
  known = {name for name, _ in layout.parts.get('train', [])}
  if len(names) == 1 and names[0] not in known:
    inner = os.path.join(path, names[0])
    deeper = image_folder.subfolders(inner)
    # `test/test/` has images without classes, or the classes of `train/train/`.
    repeats = not deeper and split_names.part_of(names[0])
    if len(deeper) > 1 if part == 'train' else known >= set(deeper) != set():
      path, names = inner, deeper
    elif part != 'train' and repeats:
      path = inner
  if part != 'train' and folder_readings.kind_of(path) == 'images':
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
  inner = [image_folder.subfolders(os.path.join(root, name)) for name in names]
  return len(names) > 1 and all(
    'train' in map(split_names.part_of, parts)
    and len(parts) > 1
    and all(map(split_names.part_of, parts))
    and not image_folder.has_image(os.path.join(root, name), below=False)
    for name, parts in zip(names, inner, strict=True)
  )


def _read_inner_parts(layout, names):
  for name in names:
    path = os.path.join(layout.root, name)
    by_part = {}
    for inner in image_folder.subfolders(path, layout.skipped):
      by_part.setdefault(split_names.part_of(inner), []).append(inner)
    for part, found in by_part.items():
      folder_readings.check_unique(path, part, found)
      layout.names[part] = f'CLASS/{found[0]}'
      layout.parts.setdefault(part, []).append(
        (name, os.path.join(path, found[0]))
      )
