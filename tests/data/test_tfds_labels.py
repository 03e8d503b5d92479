"""The kinds of labels that TFDS datasets have."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import digits_run
from vit_jax.data import data_settings
from vit_jax.data.streams import tfds_checks
from vit_jax.data.streams import tfds_label
from vit_jax.parallel import sharding
from vit_jax.run import setup
from vit_jax.tasks import classification

SETS = [[0, 2], [1], [], [2, 2, 1], [0]]


def make_builder(name, feature, labels):
  """Returns the class of a dataset with five images and these labels."""

  def info(self):
    image = tfds.features.Image(shape=(8, 8, 3))
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict({'image': image, 'label': feature}),
      disable_shuffling=True,
    )

  def examples(self):
    for i, label in enumerate(labels):
      yield i, {'image': np.zeros((8, 8, 3), np.uint8), 'label': label}

  return type(
    name.capitalize(),  # TFDS derives the name of the dataset from it
    (tfds.core.GeneratorBasedBuilder,),
    {
      'VERSION': tfds.core.Version('1.0.0'),
      '_info': info,
      '_split_generators': lambda self, _: {
        'train': examples(self),
        'test': examples(self),
      },
      '_generate_examples': examples,
      '__module__': __name__,
    },
  )


@pytest.fixture(name='data_dir', scope='module')
def fixture_data_dir(tmp_path_factory):
  """Returns a folder with the datasets `several`, `number` and `text`."""
  data_dir = tmp_path_factory.mktemp('tfds')
  kinds = {
    'several': (
      tfds.features.Sequence(tfds.features.ClassLabel(names=['a', 'b', 'c'])),
      SETS,
    ),
    'number': (tfds.features.Scalar(np.float32), [1.5, -2.0, 3.0, 4.0, 5.0]),
    'count': (tfds.features.Scalar(np.int64), [1, 2, 3, 4, 5]),
    'text': (tfds.features.Text(), ['x'] * 5),
    'classes': (tfds.features.ClassLabel(names=['a', 'b']), [0, 0, 1, 0, 0]),
    'hidden': (tfds.features.ClassLabel(names=['a', 'b']), [0, 1, -1, -1, 0]),
  }
  for name, (feature, labels) in kinds.items():
    make_builder(name, feature, labels)(
      data_dir=data_dir
    ).download_and_prepare()
  return str(data_dir)


def load(name, data_dir, **settings):
  config = digits_run.make_config(
    dataset=name, tfds_data_dir=data_dir, batch_eval=5, **settings
  )
  return setup.get_datasets(config)


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
@pytest.mark.parametrize(
  'name, expected, names',
  [
    (
      'several',
      [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]],
      ('a', 'b', 'c'),
    ),
    ('number', [1.5, -2, 3, 4, 5], ()),
    ('count', [1, 2, 3, 4, 5], ()),
  ],
)
def test_labels_become_rows_or_numbers(
  name, expected, names, in_memory_bytes, data_dir
):
  data = load(name, data_dir, in_memory_bytes=in_memory_bytes)
  assert data.class_names == names
  (batch,) = data.test()
  np.testing.assert_array_equal(batch['label'], np.float32(expected))
  assert batch['label'].dtype == np.float32
  labels = data.labels('train')
  if in_memory_bytes:
    np.testing.assert_array_equal(labels, expected)
  else:
    assert labels is None


def test_a_label_of_another_type_is_refused(data_dir):
  with pytest.raises(ValueError, match=r"'text' .* image, label \(a Text\)"):
    load('text', data_dir)


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
@pytest.mark.parametrize('name', ['text', 'hidden'])
def test_without_labels_any_label_is_ignored(name, data_dir, in_memory_bytes):
  data = load(name, data_dir, in_memory_bytes=in_memory_bytes, labels='none')
  (batch,) = data.test()
  assert set(batch) == {'image', 'mask'} and batch['mask'].sum() == 5
  assert data.class_names == () and data.labels('train') is None


def test_a_class_label_stays_a_number():
  label = tfds_label.read_label(tfds.features.ClassLabel(names=['x', 'y']))
  assert label.names == ('x', 'y') and label.convert(1) == 1
  assert tfds_label.read_label(None) is None


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
def test_unlabelled_examples_are_refused_before_training(
  data_dir, in_memory_bytes
):
  with pytest.raises(ValueError) as error:
    load('hidden', data_dir, in_memory_bytes=in_memory_bytes)
  for fact in ("'hidden'", "'train'", 'label (a ClassLabel)', '-1', '2 of 5'):
    assert fact in str(error.value)


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
def test_several_classes_need_another_task(data_dir, in_memory_bytes):
  data = load('several', data_dir, in_memory_bytes=in_memory_bytes)
  config = digits_run.make_config()
  for make in (
    lambda: classification.make(config, data),
    lambda: classification.of_model(None, data=data),
  ):
    with pytest.raises(ValueError, match="'several'.*config.task=multi_label"):
      make()


def test_another_file_format_is_refused(data_dir, monkeypatch):
  builder = tfds.builder('several', data_dir=data_dir)
  file_format = tfds.core.file_adapters.FileFormat.ARRAY_RECORD
  monkeypatch.setattr(type(builder.info), 'file_format', file_format)
  with pytest.raises(ValueError) as error:
    load('several', data_dir)
  for fact in (
    'array_record, but vit_jax reads tfrecord',
    f"tfds.builder('several', data_dir='{data_dir}_tfrecord'",
    f'config.tfds_data_dir={data_dir}_tfrecord',
  ):
    assert fact in str(error.value)


@pytest.mark.parametrize(
  'feature, message',
  [
    (tfds.features.Image(shape=(8, 8, 3)), ''),
    (tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16), ''),
    (
      tfds.features.Image(shape=(8, 8, 1), dtype=np.float32),
      'dtype float32 and 1 channel.*from_arrays',
    ),
    (
      tfds.features.Image(shape=(8, 8, 4)),
      'has 4 channels, .*alpha. Set config.pp.background',
    ),
    (
      tfds.features.Tensor(shape=(8, 8, 13), dtype=np.uint16),
      'feature image is a Tensor, but must be an Image',
    ),
  ],
)
def test_images_that_are_not_pictures_are_refused(feature, message, capsys):
  settings = data_settings.DataSettings('satellites', (8, 8))
  if message:
    with pytest.raises(ValueError, match=message):
      tfds_checks.check_image(feature, settings)
  else:
    tfds_checks.check_image(feature, settings)
  warned = 'the upper 8 bits are used' in capsys.readouterr().err
  assert warned == (not message and feature.np_dtype == np.uint16)


def test_a_balanced_run_can_be_evaluated_as_a_stream(data_dir):
  """A stream has no list of labels, and an evaluation needs no order."""
  config = digits_run.make_config(
    dataset='classes', tfds_data_dir=data_dir, sampling='balanced', batch=8
  )
  mesh = sharding.make_mesh()
  labels = next(setup.load_data(config, mesh).train())['label']
  assert labels.tolist().count(1) == 4
  data = setup.load_data(config, mesh, streams=True)
  (batch,) = data.test()
  assert batch['label'][batch['mask'] > 0].tolist() == [0, 0, 1, 0, 0]
