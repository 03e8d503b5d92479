"""Reads all examples of a split into arrays of pixels and labels."""

from typing import Any

import numpy as np

from vit_jax import console
from vit_jax.data import examples
from vit_jax.data import tensorflow as tf
from vit_jax.data.given import conversion
from vit_jax.data.given import encoded_images
from vit_jax.data.image_files import decoding
from vit_jax.data.image_files import image_decoder

_SETTING = "config.data_on='device'"


def collect(
  source: examples.Source, name: str, how: decoding.Decoding, max_bytes: int
) -> dict[str, np.ndarray]:
  """Returns all examples of a source, in the stored order.

  Args:
    source: examples with arrays, or with `read` or `stream` of tf.data.
    name: name of the split, for messages.
    how: orientation, and background of alpha.
    max_bytes: largest accepted number of bytes of the pixels.

  Returns:
    {'image': uint8 [N, H, W, 3], 'label': …, other arrays [N, …]}.

  Raises:
    ValueError: the source has no stored examples, the images differ in size or
      are not uint8, there are too many, or a label is not a class.
  """
  if source.batches:
    raise ValueError(
      f'{_SETTING} needs all examples, but the data are given batches. Give '
      "arrays (vit_jax.data.from_arrays), or use config.data_on='host'"
    )
  if source.arrays is not None:
    arrays = {**source.arrays, 'image': _to_rgb(source.arrays, how, name)}
    check_room(arrays['image'], len(arrays['image']), name, max_bytes)
  else:
    arrays = _read_all(source, name, how, max_bytes)
  if examples.are_classes(arrays.get('label', np.zeros(0))):
    examples.check_labels(arrays['label'], len(source.class_names), name)
  return arrays


def _to_rgb(arrays, how, name):
  """Returns given images as RGB; raises ValueError unless they are uint8."""
  images = arrays['image']
  if images.dtype != np.uint8:
    raise ValueError(
      f'{_SETTING} needs pixels of the dtype uint8, but {name}: image has '
      f"{images.dtype}. Convert them to 0…255, or use config.data_on='host'"
    )
  return decoding.to_rgb(images, how.background)


def _read_all(source, name, how, max_bytes):
  """Returns the decoded examples of a source of tf.data."""

  def decode(example):
    return {**example, 'image': image_decoder.decode(example['image'], how)}

  arrays, count = {}, source.num_examples
  dataset = in_order(source).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
  rows = console.counting(dataset.as_numpy_iterator(), count, f'reading {name}')
  for i, row in enumerate(rows):
    if not i:
      check_room(row['image'][None], count, name, max_bytes)
      arrays = {
        key: np.empty((count, *np.shape(x)), np.asarray(x).dtype)
        for key, x in row.items()
      }
    encoded_images.check_size(
      row['image'].shape, arrays['image'].shape[1:], f'{name}: image {i}'
    )
    for key, x in row.items():
      arrays[key][i] = x
  return {key: conversion.narrow(x, key) for key, x in arrays.items()}


def in_order(source: examples.Source) -> Any:
  """Returns a tf.data.Dataset of all examples in the stored order."""
  if source.stream:
    return source.stream(None, None)
  return tf.data.Dataset.range(source.num_examples).map(source.read)


def check_room(
  images: np.ndarray, count: int, name: str, max_bytes: int
) -> None:
  """Raises ValueError if `count` images like these are above the limit."""
  size = count * images[0].nbytes
  if size > max_bytes:
    raise ValueError(
      f'{_SETTING}: {count} images of {name} need {console.file_size(size)} on '
      f'each device, more than the {console.file_size(max_bytes)} that '
      'config.device_data_bytes leaves for them. Raise this setting if the '
      "devices have the memory, or use config.data_on='host'"
    )
