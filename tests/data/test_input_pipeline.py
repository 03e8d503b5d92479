import itertools
import pathlib

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from vit_jax import base_config
from vit_jax.data import sources
from vit_jax.data.streams import tfds_checks
from vit_jax.data.streams import tfds_source
from vit_jax.parallel import sharding
from vit_jax.run import setup


def pixels(number):
  """Returns an image with its number in red, columns in green, rows in blue.

  Red identifies the image. Green and blue show its crop and its flip.
  """
  rows, columns = 15 * np.mgrid[:16, :16]
  return np.stack([np.full_like(rows, number), columns, rows], -1).astype(
    np.uint8
  )


class Numbered(tfds.core.GeneratorBasedBuilder):
  """Numbered images in several shards."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(None, None, 3), encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=['even', 'odd']),
        }
      )
    )

  def _split_generators(self, dl_manager):
    return {'train': self._examples(0, 103), 'test': self._examples(150, 41)}

  def _generate_examples(self, start, count):
    for i in range(start, start + count):
      yield i, {'image': pixels(i), 'label': i % 2}

  _examples = _generate_examples


@pytest.fixture(name='data_dir', scope='module')
def fixture_data_dir(tmp_path_factory):
  """Path of a folder with a prepared TFDS dataset."""
  data_dir = tmp_path_factory.mktemp('tfds')
  Numbered(data_dir=data_dir).download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=5)
  )
  return str(data_dir)


def make_config(data_dir, **settings):
  config = base_config.for_dataset('numbered')
  config.tfds_data_dir = data_dir
  config.pp.update(dict(crop=4, min_area=1.0, flip=False))
  config.update({'batch': 10, 'batch_eval': 16, **settings})
  return config


def numbers(batch):
  """Returns the numbers of the images in a batch."""
  return list(np.round(batch['image'][:, 0, 0, 0] * 127.5 + 127.5).astype(int))


def train_numbers(config, count, first_step=0):
  batches = setup.get_datasets(config).train(first_step)
  return [numbers(b) for b in itertools.islice(batches, count)]


in_memory_or_streamed = pytest.mark.parametrize(
  'source',
  [{'in_memory_bytes': 2**20}, {'in_memory_bytes': 0, 'shuffle_buffer': 30}],
  ids=['in_memory', 'streamed'],
)


@in_memory_or_streamed
def test_every_example_is_seen_once_an_epoch_in_another_order(data_dir, source):
  batches = train_numbers(make_config(data_dir, **source), 31)
  stream = sum(batches, [])
  epochs = [stream[i : i + 103] for i in range(0, 309, 103)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(103))
  assert len({tuple(order) for order in [*epochs, range(103)]}) == 4
  order = np.argsort(epochs[0])
  assert abs(np.corrcoef(order, range(103))[0, 1]) < 0.5  # well mixed


@in_memory_or_streamed
def test_repeated_examples_follow_each_other_and_change_differently(
  data_dir, source
):
  config = make_config(data_dir, **source)
  once = sum(train_numbers(config, 14), [])
  config.repeats = 3
  config.pp.min_area = 0.3
  batches = list(itertools.islice(setup.get_datasets(config).train(0), 14))
  assert sum(map(numbers, batches), []) == list(np.repeat(once, 3))[:140]
  images = np.concatenate([batch['image'] for batch in batches])[:138]
  images = images.reshape(46, 3, -1)
  assert (images[:, 0] != images[:, 1]).any(-1).mean() > 0.9
  (resumed,) = itertools.islice(setup.get_datasets(config).train(11), 1)
  np.testing.assert_array_equal(resumed['image'], batches[11]['image'])


def test_resuming_late_reads_no_earlier_batches(data_dir):
  config = make_config(data_dir)
  batch = next(setup.get_datasets(config).train(10**12))
  assert batch['image'].shape == (10, 4, 4, 3)


@in_memory_or_streamed
@pytest.mark.parametrize(
  'batch_eval',
  [16, 41, *(pytest.param(x, marks=pytest.mark.slow) for x in (1, 64))],
)
def test_every_test_example_counts_once(data_dir, source, batch_eval):
  config = make_config(data_dir, batch_eval=batch_eval, **source)
  data = setup.get_datasets(config)
  for _ in range(2):
    seen = []
    for batch in data.test():
      assert len(batch['image']) == batch_eval
      real = batch['mask'] > 0
      seen += list(np.array(numbers(batch))[real])
      np.testing.assert_array_equal(
        batch['label'][real], np.array(numbers(batch))[real] % 2
      )
      assert not batch['label'][~real].any()
    assert sorted(seen) == list(range(150, 191))
  assert data.num_test == 41 and data.num_train == 103
  assert data.class_names == ('even', 'odd')


def test_slices_of_splits(data_dir):
  for in_memory in (2**20, 0):
    config = make_config(data_dir, in_memory_bytes=in_memory)
    config.train_split, config.test_split = 'train[:90%]', 'train[90%:]'
    data = setup.get_datasets(config)
    assert data.num_train + data.num_test == 103
    seen = [
      n
      for b in data.test()
      for n, m in zip(numbers(b), b['mask'], strict=True)
      if m
    ]
    train = next(data.train(0))
    assert len(seen) == data.num_test and not set(seen) & set(numbers(train))


def test_the_size_of_a_split_is_the_size_of_its_shards(data_dir):
  """A sum of splits is also streamed if it is too large for memory."""
  builder = tfds_source._make_builder('numbered', data_dir)
  train, test, both, half = (
    tfds_source._num_bytes(builder.info.splits[split])
    for split in ('train', 'test', 'train+test', 'train[:50%]')
  )
  assert train > test > 1000 and both == train + test
  assert 0.4 * train < half < 0.6 * train


def test_values_shapes_and_wide_images(data_dir):
  config = make_config(data_dir)
  config.pp.update(dict(crop=6, crop_width=10))
  data = setup.get_datasets(config)
  for batch in (next(data.train(0)), next(data.test())):
    assert batch['image'].shape[1:] == (6, 10, 3)
    assert batch['image'].dtype == np.float32
    assert batch['label'].dtype == np.int32
    assert -1 <= batch['image'].min() <= batch['image'].max() <= 1
    assert set(batch['label']) <= {0, 1}


def test_a_folder_of_the_same_images_gives_the_same_batches(data_dir, tmp_path):
  """The folder contains the pixels of the TFDS dataset."""
  config = make_config(data_dir)
  for split, start, count in (('train', 0, 103), ('test', 150, 41)):
    for i in range(start, start + count):
      folder = tmp_path / split / ('even', 'odd')[i % 2]
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels(i)).save(folder / f'{i:03}.png')
  folder_config = make_config('')
  folder_config.dataset = str(tmp_path)
  data, folder_data = map(setup.get_datasets, (config, folder_config))
  assert data.class_names == folder_data.class_names

  def rows(batches):
    return sorted(
      (n, label)
      for b in batches
      for n, label in zip(numbers(b), b['label'].tolist(), strict=True)
    )

  assert rows(data.test()) == rows(folder_data.test())
  stream = sum(
    (numbers(b) for b in itertools.islice(folder_data.train(0), 11)), []
  )
  assert sorted(stream[:103]) == list(range(103))


def test_digits():
  config = base_config.for_dataset('digits')
  train, test = sources.get_sources(base_config.data_settings(config)).values()
  assert (train.num_examples, test.num_examples) == (1420, 377)
  labels = [int(test.read(i)['label']) for i in range(9)]
  # These labels must be equal in all versions of vit_jax.
  assert labels == [8, 9, 9, 5, 1, 0, 2, 2, 8]
  image = train.read(tf.constant(0, tf.int64))['image']
  assert image.shape == (8, 8, 1) and image.dtype == tf.uint8
  assert 200 < image.numpy().max() <= 255
  config.test_split = 'validation'
  with pytest.raises(
    ValueError,
    match="'digits'.*'train' and 'test'.*config.test_split='validation'",
  ):
    sources.get_sources(base_config.data_settings(config))


def test_wrong_names_of_data(data_dir, tmp_path):
  config = make_config(data_dir)
  config.test_split = 'validation'
  with pytest.raises(ValueError, match="'validation' cannot .*'train', 'test'"):
    setup.get_datasets(config)
  for name, message in (
    ('ciphar10', "config.dataset='ciphar10' .*folder.*TFDS.*: .*cifar10"),
    ('cifar10:9.9.9', "'cifar10:9.9.9' .*version 3.0.2 and no configs"),
    ('cifar10_corrupted/nope', 'configs brightness_1, .*BuilderConfig nope'),
    (str(tmp_path / 'nowhere'), 'nowhere.: no such folder'),
    ('./nowhere', 'no such folder'),
  ):
    config.dataset = name
    with pytest.raises(ValueError, match=message):
      setup.get_datasets(config)


def test_a_dataset_that_cannot_be_downloaded_fails_at_once(
  tmp_path, monkeypatch
):
  def no_address(host, port):
    raise OSError(f'no address for {host}')

  monkeypatch.setattr(tfds_checks.socket, 'getaddrinfo', no_address)
  config = make_config(str(tmp_path))
  config.dataset = 'cifar100'
  with pytest.raises(
    ValueError,
    match='not prepared .*cifar100.*cannot be reached.* config.tfds_data_dir',
  ):
    setup.get_datasets(config)
  assert not list(pathlib.Path(tmp_path).rglob('*.tfrecord*'))


def test_a_dataset_without_classes_is_rejected(tmp_path, monkeypatch):
  class Bare:
    info = type('Info', (), {'features': {'image': None, 'text': None}})

  monkeypatch.setattr(tfds_source, '_make_builder', lambda *_: Bare)
  with pytest.raises(
    ValueError, match='needs .* label: .*features image, text'
  ):
    sources.get_sources(base_config.data_settings(make_config(str(tmp_path))))


def shares(num_processes, num_parts=4):
  """Returns one `Share` per process: equally many row parts, not in order."""
  order = [2, 0, 3, 1][:num_parts]
  each = num_parts // num_processes
  return [
    sharding.Share(
      tuple(sorted(order[i * each : (i + 1) * each])),
      num_parts,
      i,
      num_processes,
    )
    for i in range(num_processes)
  ]


TWO_OR_FOUR = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize('num_processes', TWO_OR_FOUR)
def test_processes_make_the_same_global_batches(data_dir, num_processes):
  config = make_config(data_dir, batch=12)
  config.pp.update(dict(crop=6, min_area=0.1, flip=True))
  alone = setup.get_datasets(config)
  together = [
    setup.get_datasets(config, share=share) for share in shares(num_processes)
  ]
  for first_step in (0, 7):  # an epoch has 8.6 batches
    for batch, *parts in itertools.islice(
      zip(
        alone.train(first_step),
        *(data.train(first_step) for data in together),
        strict=True,
      ),
      4,
    ):
      for share, part in zip(shares(num_processes), parts, strict=True):
        for name in ('image', 'label'):
          np.testing.assert_array_equal(part[name], batch[name][share.rows(12)])


@pytest.mark.parametrize('num_processes', TWO_OR_FOUR)
def test_processes_stream_shards_of_equal_size(data_dir, num_processes):
  """Each example is made by one process in each epoch, also after resuming."""
  config = make_config(data_dir, batch=4, in_memory_bytes=0, shuffle_buffer=30)
  together = [
    setup.get_datasets(config, share=share) for share in shares(num_processes)
  ]
  assert {data.num_train for data in together} == {103}
  all_seen = []
  for data in together:
    batches = list(itertools.islice(data.train(), 60))
    seen = sum(map(numbers, batches), [])
    length = next(i for i in range(1, len(seen)) if seen[i] in seen[:i])
    assert length in (103 // num_processes, 103 // num_processes + 1)
    assert sorted(seen[:length]) == sorted(seen[length : 2 * length])
    all_seen += seen[:length]
    for late, expected in zip(data.train(27), batches[27:], strict=False):
      np.testing.assert_array_equal(late['image'], expected['image'])
  assert sorted(all_seen) == list(range(103))


@in_memory_or_streamed
@pytest.mark.parametrize('num_processes', [1, *TWO_OR_FOUR])
@pytest.mark.parametrize('batch_eval', [4, 64])
def test_processes_evaluate_each_example_once(
  data_dir, source, num_processes, batch_eval
):
  """Some processes get fewer of the 41 examples, but equally many batches."""
  config = make_config(data_dir, batch_eval=batch_eval, **source)
  seen, counts = [], set()
  for share in shares(num_processes):
    batches = list(setup.get_datasets(config, share=share).test())
    counts.add(len(batches))
    for batch in batches:
      assert len(batch['image']) == batch_eval // num_processes
      seen += list(np.array(numbers(batch))[batch['mask'] > 0])
  assert sorted(seen) == list(range(150, 191))
  assert counts == {-(-41 // batch_eval)}


@pytest.mark.parametrize('source', [{}, {'in_memory_bytes': 0}])
def test_rows_that_overlap_between_processes(data_dir, source):
  """Each process makes its rows of a batch; two processes make rows 2 and 3."""
  config = make_config(data_dir, batch=6, **source)
  whole = next(setup.get_datasets(config).train(3))
  for parts, rows in (((0, 1), [0, 1, 2, 3]), ((1, 2), [2, 3, 4, 5])):
    data = setup.get_datasets(config, share=sharding.Share(parts, 3))
    np.testing.assert_array_equal(
      next(data.train(3))['image'], whole['image'][rows]
    )
