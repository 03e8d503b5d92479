"""Attention maps of arrays: known values and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_model import close
from vit_jax.figures import attention_maps as maps
from vit_jax.figures.attention_weights import Attention
from vit_jax.figures.attention_weights import Tokens
from vit_jax.models.layers.patches import Layout

RNG = np.random.default_rng(0)


def softmax(*shape):
  x = np.exp(RNG.standard_normal(shape))
  return jnp.asarray(x / x.sum(-1, keepdims=True), jnp.float32)


def rollout(blocks, layout, classifier='token', probe=None):
  attention = Attention(tuple(blocks), probe)
  return maps.rollout(attention, Tokens(layout, 8, classifier))


@pytest.mark.parametrize('classifier', ['token', 'gap', 'token_gap'])
def test_uniform_attention_has_a_flat_rollout(classifier):
  layout = Layout(grid=(3, 4), num_tokens=1, num_registers=2)
  blocks = [jnp.full((2, 3, 15, 15), 1 / 15)] * 4
  close(rollout(blocks, layout, classifier), 1 / 12, 1e-7)
  row = jax.nn.one_hot(jnp.array([0, 5]), 15)
  expected = row / 2**4 + (1 - 2**-4) / 15  # R = 2^−L I + (1 − 2^−L) / T
  close(maps.rolled_out(tuple(blocks), row), expected, 1e-7)


def test_identity_has_an_empty_rollout():
  layout = Layout(grid=(2, 2), num_tokens=1)
  blocks = [jnp.eye(5)[None, None]] * 2
  np.testing.assert_array_equal(rollout(blocks, layout), np.zeros((1, 2, 2)))


def test_rollout_is_the_product_with_the_last_block_at_the_left():
  blocks = tuple(softmax(2, 3, 7, 7) for _ in range(3))
  product = np.eye(7)[None]
  for weights in blocks:
    product = (np.asarray(weights).mean(1) + np.eye(7)) / 2 @ product
  for token in (0, 3):
    row = jax.nn.one_hot(jnp.array([token]), 7)
    rows = maps.rolled_out(blocks, row)
    close(rows, product[:, token], 1e-6)
    close(rows.sum(-1), 1, 1e-6)
  # Two permutations: 0 attends to 1 in the last block, and 1 to 2 before it.
  first, last = jnp.eye(3)[jnp.array([[0, 2, 1], [1, 0, 2]])][:, None, None]
  row = maps.rolled_out((first, last), jnp.eye(3)[:1])
  np.testing.assert_allclose(row[0], [0.5, 0.25, 0.25])


def test_what_the_head_reads():
  layout = Layout(grid=(1, 2), num_tokens=2, num_registers=1)
  probe = jnp.array([[0.3, 0.7]])
  for classifier, given, expected in (
    ('token', None, [0.5, 0.5, 0, 0, 0]),  # with a distillation token
    ('token_unpooled', None, [1, 0, 0, 0, 0]),
    ('gap', None, [0, 0, 0.5, 0.5, 0]),
    ('unpooled', None, [0, 0, 0.5, 0.5, 0]),
    ('token_gap', None, [0.5, 0, 0.25, 0.25, 0]),
    ('map', probe, [0, 0, 0.3, 0.7, 0]),
    ('map', jnp.full((1, 5), 0.2), [0.2] * 5),
  ):
    tokens = Tokens(layout, 8, classifier)
    close(maps.readout(tokens, given)[0], expected, 1e-7)
  tokens = Tokens(layout, 8, 'gap', reads_all=True)
  close(maps.readout(tokens)[0], [0.2] * 5, 1e-7)


@pytest.mark.parametrize(
  'grid, stride, expected',
  [
    ((14, 14), 16, 116.492),
    ((7, 7), 32, 115.503),
    ((8, 8), 4, 16.546),
    ((24, 24), 16, 200.048),
  ],
)
def test_distance_of_uniform_attention(grid, stride, expected):
  layout = Layout(grid=grid, num_tokens=1, num_registers=3)
  count = layout.num_patches
  total = count + 4
  weights = jnp.full((1, 1, total, total), 1 / total)
  found = maps.mean_distance(weights, layout, stride)
  np.testing.assert_allclose(found, expected * count / total, rtol=1e-5)
  found = maps.mean_distance(weights, layout, stride, renormalize=True)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_properties_of_distances():
  layout = Layout(grid=(3, 5), num_tokens=1)
  identity = jnp.eye(16)[None, None]
  assert maps.mean_distance(identity, layout, 8) == 0
  weights = softmax(2, 3, 16, 16)
  found = maps.mean_distance(weights, layout, 8)
  assert found.shape == (2, 3)
  assert (found > 0).all() and (found < 8 * np.hypot(2, 4)).all()
  close(maps.mean_distance(weights, layout, 16), 2 * found, 1e-4)
  order = np.r_[0, 1 + np.arange(15).reshape(3, 5).T.ravel()]
  transposed = weights[:, :, order][..., order]
  other = Layout(grid=(5, 3), num_tokens=1)
  close(maps.mean_distance(transposed, other, 8), found, 1e-5)
  far = np.zeros((1, 1, 16, 16), np.float32)
  far[..., 1, 15] = 1  # from one corner to the other; one of 15 queries
  close(maps.mean_distance(far, layout, 8), 8 * np.hypot(2, 4) / 15, 1e-5)


def test_the_smallest_set_of_patches():
  values = np.array([[0.5, 0.05], [0.15, 0.3]])
  found = maps.smallest_set(values, 0.6)
  np.testing.assert_array_equal(found, [[1, 0], [0, 1]])
  np.testing.assert_array_equal(
    maps.smallest_set(values, 0.5), [[1, 0], [0, 0]]
  )
  assert maps.smallest_set(values, 1.0).all()
  assert not maps.smallest_set(np.zeros((2, 2, 2))).any()


def test_relevance_follows_its_equations():
  """R ← R + Ā · R; negative products do not count."""
  weights = [softmax(1, 2, 5, 5) for _ in range(3)]
  gradients = [jnp.asarray(RNG.standard_normal((1, 2, 5, 5))) for _ in range(3)]
  product = np.eye(5)
  for a, g in zip(weights, gradients, strict=True):
    mean = np.maximum(np.asarray(a) * np.asarray(g), 0).mean(1)[0]
    product = product + mean @ product
  row = jax.nn.one_hot(jnp.array([0]), 5)
  found = maps.relevance_row(tuple(weights), tuple(gradients), row)
  close(found[0], product[0], 1e-6)
  layout = Layout(grid=(2, 2), num_tokens=1)
  found = maps.relevance(
    Attention(tuple(weights), None),
    Attention(tuple(gradients), None),
    Tokens(layout, 8, 'token'),
  )
  close(found[0].ravel(), product[0, 1:], 1e-6)
