"""The order that NumPy computes is the order of TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from vit_jax.data.in_memory import shuffle

SEEDS = (0, ~0, 12345, 2**63 - 1)


@pytest.mark.parametrize(
  'num_examples',
  [1, 2, 3, 10, 1437, 50_000, 2**16, 2**16 + 1, 2**16 + 2, 2**17, 2**18 + 1]
  + [1_281_167, 10**9, 2**40 + 3, 2**62],
)
def test_the_order_is_that_of_tensorflow(num_examples):
  rng = np.random.default_rng(num_examples)
  index = np.unique(
    [
      *range(min(num_examples, 40)),
      *rng.integers(0, num_examples, 40),
      num_examples - 1,
    ]
  )
  for seed in SEEDS:
    for epoch in {0, 1, (2**63 - 1) // num_examples - 1}:
      np.testing.assert_array_equal(
        shuffle.examples_at(epoch * num_examples + index, seed, num_examples),
        tf.random.experimental.index_shuffle(
          index, tf.constant([seed, epoch], tf.int64), num_examples - 1
        ),
        f'seed {seed}, epoch {epoch}',
      )


@pytest.mark.parametrize('num_examples', [1, 2, 1437, 2**16, 100_000])
def test_each_epoch_has_each_example_once(num_examples):
  stream = shuffle.examples_at(
    np.arange(2 * num_examples), seed=7, num_examples=num_examples
  )
  first, second = np.split(stream, 2)
  for epoch in (first, second):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))
  assert num_examples < 3 or (first != second).any()
  positions = np.random.default_rng(0).permutation(2 * num_examples)
  np.testing.assert_array_equal(
    shuffle.examples_at(positions, 7, num_examples), stream[positions]
  )
