"""Crops that the compiled step resizes, compared with those of the host."""

import itertools
import shutil

import jax
import numpy as np
import pytest

from tests import digits_run
from tests.digits_run import assert_equal
import vit_jax
from vit_jax import train
from vit_jax.parallel import sharding
from vit_jax.run import setup

GREY_LEVEL = 1 / 127.5


def make_config(resize_on='device', **settings):
  config = digits_run.make_config()
  config.pp.update(dict(min_area=0.05, train_resize_on=resize_on))
  for name, value in settings.items():
    (config.pp if name in config.pp else config)[name] = value
  return config


def photos():
  """Returns arrays of smooth images, 24 x 20, larger than 4 x 8 x 8 pixels."""
  rng = np.random.default_rng(0)
  images = np.cumsum(rng.integers(-9, 10, (96, 24, 20, 3)), axis=2) + 128
  return vit_jax.data.from_arrays(
    np.clip(images, 0, 255).astype(np.uint8), np.arange(96) % 4
  )


def load(config, given=None, mesh=None):
  return setup.load_data(config, mesh or sharding.make_mesh(), given)


def test_batches_are_those_of_the_host():
  mesh = sharding.make_mesh()
  data, host = (load(make_config(on), photos()) for on in ('device', 'host'))
  make_batch = jax.jit(data.make_batch)
  feeds = list(itertools.islice(data.train(2), 3))  # into the second epoch
  differences, in_time = [], []
  for feed, expected in zip(feeds, host.train(2), strict=False):
    assert feed['image'].dtype == np.uint8 and feed['image'].shape[1] == 4 * 192
    batch = jax.device_get(make_batch(sharding.put_batch(feed, mesh)))
    assert batch.keys() == expected.keys()
    np.testing.assert_array_equal(batch['label'], expected['label'])
    found = abs(batch['image'] - expected['image']).max((1, 2, 3))
    differences.extend(found / GREY_LEVEL)
    in_time.extend((feed['size of image'] != 8).any(1))
  differences, in_time = np.array(differences), np.array(in_time)
  assert differences[in_time].max() < 0.01
  # The host rounds the larger crops, after it has resized them.
  assert 0.4 < differences[~in_time].max() < 0.51
  assert 0.2 < in_time.mean() < 0.8
  assert data.spec() == host.spec()
  assert_equal(data.sample(feeds[-1]), batch)


@pytest.mark.slow
def test_without_random_changes_and_in_evaluation():
  settings = dict(min_area=1.0, flip=False, crop=12, validation=100)
  data, host = (load(make_config(on, **settings)) for on in ('device', 'host'))
  feed, expected = next(data.train()), next(host.train())
  np.testing.assert_allclose(
    data.sample(feed)['image'], expected['image'], atol=0.01 * GREY_LEVEL
  )
  assert 'flip of image' not in feed
  assert_equal(list(data.test()), list(host.test()))


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path):
  config = make_config(total_steps=12, checkpoint_every=6, eval_every=0)
  config.augment.update(dict(pad=1, mixup=0.2))

  def run(folder, **pp):
    config.pp.update(pp)
    return train.train_and_evaluate(config, str(tmp_path / folder))

  whole = run('whole')
  assert (tmp_path / 'whole/augmented.png').exists()
  shutil.copytree(tmp_path / 'whole', tmp_path / 'killed')
  shutil.rmtree(tmp_path / 'killed/checkpoints/12')
  assert_equal(run('killed').state, whole.state)
  with pytest.raises(ValueError, match="'device' in the folder, 'host'"):
    run('whole', train_resize_on='host')


def test_data_that_the_device_cannot_resize():
  images, labels = digits_run.arrays()['train']
  floats = vit_jax.data.from_arrays(
    images / np.float32(255), labels, value_range=(0, 1)
  )
  with pytest.raises(ValueError, match='are float32, and not uint8. Use conf'):
    load(make_config(), floats)
  batch = {'image': np.zeros((32, 8, 8, 3), np.float32), 'label': labels[:32]}
  given = vit_jax.data.from_batches([batch], num_classes=10)
  with pytest.raises(ValueError, match='the data are given batches'):
    load(make_config(), given)
  with pytest.raises(ValueError, match="train_resize_on='device' cannot.*host"):
    load(make_config(data_on='device'), photos())
  with pytest.raises(ValueError, match='config.pp.train_resize_on.*bicubic'):
    setup.check(make_config(train_interpolation='bicubic_antialias'))
  with pytest.raises(ValueError, match="train_resize_on='gpu' is not one of"):
    setup.check(make_config('gpu'))
