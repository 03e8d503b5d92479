"""The order of the training examples, computed with NumPy.

The order of an epoch is a permutation of the examples. The permutation is a
block cipher, so no list of all examples is made. It is the permutation of
`tf.random.experimental.index_shuffle`, to the bit. So a run has the same order
with and without TensorFlow.

The cipher is Simon (Beaulieu et al., https://eprint.iacr.org/2013/404, section
3) with 4 rounds, and a block of 16 to 64 bits. A result that is not the index
of an example is encrypted again until it is (cycle walking, Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002, section 4).
"""

import functools
import math

import numpy as np

_FIRST_KEY = 498247692  # TensorFlow puts this number before the two seeds
_SMALLEST_BLOCK = 16  # bits


def examples_at(
  positions: np.ndarray, seed: int, num_examples: int
) -> np.ndarray:
  """Returns the examples at positions in the endless training stream.

  The stream is a sequence of epochs. Epoch e has the positions from
  e · num_examples to (e + 1) · num_examples − 1.

  Args:
    positions: [N] integers, at least 0.
    seed: seed of the run. Only its low 32 bits matter, as in TensorFlow.
    num_examples: number of examples in an epoch.

  Returns:
    [N] int64, indices of examples from 0 to num_examples − 1.
  """
  positions = np.asarray(positions, np.int64)
  found = np.empty_like(positions)
  epochs, index = np.divmod(positions, num_examples)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    key = (_FIRST_KEY, seed & 0xFFFFFFFF, int(epoch) & 0xFFFFFFFF)
    found[here] = _permuted(index[here].astype(np.uint64), key, num_examples)
  return found


def _permuted(index, key, num_examples):
  """Returns the places of indices [N] uint64 in a permutation of an epoch."""
  if num_examples == 1:
    return index
  # The binary logarithm of the largest index, not of the number of examples,
  # as in TensorFlow. So with 2¹⁶ + 1 examples, the last index does not fit
  # into the block: it gets the same example as index 0.
  bits = math.ceil(math.log2(num_examples - 1))
  block = max(bits + bits % 2, _SMALLEST_BLOCK)
  if block == _SMALLEST_BLOCK:
    table = _table(key, num_examples)
    return table[index % len(table)]
  index = _encrypted(index, key, block // 2)
  (outside,) = np.nonzero(index >= num_examples)
  while outside.size:
    index[outside] = _encrypted(index[outside], key, block // 2)
    outside = outside[index[outside] >= num_examples]
  return index


@functools.lru_cache(maxsize=2)
def _table(key, num_examples):
  """Returns the permutation of all values of the smallest block.

  With few examples, a walk is long: its mean is 2¹⁶ / num_examples. So all
  walks are made at once. Each turn doubles the length of the unfinished walks.
  A walk from an example returns to an example; others may never end.
  """
  ends = _encrypted(
    np.arange(2**_SMALLEST_BLOCK, dtype=np.uint64), key, _SMALLEST_BLOCK // 2
  )
  for _ in range(_SMALLEST_BLOCK):
    outside = ends >= num_examples
    ends[outside] = ends[ends[outside]]
  return ends


def _encrypted(values, key, bits):
  """Encrypts blocks of two words with 4 rounds of Simon.

  Args:
    values: [N] uint64. Higher bits than those of a block are ignored.
    key: three integers of 32 bits.
    bits: number of bits of a word, half of a block; at least 8.

  Returns:
    [N] uint64.
  """
  mask = 2**bits - 1

  def left(x, count):
    return (x << count | x >> (bits - count)) & mask

  def right(x, count):
    return left(x, bits - count)

  def mixed(x):
    return left(x, 1) & left(x, 8) ^ left(x, 2)

  keys = [part & mask for part in key]
  constant = 0xFFFFFFFC ^ 1  # the 1 is the first bit of Simon's sequence z₃
  keys.append(
    (constant & mask) ^ keys[0] ^ right(keys[2], 3) ^ right(keys[2], 4)
  )
  high, low = values >> bits & mask, values & mask
  for first, second in (keys[:2], keys[2:]):
    high = high ^ mixed(low) ^ first
    low = low ^ mixed(high) ^ second
  return high << bits | low
