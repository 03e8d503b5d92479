import dataclasses
import types

import numpy as np
import pytest

from tests import digits_run
from tests.digits_run import arrays
from vit_jax.data import data_settings
from vit_jax.data import examples
from vit_jax.data import input_pipeline
from vit_jax.data.given import arrays as given_arrays
from vit_jax.data.in_memory import sampling
from vit_jax.run import messages
from vit_jax.run import setup

LABELS = np.repeat([0, 2, 3], [100, 7, 31])  # class 1 has no examples


def test_an_epoch_has_equally_many_examples_of_each_class():
  order = sampling.Balanced(LABELS, seed=3)
  assert (order.images_per_class, order.epoch_size) == (46, 138)
  epochs = order(np.arange(3 * 138)).reshape(3, 46, 3)
  assert len({tuple(epoch.ravel()) for epoch in epochs}) == 3
  for epoch in epochs:
    for block in LABELS[epoch]:
      assert sorted(block) == [0, 2, 3]
    times = np.bincount(epoch.ravel(), minlength=len(LABELS))
    assert set(times[:100]) == {0, 1} and times[:100].sum() == 46
    assert set(times[100:107]) == {6, 7} and set(times[107:]) == {1, 2}
  # The order within a block differs.
  assert len({tuple(block) for block in LABELS[epochs[0]]}) == 6


def test_the_order_depends_only_on_seed_and_position():
  order = sampling.Balanced(LABELS, seed=3)
  whole = order(np.arange(500))
  again = sampling.Balanced(LABELS, seed=3)
  np.testing.assert_array_equal(again(np.arange(400, 500)), whole[400:])
  shuffled = np.random.default_rng(0).permutation(500)
  np.testing.assert_array_equal(again(shuffled), whole[shuffled])
  assert (sampling.Balanced(LABELS, seed=4)(np.arange(500)) != whole).any()


def test_both_pipelines_make_the_batches_of_the_order(monkeypatch):
  """Resuming, and two processes, give the rows of the same global batches."""
  images, labels = arrays()['train']
  kept = np.concatenate([np.flatnonzero(labels != 4), [4]])  # one image of a 4
  data = given_arrays.from_arrays(images[kept], labels[kept])
  settings = data_settings.DataSettings(
    *('given', (8, 8)),
    batch=30,
    cropping=data_settings.Cropping(min_area=1, flip=False),
    sampling='balanced',
  )

  def first(count, first_step=0, **more):
    batches = input_pipeline.get_datasets(
      dataclasses.replace(settings), given=data, **more
    ).train(first_step)
    return [next(batches) for _ in range(count)]

  whole = first(4)
  for batch in whole:
    assert (np.bincount(batch['label']) == 3).all()
  expected = sampling.Balanced(labels[kept], 0)(np.arange(30 * 4))
  found = np.concatenate([batch['label'] for batch in whole])
  np.testing.assert_array_equal(found, labels[kept][expected])
  (resumed,) = first(1, first_step=3)
  np.testing.assert_array_equal(resumed['image'], whole[3]['image'])
  half = types.SimpleNamespace(
    group=0, num_groups=1, rows=lambda batch: np.arange(1, batch, 2)
  )
  (rows,) = first(1, share=half)
  np.testing.assert_array_equal(rows['image'], whole[0]['image'][1::2])

  from vit_jax.data.in_memory import numpy_pipeline

  monkeypatch.setattr(given_arrays.Arrays, 'pipeline', numpy_pipeline.PIPELINE)
  for batch, other in zip(first(4), whole, strict=True):
    np.testing.assert_array_equal(batch['image'], other['image'])


@pytest.mark.parametrize(
  'labels, message',
  [
    (None, 'needs the labels of all training examples'),
    (np.eye(3), r'needs one class for each image, .* \[3, 3\]'),
  ],
)
def test_data_without_class_numbers_are_rejected(labels, message):
  source = examples.Source(3, ('a', 'b', 'c'), labels=labels)
  settings = data_settings.DataSettings('x', (8, 8), sampling='balanced')
  with pytest.raises(ValueError, match=f"config.sampling='balanced' {message}"):
    sampling.arrange(source, settings)


def test_balanced_examples_can_be_repeated():
  config = digits_run.make_config(sampling='balanced', repeats=2)
  data = setup.get_datasets(config)
  order = data.sources['train'].order
  np.testing.assert_array_equal(
    order(np.arange(6)), np.repeat(order.order(np.arange(3)), 2)
  )
  (line,) = messages.describe_balance(config, data)
  assert line.endswith('1420 in total, each 2 times in a row')
