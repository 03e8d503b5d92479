"""All changes together, and the settings `config.augment`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import base_config
from vit_jax.augment import affine
from vit_jax.augment import augmentation
from vit_jax.augment import augreg_levels
from vit_jax.augment import blends
from vit_jax.augment import erasing
from vit_jax.augment import picture
from vit_jax.parallel import sharding

MANY = dict(
  pad=2, policy='trivial', erasing=0.5, mixup=0.8, cutmix=1.0, mix_mode='elem'
)


def make(**changes):
  """Returns the settings `config.augment`."""
  config = base_config.get_config()
  config.augment.update(changes)
  return augmentation.Settings(**config.augment)


def make_batch(size=16):
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (size, 8, 12, 3), np.uint8),
    'label': np.arange(size) % 5,
  }


@pytest.fixture(name='augmented', scope='module')
def fixture_augmented():
  augment = jax.jit(make(**MANY).make(5))
  return jax.device_get(augment(jax.random.key(2), make_batch(), 0))


@pytest.mark.parametrize(
  'num_devices', [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))]
)
def test_devices_do_not_matter(augmented, num_devices):
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  batch = sharding.put_batch(make_batch(), mesh)
  augment = jax.jit(make(**MANY).make(5))
  found = augment(jax.random.key(2), batch, 0)
  assert found['image'].sharding.is_equivalent_to(sharding.by_rows(mesh), 4)
  for name, value in augmented.items():
    np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6)
  assert found['image'].dtype == found['label'].dtype == jnp.float32


def test_rows_and_steps_differ():
  augment = jax.jit(make(pad=3).make(5))
  batch = make_batch()
  batch['image'] = np.repeat(batch['image'][:1], 16, axis=0)
  first, second = (
    augment(jax.random.key(i), batch, 0)['image'] for i in (1, 2)
  )
  assert len({row.tobytes() for row in np.asarray(first)}) > 8
  assert (np.asarray(first) != second).any((1, 2, 3)).mean() > 0.8


def test_the_last_quarter_of_a_run_is_not_mixed():
  augment = jax.jit(make(mixup=0.8, mix_off=0.25).make(5, total_steps=10))
  labels = [
    augment(jax.random.key(0), make_batch(), step)['label'] for step in (7, 8)
  ]
  assert [set(np.unique(x)) == {0, 1} for x in labels] == [False, True]


def test_padding_is_a_crop_of_the_reflected_image():
  image = make_batch()['image'][0]
  padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode='reflect')
  crops = {
    padded[i : i + 8, j : j + 12].tobytes() for i in range(7) for j in range(7)
  }
  keys = jax.random.split(jax.random.key(0), 400)
  found = jax.jit(jax.vmap(lambda key: affine.pad_and_crop(key, image, 3)))(
    keys
  )
  assert {x.tobytes() for x in np.asarray(found)} == crops


def test_erasing():
  keys = jax.random.split(jax.random.key(0), 2000)
  size = 32, 48
  boxes = np.asarray(
    jax.jit(jax.vmap(lambda key: erasing.draw_box(key, size)))(keys)
  )
  height, width = (boxes[:, i + 1] - boxes[:, i] for i in (0, 2))
  assert (boxes >= 0).all() and (boxes[:, 1] <= 32).all()
  assert (boxes[:, 3] <= 48).all()
  assert (height < 32).all() and (width < 48).all() and (height > 0).all()
  area = height * width / (32 * 48)
  assert 0.015 < area.min() < 0.03 and 0.3 < area.max() < 0.35
  ratio = np.log(height / width)
  assert abs(ratio).max() < np.log(1 / 0.3) + 0.15
  erase = jax.jit(
    jax.vmap(lambda key: erasing.erase(key, jnp.full((*size, 3), 7.0), 0.25))
  )
  found = np.asarray(erase(keys[:500]))
  erased = found != 7
  assert abs(erased.any((1, 2, 3)).mean() - 0.25) < 0.06
  noise = found[erased]
  assert abs(noise.mean()) < 0.01 and abs(noise.std() - 0.45) < 0.01


def test_jitter():
  """The brightness of a grey image shows its factor."""
  jitter = jax.jit(
    jax.vmap(lambda key, x: blends.jitter(key, x, 0.3), (0, None))
  )
  keys = jax.random.split(jax.random.key(0), 1000)
  found = np.asarray(jitter(keys, jnp.full((2, 2, 3), 100, jnp.uint8)))
  assert 70 <= found.min() < 72 and 128 < found.max() <= 130
  assert abs(found.mean() - 99.5) < 2  # fractions are dropped
  image = jnp.asarray(make_batch()['image'][0])
  assert len({x.tobytes() for x in np.asarray(jitter(keys[:50], image))}) == 50


@pytest.mark.parametrize(
  'changes, batch, message',
  [
    (dict(mixup=-0.2), 8, r'mixup=-0.2 must be at least 0'),
    (dict(cutmix=-1.0), 8, r'cutmix=-1.0 must be at least 0'),
    (dict(mixup=float('nan')), 8, 'mixup=nan'),
    (dict(erasing=1.5), 8, 'erasing=1.5 must be from 0 to 1'),
    (dict(mix_off=2.0), 8, 'mix_off=2.0'),
    (dict(pad=-1), 8, 'pad=-1'),
    (dict(mix_rules='scenic'), 8, "'scenic' is not one of timm, big_vision"),
    (dict(mix_mode='row'), 8, "'row' is not one of batch, elem, pair"),
    (
      dict(mix_mode='elem', mix_rules='big_vision'),
      8,
      "mix_mode='elem' needs config.augment.mix_rules='timm'",
    ),
    (dict(mixup=0.2), 7, 'config.batch=7 must be even.*config.batch=8'),
    (dict(mixup=0.2, mix_rules='big_vision'), 1, 'mix two rows'),
    (dict(policy='radnaug(2,15)'), 8, r'nearest one is randaug\(2,15\)'),
  ],
)
def test_wrong_settings(changes, batch, message):
  config = base_config.for_dataset('digits')
  config.batch = batch
  config.augment.update(changes)
  with pytest.raises(ValueError, match=message):
    base_config.validate(config)


def test_images_that_do_not_fit():
  with pytest.raises(ValueError, match='pad=8 must be smaller.* 8 x 12'):
    make(pad=8).make(5)(jax.random.key(0), make_batch(), 0)
  batch = make_batch()
  batch['image'] = batch['image'][..., :1]
  with pytest.raises(ValueError, match='3 channels, but the images have 1'):
    make(jitter=0.1).make(5)(jax.random.key(0), batch, 0)


def test_the_levels_of_augreg():
  tuples = {
    name: (level['policy'], level['mixup'], level['mix_rules'])
    for name, level in (
      (name, augreg_levels.settings(name)) for name in augreg_levels.LEVELS
    )
  }
  assert tuples == {
    'none': ('', 0, 'big_vision'),
    'light1': ('randaug(2,0)', 0, 'big_vision'),
    'light2': ('randaug(2,10)', 0.2, 'big_vision'),
    'medium1': ('randaug(2,15)', 0.2, 'big_vision'),
    'medium2': ('randaug(2,15)', 0.5, 'big_vision'),
    'strong1': ('randaug(2,20)', 0.5, 'big_vision'),
    'strong2': ('randaug(2,20)', 0.8, 'big_vision'),
  }
  for name in tuples:
    make(**augreg_levels.settings(name)).check(512)
  with pytest.raises(ValueError, match="'medium' .*medium1.*strong2"):
    augreg_levels.settings('medium')


def test_the_picture_has_the_images_and_their_labels():
  images = np.random.default_rng(0).uniform(-1, 1, (10, 6, 9, 3))
  labels = np.eye(3)[np.arange(10) % 3]
  labels[1] = 0, 0.25, 0.75
  texts = picture.describe_labels(labels, ('cat', 'dog', 'owl'))
  assert texts[:3] == ['cat', 'owl 0.75\ndog 0.25', 'owl']
  assert picture.describe_labels(np.array([2, 0]), 'abc') == ['c', 'a']
  assert picture.describe_labels(np.array([[1.5, 2]]), ()) == ['1.5\n2']
  drawn = picture.draw(images, texts)
  scale = 11  # 9 pixels become at least 96
  left, top = 9 * scale + 4, 6 * scale + 34
  assert drawn.shape == (2 * top, 8 * left, 3)
  pixels = np.round(images * 127.5 + 127.5).astype(np.uint8)
  for i in (0, 7, 9):
    row, column = i // 8 * top, i % 8 * left
    part = drawn[row : row + 6 * scale, column : column + 9 * scale]
    np.testing.assert_array_equal(part[::scale, ::scale], pixels[i])
    below = drawn[row + 6 * scale : row + top, column : column + left]
    assert (below < 100).any()  # text
  large = picture.draw_rows({'image': np.zeros((2, 300, 512, 3))}, ())
  assert large.shape == (154, 2 * 260, 3)


def test_a_long_label_does_not_hide_the_next_one():
  images = np.zeros((2, 8, 8, 3), np.float32)
  long, short = (
    picture.draw(images, [label, 'second']) for label in ('x' * 99, 'x')
  )
  assert np.array_equal(long[:, 100:], short[:, 100:])
