"""Training data from arrays: `vit_jax.data.from_arrays` and .npz files."""

import itertools

import numpy as np
import pytest

from tests import digits_run
from tests.digits_run import assert_equal
from tests.digits_run import make_config
import vit_jax
from vit_jax import train
from vit_jax.data import tensorflow
from vit_jax.parallel import sharding
from vit_jax.run import evaluation
from vit_jax.run import setup

ARRAYS = digits_run.arrays()
IMAGES = np.zeros((6, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def from_digits(**options):
  return vit_jax.data.from_arrays(
    *ARRAYS['train'], test=ARRAYS['test'], **options
  )


def datasets(given, **settings):
  return setup.get_datasets(make_config(**settings), given=given)


def test_arrays_train_and_resume_like_the_data_set(finished, tmp_path, capsys):
  with pytest.raises(digits_run.Interrupted):
    train.train_and_evaluate(
      make_config(),
      str(tmp_path),
      data=from_digits(),
      hooks=[digits_run.interrupt_at(6)],
    )
  state, metrics, _ = train.train_and_evaluate(
    make_config(), str(tmp_path), data=from_digits()
  )
  assert_equal(state, finished[1])
  assert metrics['accuracy_test'] == finished[2]['accuracy_test']
  assert 'given arrays: 1420 training and 377 test' in capsys.readouterr().err

  images, labels = ARRAYS['train']
  changed = images.copy()
  changed[7, 3, 3] += 1
  with pytest.raises(ValueError, match='the images are different'):
    train.train_and_evaluate(
      make_config(),
      str(tmp_path),
      data=vit_jax.data.from_arrays(changed, labels, test=ARRAYS['test']),
    )
  # The settings of the replaced dataset do not matter; its name does.
  config = make_config(train_split='other', max_bad_images=0.5)
  train.train_and_evaluate(config, str(tmp_path), data=from_digits())
  with pytest.raises(
    ValueError, match="'given arrays' in the folder, 'digits'"
  ):
    train.train_and_evaluate(make_config(), str(tmp_path))


def test_evaluation_of_arrays(finished):
  found = evaluation.evaluate_only(
    make_config(), finished[0], data=from_digits()
  )
  assert found['accuracy'] == finished[2]['accuracy_test']
  assert found['dataset'] == 'given arrays'


def test_other_arrays_and_labels_pass_unchanged():
  rng = np.random.default_rng(0)
  given = {
    'image': ARRAYS['train'][0],
    'label': rng.uniform(size=(1420, 2)),
    'weight': rng.uniform(size=1420).astype(np.float16),
    'count': np.arange(1420),
  }
  data = datasets(vit_jax.data.from_arrays(given, test=given), batch_eval=1420)
  (batch,) = data.test()
  for name, dtype in (
    ('label', np.float32),
    ('weight', np.float16),
    ('count', np.int32),
  ):
    assert batch[name].dtype == dtype
    np.testing.assert_array_equal(batch[name], given[name].astype(dtype))
    assert data.spec()[name] == (given[name].shape[1:], dtype)
  np.testing.assert_array_equal(
    data.labels('train'), given['label'].astype(np.float32)
  )
  assert data.class_names == ()
  first = next(data.train())
  np.testing.assert_array_equal(
    first['weight'], given['weight'][first['count']]
  )


@pytest.mark.parametrize('name', ['arrays', 'name', 'npz'])
def test_labels_of_a_split_are_those_of_its_batches(name, tmp_path):
  given = from_digits() if name == 'arrays' else None
  config = make_config(validation=100, batch_eval=128)
  if name == 'npz':
    config.dataset = str(tmp_path / 'digits.npz')
    np.savez(
      config.dataset,
      image=ARRAYS['train'][0],
      label=ARRAYS['train'][1],
      test_image=ARRAYS['test'][0],
      test_label=ARRAYS['test'][1],
      class_names=list('abcdefghij'),
    )
  data = setup.get_datasets(config, given=given)
  assert data.num_examples == {'train': 1320, 'test': 377, 'validation': 100}
  for split in ('test', 'validation'):
    labels = np.concatenate(
      [batch['label'][batch['mask'] > 0] for batch in data.evaluate(split)]
    )
    np.testing.assert_array_equal(labels, data.labels(split))
  assert data.class_names[1] == ('b' if name == 'npz' else '1')


def test_float_images_are_scaled_by_their_range():
  images, labels = ARRAYS['train']
  expected = next(datasets(from_digits()).train())['image']
  for value_range, dtype in (
    ((0, 1), np.float64),
    ((-1, 1), np.float32),
    ((0, 255), np.float32),
  ):
    low, high = value_range
    floats = (images / 255 * (high - low) + low).astype(dtype)
    data = datasets(
      vit_jax.data.from_arrays(floats, labels, value_range=value_range)
    )
    found = next(data.train())['image']
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('value_range', [None, (0, 1), (-1, 1)])
def test_numpy_alone_gives_the_same_batches(monkeypatch, value_range):
  images, labels = ARRAYS['train']
  if value_range:
    low, high = value_range
    images = (images / 255 * (high - low) + low).astype(np.float32)
  given = vit_jax.data.from_arrays(images, labels, value_range=value_range)
  config = make_config(validation=150)
  config.pp.update(dict(min_area=1.0, flip=False))
  share = sharding.Share(parts=(1,), num_parts=2, group=1, num_groups=2)

  def make():
    data = setup.get_datasets(config, given=given, share=share)
    return (
      data.spec(),
      list(itertools.islice(data.train(first_step=38), 3)),  # two epochs
      list(data.evaluate('validation')),
    )

  expected = make()
  monkeypatch.setattr(tensorflow, 'is_installed', lambda: False)
  found = make()
  assert found[0] == expected[0]
  assert_equal(found[1:], expected[1:])
  assert given.pipeline is not None

  config.pp.crop = 16
  with pytest.raises(ValueError, match='8 x 8 pixels, and the model 16 x 16'):
    make()
  config.pp.flip = True
  with pytest.raises(ValueError, match='config.pp.flip=True: random crops and'):
    make()


def test_without_a_test_split(tmp_path, capsys):
  images, labels = ARRAYS['train']
  given = vit_jax.data.from_arrays(images, labels)
  config = make_config(total_steps=2, warmup_steps=1, checkpoint_every=1)
  result = train.train_and_evaluate(config, str(tmp_path), data=given)
  again = train.train_and_evaluate(config, str(tmp_path), data=given)
  assert result.metrics == again.metrics
  assert 'train_loss' in result.metrics
  assert 'accuracy_test' not in result.metrics
  output = capsys.readouterr().err
  assert '1420 training images in 10 classes, without a test split' in output
  assert 'done: there is no test split, after 2 steps' in output
  with pytest.raises(ValueError, match='config.patience=3 needs evaluations'):
    train.train_and_evaluate(
      make_config(patience=3), str(tmp_path / 'other'), data=given
    )
  with pytest.raises(ValueError, match='no test split'):
    evaluation.evaluate_only(config, str(tmp_path), data=given)


@pytest.mark.parametrize('validation', [0.1, ARRAYS['test']])
def test_validation(validation, tmp_path):
  images, labels = ARRAYS['train']
  options, settings = {}, {}
  if isinstance(validation, tuple):
    options = {'validation': validation}
  else:
    settings = {'validation': validation}
  _, metrics, _ = train.train_and_evaluate(
    make_config(total_steps=2, warmup_steps=1, **settings),
    str(tmp_path),
    data=vit_jax.data.from_arrays(images, labels, **options),
  )
  assert 'accuracy_validation' in metrics and 'accuracy_test' not in metrics


def test_both_kinds_of_validation_are_an_error():
  given = from_digits(validation=ARRAYS['test'])
  with pytest.raises(ValueError, match='a validation split already'):
    datasets(given, validation=0.1)
  with pytest.raises(ValueError, match='no split of this name'):
    datasets(from_digits(), validation='held')


def floats(low, high):
  return np.linspace(low, high, IMAGES.size, dtype=np.float32).reshape(
    IMAGES.shape
  )


@pytest.mark.parametrize(
  'args, options, message',
  [
    ((IMAGES, LABELS[:5]), {}, r'6 rows \(image\), 5 rows \(label\)'),
    ((IMAGES[:0], LABELS[:0]), {}, '0 rows'),
    ((IMAGES, LABELS), {'test': IMAGES}, 'test has no labels'),
    (
      ({'image': IMAGES, 'label': LABELS},),
      {'test': {'image': IMAGES}},
      'test has no labels',
    ),
    ((IMAGES, LABELS), {'test': (IMAGES, LABELS + 1)}, 'test: label: 2 of 6'),
    ((IMAGES, LABELS + 1), {}, 'Give class_names or num_classes'),
    ((IMAGES, LABELS), {'num_classes': 2}, 'train: label: 2 of 6 .* 0 and 1'),
    ((IMAGES, LABELS - 1), {'num_classes': 3}, 'train: label: 2 of 6'),
    ((IMAGES, LABELS), {'class_names': 'cat'}, 'is one text'),
    ((IMAGES, LABELS), {'class_names': ['a', 'b', 'a']}, '2 of them different'),
    (
      (IMAGES, LABELS),
      {'class_names': ['a', 'b'], 'num_classes': 3},
      'has 2 names',
    ),
    ((IMAGES, LABELS[:, None]), {}, r'use labels\[:, 0\]'),
    ((IMAGES, LABELS > 1), {}, 'dtype bool'),
    ((IMAGES, list('abcabc')), {}, 'train: label.* dtype <U1'),
    ((IMAGES, LABELS + 2**40), {'num_classes': 3}, 'does not fit into int32'),
    (
      (IMAGES, LABELS),
      {'test': (IMAGES, LABELS * 0.5)},
      r'rows of float32 \[\], .* rows of integer \[\]',
    ),
    ((IMAGES.transpose(0, 3, 1, 2), LABELS), {}, r'transpose\(0, 2, 3, 1\)'),
    ((IMAGES[..., 0], LABELS), {}, r'images\[..., None\]'),
    ((IMAGES.astype(int), LABELS), {}, 'dtype int64. Use uint8'),
    ((floats(0, 1), LABELS), {}, 'values from 0 to 1. State the range'),
    (
      (floats(0, 255), LABELS),
      {'value_range': (0, 1)},
      r'value_range=\(0, 1\), but train: image has .* 0 to 255',
    ),
    ((floats(0, 1), LABELS), {'value_range': (0, 2)}, 'one of'),
    ((floats(0, np.nan), LABELS), {'value_range': (0, 1)}, 'finite'),
    ((IMAGES, LABELS), {'value_range': (0, 1)}, 'always in 0…255'),
    (
      (IMAGES, LABELS),
      {'test': (floats(0, 1), LABELS)},
      'train uint8, test float32',
    ),
    (({'label': LABELS},), {}, "needs 'image'"),
    (({'image': IMAGES, 'mask': LABELS},), {}, "must not have 'mask'"),
    (
      (IMAGES, LABELS),
      {'test': (IMAGES, LABELS, LABELS)},
      'test is a tuple of 3',
    ),
  ],
)
def test_bad_arrays_are_refused_by_name(args, options, message):
  with pytest.raises(ValueError, match=message):
    vit_jax.data.from_arrays(*args, **options)


@pytest.mark.parametrize(
  'arrays, message',
  [
    ({'image': IMAGES, 'y': LABELS}, 'lacks label. It must not have y'),
    (
      {'image': IMAGES, 'label': LABELS, 'test_image': IMAGES},
      'the arrays image, label, test_image. It lacks test_label',
    ),
    ({'image': IMAGES, 'label': LABELS + 1}, 'Give class_names'),
    ({'image': IMAGES, 'label': LABELS.astype(object)}, 'cannot be read'),
  ],
)
def test_a_bad_npz_file_is_refused(arrays, message, tmp_path):
  config = make_config(dataset=str(tmp_path / 'a.npz'))
  np.savez(config.dataset, **arrays)
  with pytest.raises(ValueError, match=f'config.dataset=.*a.npz.*{message}'):
    setup.get_datasets(config)


def test_data_of_another_kind_are_refused(tmp_path):
  with pytest.raises(ValueError, match='data is a tuple.*from_arrays.*from_ba'):
    train.train_and_evaluate(make_config(), str(tmp_path), data=ARRAYS['train'])
  with pytest.raises(ValueError, match='Give them again with data=…'):
    setup.get_datasets(make_config(dataset='given arrays'))


def test_classification_refuses_labels_that_are_no_classes(tmp_path):
  images, labels = ARRAYS['train']
  with pytest.raises(ValueError, match='the data have no classes'):
    train.train_and_evaluate(
      make_config(),
      str(tmp_path),
      data=vit_jax.data.from_arrays(images, labels * 1.0),
    )
  with pytest.raises(ValueError, match=r'dtype float32 and the shape \[32\]'):
    train.train_and_evaluate(
      make_config(),
      str(tmp_path),
      data=vit_jax.data.from_arrays(images, labels * 1.0, num_classes=10),
    )
