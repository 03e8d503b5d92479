"""Policies: the choice of operations, and the grammar of their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.augment import operations
from vit_jax.augment import policies
from vit_jax.augment import policy_names
from vit_jax.augment import strengths

SIZE = 16, 16


def choices(name, count=16_000):
  """Returns how often each operation, and then none, is chosen."""
  policy = policy_names.parse(name)
  keys = jax.random.split(jax.random.key(3), count)
  draw = jax.jit(jax.vmap(lambda key: policy.draw(key, SIZE)[0]))
  return np.bincount(draw(keys), minlength=len(policy.table) + 1)


def test_operations_are_equally_frequent():
  for name, number, fraction in (
    ('randaug(2,15)', 16, 1),
    ('rand-m9-mstd0.5-inc1', 15, 0.5),
    ('3augment', 3, 1),
  ):
    *found, none = choices(name)
    expected = fraction * 16_000 / number
    assert len(found) == number
    assert abs(np.array(found) - expected).max() < 5 * expected**0.5
    assert abs(none - (1 - fraction) * 16_000) < 350


def test_levels():
  keys = jax.random.split(jax.random.key(0), 4000)

  def levels(name):
    return np.asarray(jax.vmap(policy_names.parse(name).level)(keys))

  found = levels('rand-m9-mstd0.5')
  assert abs(found.mean() - 9) < 0.05 and found.max() <= 10
  assert abs(found.std() - 0.5) < 0.03
  assert levels('rand-m20-mstd5-mmax20').max() == 20
  found = levels('rand-m8-mstd101')  # uniform, as in timm
  assert abs(np.quantile(found, [0.25, 0.5, 0.75]) - [2, 4, 6]).max() < 0.3
  assert set(levels('trivial')) == set(range(31))


def test_an_image_depends_only_on_itself_and_its_key():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (24, *SIZE, 3), np.uint8)
  keys = jax.random.split(jax.random.key(0), 24)
  apply = jax.jit(policy_names.parse('randaug_fixed(1,12)').apply)
  found = np.asarray(apply(keys, images))
  assert found.dtype == np.uint8
  others = rng.integers(0, 256, images.shape, np.uint8)
  others[5], order = images[5], np.roll(np.arange(24), 3)
  again = np.asarray(apply(keys[order], others[order]))
  np.testing.assert_array_equal(again[8], found[5])
  same = np.asarray(apply(keys, np.repeat(images[:1], 24, axis=0)))
  assert len({image.tobytes() for image in same}) > 10
  changed = (found != images).any((1, 2, 3))
  assert changed.mean() > 0.8


def test_layers_draw_independently():
  """Two equal draws would invert an image twice."""
  table = {
    'keep': operations.of_nothing(),
    'invert': strengths.TRAINED['invert'],
  }
  policy = policies.Policy(table, layers=2, level=lambda key: 0.0)
  keys = jax.random.split(jax.random.key(0), 400)
  found = jax.jit(policy.apply)(keys, jnp.zeros((400, 1, 1, 3), jnp.uint8))
  assert 0.4 < (np.asarray(found) == 255).mean() < 0.6


def test_three_augment_does_exactly_one_of_three():
  policy = policy_names.parse('3augment')
  image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
  keys = jax.random.split(jax.random.key(0), 30)
  found = jax.jit(policy.apply)(keys, jnp.repeat(image[None], 30, axis=0))
  grey = (found == found[..., :1]).all((1, 2, 3))
  solarized = (found == np.where(image < 128, image, 255 - image)).all(
    (1, 2, 3)
  )
  blurred = found.astype(float).std((1, 2, 3)) < 0.999 * image.std()
  kinds = np.stack([grey, solarized, blurred & ~grey & ~solarized])
  assert (kinds.sum(0) <= 1).all() and kinds.sum(1).min() > 3


@pytest.mark.parametrize(
  'name, message',
  [
    ('randaugment(2,15)', r'nearest one is randaug\(2,15\)'),
    ('trivail', 'nearest one is trivial'),
    ('augmix', "is not a policy.*'' for none.*3augment"),
    ('randaug(2)', r'nearest one is randaug\(2,15\)'),
    ('randaug(0,15)', 'L operations per image, from 1 to 16'),
    ('randaug_fixed(2,31)', 'magnitude M from 0 to 30'),
    ('randaug(2,strong)', r'randaug\(L,M\)'),
    ('rand-m9-msd0.5', "part 'msd0.5'.*nearest known part is mstd"),
    ('rand-m9-w0', 'Parts are m .magnitude'),
    ('rand-m9-inc2', 'inc 0 or 1'),
    ('rand-m9-m8', 'A part appears once'),
    ('rand-m', 'has a number'),
    ('rand-m15', 'm at most mmax .10.'),
  ],
)
def test_names_that_are_not_policies(name, message):
  with pytest.raises(ValueError, match=f'config.augment.policy.*{message}'):
    policy_names.parse(name)
