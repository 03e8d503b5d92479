"""From a folder of images to the sources of a run."""

import os

import numpy as np

from vit_jax import console
from vit_jax.data import class_folders
from vit_jax.data import examples
from vit_jax.data import hold_out
from vit_jax.data import image_checks
from vit_jax.data import listing
from vit_jax.data import tensorflow as tf
from vit_jax.data.data_settings import DataSettings


def list_images(
  settings: DataSettings, folder: str, check_images: bool = True
) -> listing.Listing:
  """Returns the images of a folder: parts, labels, and what is left out.

  Without a test part, a fixed fraction of the images is held out for testing.

  Args:
    settings: `DataSettings`.
    folder: path of the folder.
    check_images: whether to decode all images that no run has decoded before.
      Images that cannot be decoded are left out.

  Raises:
    ValueError: the folder cannot be used for training.
  """
  found = class_folders.list_images(folder, settings)
  if settings.group_by and not found.groups:
    found.groups = hold_out.find_groups(found, settings.group_by)
  if 'test' not in found.parts:
    hold_out.split(found, 'test')
  if check_images:
    bad = image_checks.find_undecodable(
      found.paths, folder, settings.max_bad_images
    )
    _remove(found, set(bad))
  if settings.validation and 'validation' not in found.parts:
    hold_out.split(found, 'validation', settings.validation)
  if found.groups:
    hold_out.check_groups(found)
  return found


def _remove(found, bad):
  """Leaves out images that cannot be decoded.

  Raises:
    ValueError: a class has no other training images.
  """
  found.leave_out('images that cannot be decoded', sorted(bad))
  for name, part in found.parts.items():
    good = [i for i, path in enumerate(part.paths) if path not in bad]
    found.parts[name] = part.take(good)
    if not good:
      raise ValueError(
        f'{found.folder}: no images in the {name} split can be decoded. Add '
        'some.'
      )
  labels = found.parts['train'].labels
  if found.class_names and labels.ndim == 1:
    counts = np.bincount(labels, minlength=len(found.class_names))
    empty = [found.class_names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
      raise ValueError(
        f'{found.folder}: no training images in class {", ".join(empty)} can '
        'be decoded. Add images, or remove the folder of the class.'
      )


def get_sources(
  settings: DataSettings, folder: str, check_images: bool = True
) -> dict[str, examples.Source]:
  """Returns {split: `examples.Source`}; see `list_images`."""
  found = list_images(settings, folder, check_images)
  for line in found.lines(shown=('images that cannot be decoded',)):
    console.log_info(line)
  return {name: _make_source(found, name) for name in found.parts}


def _make_source(found, name):
  part = found.parts[name]
  read_path = examples.read_from(
    [os.fsencode(path) for path in part.paths], part.labels
  )

  def read(index):
    example = read_path(index)
    return {**example, 'image': tf.io.read_file(example['image'])}

  return examples.Source(
    len(part.paths),
    found.class_names,
    read=read,
    fingerprint=found.fingerprint(name),
    labels=part.labels,
  )
