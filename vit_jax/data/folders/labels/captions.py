"""Reads captions of the images of a folder from a table."""

import numpy as np

from vit_jax.data.folders import image_folder
from vit_jax.data.folders import listing
from vit_jax.data.folders.labels import label_columns
from vit_jax.data.folders.labels import label_table
from vit_jax.data.folders.labels import table_files

_CAPTIONS = ('caption', 'captions', 'text', 'sentence', 'description')


def read(folder: str, path: str) -> tuple[list[str], list[str], np.ndarray]:
  """Returns (paths of images [N], captions [M], image of each caption [M]).

  Args:
    folder: folder of images, of any depth. Images without a caption are
      skipped.
    path: table with a row for each caption: a file name and a text. An image
      can have several rows.

  Raises:
    ValueError: the table cannot be used, or names a file that is missing.
  """
  table = label_table.read(path, folder)
  name = next((x for x in table.columns if x.lower() in _CAPTIONS), None)
  column = label_columns.file_column(table)
  if name in (None, column):
    raise ValueError(
      f'{path} has the columns {", ".join(table.columns)}, but needs a column '
      'of files and one of captions. Name them file and caption'
    )
  files = table_files.Files(image_folder.images_below(folder, [], []), folder)
  images, texts, owners, missing = {}, [], [], []
  for file, text in zip(table.column(column), table.column(name), strict=True):
    found = files.find(file, '.', '')
    if found is None or not text.strip():
      missing.append(file)
      continue
    owners.append(images.setdefault(found, len(images)))
    texts.append(text.strip())
  if missing:
    raise ValueError(
      f'{path}: {len(missing)} row(s) have no caption, or no image in '
      f'{folder}: {listing.some(missing)}. Correct or remove them'
    )
  return list(images), texts, np.array(owners)
