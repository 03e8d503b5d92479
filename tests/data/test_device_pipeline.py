"""Data on the devices, compared with tf.data and with other meshes."""

import dataclasses
import io
import itertools
import re
import shutil

import jax
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests import digits_run
from tests.digits_run import assert_equal
import vit_jax
from vit_jax import train
from vit_jax.data import examples
from vit_jax.data.image_files import decoding
from vit_jax.data.in_memory import collection
from vit_jax.parallel import sharding
from vit_jax.run import given as given_objects
from vit_jax.run import setup
from vit_jax.tasks import classification


def make_config(**settings):
  pp = settings.pop('pp', {})
  config = digits_run.make_config(data_on='device', **settings)
  config.pp.update(pp)
  return config


def from_digits():
  images, labels = digits_run.arrays()['train']
  return vit_jax.data.from_arrays(images, labels)


def load(config, given=None, mesh=None):
  return setup.load_data(config, mesh or sharding.make_mesh(), given)


def batches(data, mesh, count, first_step=0):
  make_batch = jax.jit(data.make_batch)
  return [
    make_batch(sharding.put_batch(feed, mesh))
    for feed in itertools.islice(data.train(first_step), count)
  ]


@pytest.mark.parametrize(
  'sampling', ['uniform', pytest.param('balanced', marks=pytest.mark.slow)]
)
def test_batches_without_changes_are_those_of_the_host(sampling):
  """The order, the pixels and the labels are equal, also in a later epoch."""
  settings = dict(pp=dict(min_area=1.0, flip=False), sampling=sampling)
  mesh, config = sharding.make_mesh(), make_config(batch=160, **settings)
  data = load(config, mesh=mesh)
  found = batches(data, mesh, 3, first_step=7)  # steps 8 and 9 end an epoch
  config.data_on = 'host'
  host = load(config, mesh=mesh)
  assert_equal(found, list(itertools.islice(host.train(7), 3)))
  assert data.spec() == host.spec()
  assert_equal(data.sample(next(data.train(7))), jax.device_get(found[0]))


def test_an_epoch_has_each_example_once():
  data = load(make_config(batch=96), from_digits())
  feeds = itertools.islice(data.train(), 30)  # 1420 is no multiple of 96
  index = np.concatenate([feed['index'] for feed in feeds])
  for epoch in (index[:1420], index[1420:2840]):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(1420))
  assert (index[:1420] != index[1420:2840]).mean() > 0.9
  later = next(data.train(14))
  np.testing.assert_array_equal(later['index'], index[14 * 96 : 15 * 96])


def test_a_row_depends_only_on_the_seed_and_its_position():
  """The size of the batch and the mesh do not change a bit, an epoch does."""
  wide = sharding.make_mesh()
  images, labels = digits_run.arrays()['train']
  given = vit_jax.data.from_arrays(images[:64], labels[:64], num_classes=10)
  data = load(make_config(batch=64), given)
  epochs = [batch['image'] for batch in batches(data, wide, 2)]
  narrow = sharding.make_mesh(jax.devices()[:4])
  same = load(make_config(batch=32), given, narrow)
  found = [batch['image'] for batch in batches(same, narrow, 4)]
  np.testing.assert_array_equal(np.concatenate(found), np.concatenate(epochs))
  first, second = (
    np.asarray(images)[np.argsort(feed['index'])]
    for images, feed in zip(epochs, data.train(), strict=False)
  )
  assert (first == second).all((1, 2, 3)).mean() < 0.2


@pytest.mark.parametrize(
  'size, atol', [(8, 0), pytest.param(12, 2e-5, marks=pytest.mark.slow)]
)
def test_evaluation_batches_are_those_of_the_host(size, atol):
  config = make_config(validation=100, pp=dict(crop=size))
  data = load(config)
  config.data_on = 'host'
  host = load(config)
  assert data.num_examples == host.num_examples
  for split in ('validation', 'test'):
    pairs = list(zip(data.evaluate(split), host.evaluate(split), strict=True))
    assert len(pairs) == data.num_batches(split)
    for found, expected in pairs:
      mask = expected['mask']
      np.testing.assert_array_equal(found['mask'], mask)
      for name, x in expected.items():
        x, y = x[mask > 0], np.asarray(found[name])[mask > 0]
        assert x.dtype == y.dtype
        np.testing.assert_allclose(y, x, rtol=0, atol=atol)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path):
  """The resumed run starts from step 10, as if it had been killed then."""
  images, labels = digits_run.arrays()['train']
  config = make_config(total_steps=20, checkpoint_every=10, eval_every=0)
  config.augment.update(dict(pad=1, mixup=0.2))

  def run(folder, images=images, **settings):
    given = vit_jax.data.from_arrays(images, labels)
    config.update(settings)
    return train.train_and_evaluate(config, str(tmp_path / folder), data=given)

  whole = run('whole')
  assert (tmp_path / 'whole/augmented.png').exists()
  shutil.copytree(tmp_path / 'whole', tmp_path / 'killed')
  shutil.rmtree(tmp_path / 'killed/checkpoints/20')
  resumed = run('killed')
  assert_equal(resumed.state, whole.state)
  with pytest.raises(ValueError, match='the images are different'):
    run('whole', images=np.where(images == 255, 254, images))
  with pytest.raises(ValueError, match="data_on='device' in the folder, 'host"):
    run('whole', data_on='host')


@pytest.mark.slow
def test_another_mesh_gives_the_same_run(tmp_path):
  results = []
  for mesh in (dict(data=8, tensor=1), dict(data=4, tensor=2)):
    config = make_config(total_steps=20, eval_every=0, checkpoint_every=0)
    config.mesh.update(mesh)
    workdir = str(tmp_path / str(mesh['data']))
    results.append(train.train_and_evaluate(config, workdir))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5),
    *(result.params for result in results),
  )


def test_the_data_are_an_argument_of_the_step_and_no_constant():
  config = make_config(accum_steps=1)
  mesh = setup.check(config)
  data = load(config, from_digits(), mesh)
  parts = setup.make_parts(config, mesh, data)
  lowered = parts.make_update(1).lower(
    parts.abstract_state, parts.abstract_feed(), None
  )
  text, size = lowered.as_text(), data.sources['train'].arrays['image'].nbytes
  assert size == 1420 * 8 * 8 * 3
  assert re.search('tensor<1420x8x8x3xui8>', text.partition('\n  }')[0])
  assert max(map(len, re.findall('0x[0-9A-F]+', text))) < 4096 < size
  assert parts.abstract_batch(32)['image'].shape == (32, 8, 8, 3)


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
LABELS = np.arange(40) % 4


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'device_data_bytes': 7000}, '40 images of train need .*data_on=.host'),
    ({'device_data_bytes': 10_000}, '40 images of test need .*data_bytes'),
    ({'pp': dict(crop=16, resize='crop')}, '8 x 8 to 16 x 16 only'),
    ({'pp': dict(crop_fraction=0.9)}, 'crop_fraction=0.9'),
    ({'data_on': 'gpu'}, "config.data_on='gpu' is not one of host, device"),
  ],
)
def test_settings_that_the_device_cannot_follow(settings, message):
  given = vit_jax.data.from_arrays(IMAGES, LABELS, test=(IMAGES, LABELS))
  config = (
    make_config(**settings)
    if 'data_on' not in settings
    else (digits_run.make_config(**settings))
  )
  with pytest.raises(ValueError, match=message):
    setup.check(config)
    load(config, given)


def test_data_that_cannot_be_on_the_device():
  floats = vit_jax.data.from_arrays(
    IMAGES / np.float32(255), LABELS, value_range=(0, 1)
  )
  with pytest.raises(ValueError, match='uint8, but train: image has float32'):
    load(make_config(), floats)
  batch = {'image': IMAGES[:32] / 127.5 - 1, 'label': LABELS[:32]}
  given = vit_jax.data.from_batches([batch], num_classes=4)
  with pytest.raises(ValueError, match='given batches.*from_arrays'):
    load(make_config(), given)


def png(height, width):
  file = io.BytesIO()
  Image.fromarray(np.full((height, width), 7, np.uint8)).save(file, 'PNG')
  return file.getvalue()


def test_encoded_images_of_one_size_are_collected():
  def collect(images, max_bytes=100, label=0):
    example = {'image': images, 'label': np.full(len(images), label)}
    dataset = tf.data.Dataset.from_tensor_slices(example)
    source = examples.Source(2, ('a',), stream=lambda seed, size: dataset)
    return collection.collect(source, 'test', decoding.OWN_FILES, max_bytes)

  found = collect([png(3, 5), png(3, 5)])
  assert found['image'].shape == (2, 3, 5, 3) and (found['image'] == 7).all()
  assert found['label'].dtype == np.int32
  with pytest.raises(ValueError, match='test: image 1 has 5 x 3 .*has 3 x 5'):
    collect([png(3, 5), png(5, 3)])
  with pytest.raises(ValueError, match='2 images of test need 90 bytes'):
    collect([png(3, 5), png(3, 5)], max_bytes=89)
  with pytest.raises(ValueError, match='test: 2 of 2 labels'):
    collect([png(3, 5), png(3, 5)], label=1)


def test_a_task_with_its_own_preparation_is_refused():
  def make_task(config, data):
    return dataclasses.replace(
      classification.make(config, data), prepare=lambda example, seed: example
    )

  config = make_config()
  given = given_objects.Given(task=make_task)
  mesh = setup.check(config, given)
  with pytest.raises(ValueError, match="data_on='device'.*data_on='host'"):
    setup.make_parts(config, mesh, load(config, from_digits(), mesh), given)
