"""Tests what random order, crops and flips depend on.

The green and blue channels are equal for all images. In a batch, they show how
a row was augmented, independently of its image.
"""

import itertools

import numpy as np
import pytest

from tests.data.test_input_pipeline import fixture_data_dir  # noqa: F401
from tests.data.test_input_pipeline import in_memory_or_streamed
from tests.data.test_input_pipeline import make_config
from tests.data.test_input_pipeline import numbers
from tests.data.test_input_pipeline import shares
from vit_jax.run import setup


def make_random(data_dir, **settings):
  """Returns a config with random crops and flips."""
  config = make_config(data_dir, **settings)
  config.pp.update(dict(crop=6, min_area=0.1, flip=True))
  return config


def take(data, count, first_step=0):
  return list(itertools.islice(data.train(first_step), count))


def augmented(batch):
  """Returns bytes that identify the augmentation of each row."""
  return [row.tobytes() for row in batch['image'][..., 1:]]


def num_alike(batch, other):
  """Returns the number of rows with equal augmentation in two batches."""
  return sum(
    a == b for a, b in zip(augmented(batch), augmented(other), strict=True)
  )


@in_memory_or_streamed
def test_a_resumed_stream_continues_bit_for_bit(data_dir, source):
  data = setup.get_datasets(make_random(data_dir, **source))
  straight = take(data, 25)
  for first_step in (1, 7, 10, 11, 22):
    for batch, expected in zip(
      data.train(first_step), straight[first_step:], strict=False
    ):
      np.testing.assert_array_equal(batch['image'], expected['image'])
      np.testing.assert_array_equal(batch['label'], expected['label'])


@in_memory_or_streamed
def test_the_seed_decides_order_and_augmentation(data_dir, source):
  first, again, other = (
    take(
      setup.get_datasets(make_random(data_dir, batch=50, seed=seed, **source)),
      1,
    )[0]
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first['image'], again['image'])
  assert numbers(first) != numbers(other)
  assert num_alike(first, other) < 5


@in_memory_or_streamed
def test_each_row_of_each_epoch_has_a_new_augmentation(data_dir, source):
  """A batch is an epoch, so every batch contains every image."""
  data = setup.get_datasets(make_random(data_dir, batch=103, **source))
  first, second = take(data, 2)
  assert len(set(augmented(first))) > 90  # a few of 103 may be equal by chance
  assert num_alike(first, second) < 10


@pytest.mark.slow
def test_processes_that_stream_augment_like_one_process(data_dir):
  """The row in the global batch determines the augmentation of an example."""
  config = make_random(data_dir, batch=12, in_memory_bytes=0)
  batches = take(setup.get_datasets(config), 2, first_step=8)
  for share in shares(2):
    data = setup.get_datasets(config, share=share)
    for batch, expected in zip(
      take(data, 2, first_step=8), batches, strict=True
    ):
      rows = augmented(expected)
      assert augmented(batch) == [rows[row] for row in share.rows(12)]
