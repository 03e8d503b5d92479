"""Training data from batches of the caller: `vit_jax.data.from_batches`."""

import io
import itertools
import os

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests import digits_run
from tests.digits_run import assert_equal
from tests.digits_run import make_config
import vit_jax
from vit_jax import train
from vit_jax.data.in_memory import shuffle
from vit_jax.optim import run_length
from vit_jax.run import setup

ARRAYS = digits_run.arrays()
BATCH = 32


class Loader:
  """Iterates like a DataLoader: each pass starts again, and it has a length."""

  def __init__(self, batches):
    self.batches = batches

  def __len__(self):
    return len(self.batches)

  def __iter__(self):
    return iter(self.batches)


def raw(step, images=ARRAYS['train'][0], labels=ARRAYS['train'][1]):
  """Returns a batch of raw digits, in the order of `from_arrays`."""
  positions = np.arange(step * BATCH, (step + 1) * BATCH)
  index = shuffle.examples_at(positions, 0, len(images))
  return {'image': images[index], 'label': labels[index]}


def ready(step):
  """Returns a batch that is used as it is."""
  return as_ready(raw(step))


def as_ready(batch):
  image = np.repeat(batch['image'], 3, -1) / np.float32(127.5) - 1
  return {**batch, 'image': image}


def split_in(sizes, arrays=ARRAYS['test']):
  """Returns raw batches of the given sizes, which are repeated."""
  batches, start = [], 0
  for size in itertools.cycle(sizes):
    if start >= len(arrays[0]):
      return batches
    image, label = (x[start : start + size] for x in arrays)
    batches.append({'image': image, 'label': label})
    start += size


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0]).save(file, 'PNG')
  return file.getvalue()


def encoded(step):
  batch = raw(step)
  return {**batch, 'image': [png(image) for image in batch['image']]}


def as_tf_dataset(batches):
  spec = {
    'image': tf.TensorSpec([None, 8, 8, 1], tf.uint8),
    'label': tf.TensorSpec([None], tf.int64),
  }
  return tf.data.Dataset.from_generator(
    lambda: iter(batches), output_signature=spec
  )


def datasets(given, **settings):
  return setup.get_datasets(make_config(**settings), given=given)


def take(data, count, first_step=0):
  return list(itertools.islice(data.train(first_step), count))


def from_arrays():
  return vit_jax.data.from_arrays(*ARRAYS['train'], test=ARRAYS['test'])


def in_batches(train, test=None, **options):
  return vit_jax.data.from_batches(
    train, test=test, **{'num_classes': 10, **options}
  )


FIRST = [raw(step) for step in range(6)]
WAYS = {
  'a function of the step': lambda: raw,
  'a list': lambda: FIRST,
  'an iterator': lambda: map(raw, itertools.count()),
  'a function that returns an iterator': lambda: lambda: iter(FIRST),
  'a data loader': lambda: Loader(FIRST),
  'a tf.data.Dataset': lambda: as_tf_dataset(FIRST),
  'encoded images': lambda: encoded,
  'a list of images': lambda: (
    lambda step: {**raw(step), 'image': list(raw(step)['image'])}
  ),
}


@pytest.fixture(name='expected', scope='module')
def fixture_expected():
  """Returns (Datasets of the arrays, six training batches, test batches)."""
  data = datasets(from_arrays(), batch_eval=64)
  return data, take(data, 6), list(data.test())


@pytest.mark.parametrize('way', WAYS)
def test_prepared_batches_equal_those_of_arrays(way, expected):
  arrays, first, test = expected
  found = datasets(
    in_batches(WAYS[way](), split_in([50, 7]), prepare=True), batch_eval=64
  )
  assert found.spec() == arrays.spec()
  assert found.num_test == 377 and found.num_batches('test') == 6
  assert_equal(take(found, 6), first)
  for _ in range(2):
    assert_equal(list(found.test()), test)


def test_a_folder_of_the_same_images_gives_the_same_batches(tmp_path):
  arrays = {}
  for split, (images, labels) in ARRAYS.items():
    order = np.argsort(labels, kind='stable')[::9]
    arrays[split] = images[order], labels[order]
    for i, (image, label) in enumerate(zip(*arrays[split], strict=True)):
      path = tmp_path / split / str(label) / f'{i:04}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(png(image))
  given = vit_jax.data.from_arrays(*arrays['train'], test=arrays['test'])
  folder = setup.get_datasets(make_config(dataset=str(tmp_path)))
  batches = datasets(
    in_batches(
      lambda step: raw(step, *arrays['train']),
      split_in([10], arrays['test']),
      prepare=True,
    )
  )
  assert folder.class_names == batches.class_names
  for found in (folder, batches):
    assert_equal(take(found, 7), take(datasets(given), 7))
    assert_equal(list(found.test()), list(datasets(given).test()))


@pytest.mark.slow
@pytest.mark.parametrize(
  'way', ['a data loader', pytest.param('an iterator', marks=pytest.mark.slow)]
)
def test_prepared_batches_train_like_the_data_set(
  way, finished, tmp_path, capsys
):
  loader = Loader([raw(step) for step in range(8)])
  given = loader if way == 'a data loader' else iter(loader)
  state, metrics, _ = train.train_and_evaluate(
    make_config(),
    str(tmp_path),
    data=in_batches(given, split_in([50]), prepare=True),
  )
  assert_equal(state, finished[1])
  assert metrics['accuracy_test'] == finished[2]['accuracy_test']
  output = capsys.readouterr().err
  assert 'given batches: ' in output and 'warning: ' in output


# --- order and resuming ------------------------------------------------------


@pytest.mark.parametrize('way', list(WAYS)[:6])
@pytest.mark.parametrize('prepare', [True, False])
def test_where_a_resumed_run_continues(way, prepare, capsys):
  expected = take(datasets(in_batches(raw, prepare=prepare)), 9)
  data = datasets(in_batches(WAYS[way](), prepare=prepare))
  found = take(data, 2, first_step=7)
  output = capsys.readouterr().err
  if way == 'an iterator':  # whatever comes next
    assert 'this run continues with whatever comes next' in output
    np.testing.assert_array_equal(
      [x['label'] for x in found], [x['label'] for x in expected[:2]]
    )
    return
  if way == 'a function of the step':
    assert_equal(found, expected[7:])
  else:  # six batches, then again from the first one
    np.testing.assert_array_equal(
      [x['label'] for x in found], [x['label'] for x in expected[1:3]]
    )
  is_exact = way in ('a function of the step', 'a list')
  assert ('has skipped 7 batches' in output) == (not is_exact)


def test_the_first_batch_of_an_iterator_is_used_once():
  """The iterator is read before the run starts, to find shapes."""
  iterator = map(ready, itertools.count())
  given = in_batches(iterator)
  for _ in range(2):  # the first run ends before step 1
    data = datasets(given)
  assert_equal(take(data, 2), [ready(0), ready(1)])
  assert_equal(take(datasets(given), 1), [ready(2)])


def test_an_iterator_that_ends_early_keeps_the_last_step(tmp_path, capsys):
  def run(given):
    return train.train_and_evaluate(
      make_config(checkpoint_every=0, eval_every=0),
      str(tmp_path / 'run'),
      data=in_batches(given, lambda: map(ready, range(2))),
    )

  with pytest.raises(ValueError, match='step 6: train: the .* has ended'):
    run(map(ready, range(5)))
  assert os.listdir(tmp_path / 'run/checkpoints') == ['5']
  assert 'The last checkpoint is from step 5' in capsys.readouterr().err
  state = run(map(ready, range(5, 99))).state
  assert 'continues with whatever comes next' in capsys.readouterr().err
  expected = train.train_and_evaluate(
    make_config(), str(tmp_path / 'whole'), data=in_batches(ready)
  )
  assert_equal(state, expected.state)


def test_an_exception_of_an_iterator_arrives_as_it_is(tmp_path):
  def broken():
    yield from map(raw, range(2))
    raise KeyError('my file')

  for prepare in (False, True):
    data = datasets(in_batches(broken, prepare=prepare))
    batches = data.train()
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(KeyError, match='my file'):
      next(batches)


# --- errors ------------------------------------------------------------------


def changed(step, **changes):
  """Returns `ready`, in which batch `step` has other arrays."""
  return lambda k: {**ready(k), **(changes if k == step else {})}


LARGE = np.zeros((BATCH, 9, 8, 3), np.float32)


@pytest.mark.parametrize(
  'given, message',
  [
    (
      changed(2, image=LARGE),
      r'step 3: image has rows of float32 \[9, 8, 3\], .* \[8, 8, 3\]',
    ),
    (
      changed(2, label=np.zeros(BATCH, np.float32)),
      r'step 3: label has rows of float32 \[\], .* int32 \[\]',
    ),
    (
      changed(2, more=np.zeros(BATCH)),
      'step 3 has the arrays image, label, more, but',
    ),
    (
      changed(2, label=np.arange(BATCH)),
      'step 3: label: 22 of 32 labels are not between 0 and 9',
    ),
    (changed(2, label=np.zeros(7)), r'32 rows \(image\), 7 rows \(label\)'),
    (changed(2, label=np.float32(7)), r'None rows \(label\)'),
    (changed(2, label=list('ab')), 'step 3: label.* dtype <U1'),
    (
      lambda step: raw(step) if step < 2 else list(raw(step).values()),
      'step 3 is a list of 2 elements, not a dict of arrays',
    ),
    (
      lambda step: {k: x[: 32 - step] for k, x in ready(step).items()},
      'step 2 has 31 examples, but config.batch=32. .*drop_last',
    ),
  ],
)
def test_batches_that_change_are_refused_at_their_step(given, message):
  batches = datasets(in_batches(given)).train()
  next(batches)
  with pytest.raises(ValueError, match=message):
    list(itertools.islice(batches, 2))


@pytest.mark.parametrize(
  'train, options, message',
  [
    ([], {}, 'the list of batches is empty'),
    (iter([]), {}, 'gives no batches. An iterator that was used'),
    (Loader([]), {}, 'gives no batches. Check what it iterates over'),
    ('cifar10', {}, 'from_arrays'),
    (ARRAYS['train'][0], {}, 'from_arrays'),
    (ready(0), {}, 'from_arrays'),
    (7, {}, 'train is a builtins int. Give an object that can be iterated'),
    (lambda a, b: None, {}, 'a function of the step'),
    ([ARRAYS['train']], {}, 'first training batch is a tuple of 2 elements'),
    ([{}], {}, 'is a dict, not a dict of arrays'),
    (lambda step: iter(FIRST), {}, 'is a list_iterator, not a dict'),
    (ready, {'test': iter(FIRST)}, r'test is .* read only once.* list\(test\)'),
    (ready, {'test': as_tf_dataset(FIRST).repeat()}, 'infinite'),
    (ready, {'test': ARRAYS['test'][0]}, 'test is a numpy ndarray'),
    (ready, {'test': []}, 'test gives no batches'),
    (ready, {'test': [{'mask': np.ones(3)}]}, "has the array 'mask'"),
    (
      ready,
      {'test': [ready(0), raw(1)]},
      r'test batch 2: image has rows of uint8 \[8, 8, 1\]',
    ),
    (ready, {'num_train': 0}, 'num_train=0'),
    (ready, {'prepare': True}, 'dtype float32 .*With prepare=True'),
    (lambda step: {'x': np.ones(BATCH)}, {'prepare': True}, "has no 'image'"),
    (
      lambda step: {'image': [np.zeros((8, 8), np.uint8)] * BATCH},
      {'prepare': True},
      r'shape \[8, 8\]',
    ),
    (changed(0, label=np.full(BATCH, 2**40)), {}, 'does not fit into int32'),
  ],
)
def test_unusable_batches_are_refused_before_step_1(train, options, message):
  with pytest.raises(ValueError, match=message):
    datasets(in_batches(train, **options))


def test_a_pass_over_test_batches_must_repeat():
  once = iter(split_in([50]))
  data = datasets(in_batches(raw, lambda: once, prepare=True))
  with pytest.raises(ValueError, match='had 377 examples at first, but now 0'):
    list(data.test())
  times = iter([1, 2])
  data = datasets(
    in_batches(raw, lambda: split_in([50]) * next(times), prepare=True)
  )
  with pytest.raises(ValueError, match='at first, but now more'):
    list(data.test())


def test_settings_that_given_batches_cannot_use():
  with pytest.raises(ValueError, match='config.validation=0.1 cannot hold out'):
    datasets(in_batches(ready), validation=0.1)
  config = make_config(total_steps=0, total_epochs=2.0)
  with pytest.raises(ValueError, match='total_epochs=2.0 needs the number'):
    run_length.resolve(config, datasets(in_batches(ready)).num_train)
  for given, options, steps in (
    (FIRST, {}, 12),
    (Loader(FIRST), {}, 12),
    (ready, {'num_train': 320}, 20),
  ):
    data = datasets(in_batches(given, **options))
    assert run_length.resolve(config, data.num_train).total_steps == steps


@pytest.mark.parametrize(
  'image, message',
  [
    (lambda x: (x + 1) * 127.5, 'image / 127.5 - 1'),
    (lambda x: (x + 1) / 2, 'seem to be in 0…1'),
    (lambda x: x.transpose(0, 3, 1, 2), r'transpose\(0, 2, 3, 1\)|8 x 8'),
    (lambda x: np.tile(x, (1, 2, 1, 1)), '8 x 8 pixels'),
    (lambda x: ((x + 1) * 127.5).astype(np.uint8), 'uint8'),
    (lambda x: x[:, 0], 'batch axis'),
    (lambda x: x * np.float32(np.nan), 'finite'),
  ],
)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_images_of_a_wrong_kind_are_refused_before_step_1(
  image, message, split, tmp_path
):
  wrong = {**ready(0), 'image': image(ready(0)['image'])}
  batches = {'train': ready, 'test': [ready(0)], split: [wrong]}
  with pytest.raises(ValueError, match=message) as error:
    train.train_and_evaluate(
      make_config(), str(tmp_path), data=in_batches(**batches)
    )
  assert f'the batches of the split {split} cannot' in str(error.value)


@pytest.mark.parametrize(
  'label, message',
  [
    (np.ones(BATCH), r'dtype float32 and the shape \[32\]'),
    (np.ones((BATCH, 10)), r'shape \[32, 10\].*sum to 1'),
    (np.ones((BATCH, 10), int), r'dtype int32 and the shape \[32, 10\]'),
    (np.full((BATCH, 9), 1 / 9), r'probabilities \[B, 10\]'),
    (np.full((BATCH, 10), 0.1), None),
    (None, "no 'label'"),
  ],
)
def test_labels_of_a_classifier(label, message):
  batch = {**ready(0), 'label': label}
  if label is None:
    del batch['label']
  data = datasets(in_batches([batch]))
  arguments = make_config(), setup.check(make_config()), data
  if message is None:
    next(setup.open_batches(setup.make_parts(*arguments), 0))
    return
  with pytest.raises(ValueError, match=message):
    setup.make_parts(*arguments)
