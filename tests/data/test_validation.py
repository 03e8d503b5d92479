"""Held-out training images: `config.validation`."""

import itertools
import shutil

import pytest

from tests.data.test_image_folder import write_images
from tests.data.test_input_pipeline import fixture_data_dir  # noqa: F401
from tests.data.test_input_pipeline import in_memory_or_streamed
from tests.data.test_input_pipeline import make_config
from tests.data.test_input_pipeline import numbers
from vit_jax import base_config
from vit_jax.data import sources
from vit_jax.run import setup


def evaluated(data, split):
  return sorted(
    number
    for batch in data.evaluate(split)
    for number, mask in zip(numbers(batch), batch['mask'], strict=True)
    if mask
  )


@in_memory_or_streamed
@pytest.mark.parametrize('validation, count', [(0.1, 10), (30, 30)])
def test_splits_of_a_tfds_dataset(data_dir, source, validation, count):
  config = make_config(data_dir, validation=validation, **source)
  data = setup.get_datasets(config)
  assert data.num_examples == {
    'train': 103 - count,
    'test': 41,
    'validation': count,
  }
  held_out = evaluated(data, 'validation')
  batches = itertools.islice(data.train(), 3 * 103 // 10)
  seen = set(sum((numbers(batch) for batch in batches), []))
  assert len(held_out) == count
  assert seen == set(range(103)) - set(held_out)
  assert evaluated(data, 'test') == list(range(150, 191))


def test_the_same_images_in_memory_and_streamed(data_dir):
  held_out = [
    evaluated(
      setup.get_datasets(
        make_config(data_dir, validation=0.3, in_memory_bytes=size)
      ),
      'validation',
    )
    for size in (0, 2**20)
  ]
  assert held_out[0] == held_out[1]


def test_a_slice_and_a_sum_of_splits(data_dir):
  config = make_config(data_dir, train_split='train[:50]+test', validation=50)
  config.test_split = 'train[50:]'
  data = setup.get_datasets(config)
  assert data.num_examples == {'train': 41, 'test': 53, 'validation': 50}
  held_out = evaluated(data, 'validation')
  # The held-out images are the last images of the sum.
  assert set(held_out) > set(range(150, 191))
  named = make_config(data_dir, validation='test')
  assert evaluated(setup.get_datasets(named), 'validation') == list(
    range(150, 191)
  )


def paths_of(source):
  return {source.read(i)['image'].numpy() for i in range(source.num_examples)}


def test_a_folder(tmp_path):
  for i in range(40):
    write_images(tmp_path / 'train' / 'ab'[i % 2], [f'{i}.png'], color=i)
  write_images(tmp_path / 'test/a', ['0.png'], 200)
  config = base_config.for_dataset(str(tmp_path))
  config.validation = 10
  found = sources.get_sources(base_config.data_settings(config))
  held_out = paths_of(found['validation'])
  assert len(held_out) == 10 and found['train'].num_examples == 30
  assert not held_out & paths_of(found['train'])
  # One more image in the list moves at most one image to the other split.
  shutil.copy(tmp_path / 'train/a/0.png', tmp_path / 'train/a/00.png')
  more = paths_of(
    sources.get_sources(base_config.data_settings(config))['validation']
  )
  assert len(held_out & more) >= 9
  # A separate folder of validation images.
  config.validation = 'val'
  with pytest.raises(ValueError, match="config.validation='val': .* no such"):
    sources.get_sources(base_config.data_settings(config))
  write_images(tmp_path / 'val/b', ['7.png'], 250)
  found = sources.get_sources(base_config.data_settings(config))
  assert found['validation'].num_examples == 1
  assert found['validation'].read(0)['label'] == 1


@pytest.mark.parametrize('validation', [0.00001, 1.5, 1420, 5000, 'nowhere'])
def test_invalid_values_of_validation(validation):
  config = base_config.for_dataset('digits')
  config.validation = validation
  with pytest.raises(ValueError, match=f'config.validation={validation!r} '):
    sources.get_sources(base_config.data_settings(config))


def test_held_out_digits_come_from_the_training_split():
  config = base_config.for_dataset('digits')
  plain = sources.get_sources(base_config.data_settings(config))
  config.validation = 0.25
  found = sources.get_sources(base_config.data_settings(config))
  assert found['validation'].num_examples == 355
  assert found['test'].num_examples == plain['test'].num_examples
  images = [found[name].read(0)['image'] for name in ('train', 'validation')]
  assert (images[0].numpy() != images[1].numpy()).any()
