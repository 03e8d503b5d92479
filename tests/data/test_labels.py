import numpy as np
import pytest
import tensorflow as tf

from tests import digits_run
from vit_jax import train
from vit_jax.data import examples
from vit_jax.data import sources
from vit_jax.run import setup


@pytest.fixture(name='config')
def fixture_config():
  return digits_run.make_config(batch=8, batch_eval=8, accum_steps=1)


def make_source(labels, streamed):
  """Returns a source of 20 images in three classes, with the given labels."""
  images = np.zeros((20, 8, 8, 1), np.uint8)
  read = examples.read_from(images, labels)
  if not streamed:
    return examples.Source(20, ('a', 'b', 'c'), read=read)
  return examples.Source(
    20,
    ('a', 'b', 'c'),
    stream=lambda seed, size: tf.data.Dataset.range(20).map(read),
  )


@pytest.mark.parametrize('streamed', [False, True])
@pytest.mark.parametrize('label', [-1, 3])
def test_a_label_without_a_class_is_rejected(
  config, monkeypatch, label, streamed
):
  labels = np.arange(20) % 3
  right = make_source(labels, streamed)
  labels[5] = label
  wrong = make_source(labels, streamed)
  message = (
    f'config.dataset: 1 of 8 labels .* 0 and 2, .* {label}. .* 3 classes'
  )

  monkeypatch.setattr(
    sources, 'get_sources', lambda *_: {'train': right, 'test': wrong}
  )
  data = setup.get_datasets(config)
  batch = next(data.train())
  assert set(batch) == {'image', 'label'}
  assert set(batch['label']) <= {0, 1, 2}
  with pytest.raises(ValueError, match=message):
    list(data.test())

  monkeypatch.setattr(
    sources, 'get_sources', lambda *_: {'train': wrong, 'test': right}
  )
  data = setup.get_datasets(config)
  assert [set(batch) for batch in data.test()] == 3 * [
    {'image', 'label', 'mask'}
  ]
  with pytest.raises(ValueError, match=message) as error:
    for _ in zip(range(5), data.train(), strict=False):
      pass
  assert 'in user code' not in str(error.value)


def test_a_run_ends_at_a_label_without_a_class(config, monkeypatch, tmp_path):
  source = make_source(np.full(20, 7), streamed=True)
  monkeypatch.setattr(
    sources, 'get_sources', lambda *_: {'train': source, 'test': source}
  )
  with pytest.raises(
    ValueError,
    match='config.dataset: 8 of 8 labels .* 0 and 2, .* 7. .* 3 classes',
  ):
    train.train_and_evaluate(config, str(tmp_path))
