"""Features in files: interruptions, damage, and other weights."""

import types

import jax
import numpy as np
import pytest

from vit_jax.evaluators import features
from vit_jax.inference import feature_files
from vit_jax.parallel import sharding

IMAGES = np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1)
LABELS = np.arange(20) % 3


class Data:
  """20 images in batches. Reading them may fail."""

  num_examples = types.MappingProxyType({'train': 20})

  def __init__(self, fails_at=None, batch=8, num=20):
    self._fails_at, self._batch, self._num = fails_at, batch, num

  def num_batches(self, split):
    return -(-20 // self._batch)

  def evaluate(self, split):
    for first in range(0, self._num, self._batch):
      if self._fails_at == first:
        raise KeyboardInterrupt
      rows = np.arange(first, first + self._batch)
      mask = (rows < self._num).astype(np.float32)
      rows = rows.clip(max=19)
      yield {'image': IMAGES[rows], 'label': LABELS[rows], 'mask': mask}


def compute(folder, data, factor=2.0):
  """Returns (arrays, number of encoded images)."""
  mesh, count = sharding.make_mesh(jax.devices()[:1]), 0
  encode_fn = features.make_encode_fn(
    lambda params, images: params * images[:, 0, 0], mesh
  )

  def encode(params, batch):
    nonlocal count
    count += int(batch['mask'].sum())
    return encode_fn(params, batch)

  return (
    features.compute(
      str(folder), 'train', data, encode, np.float32(factor), mesh
    ),
    count,
  )


def assert_right(arrays, factor=2.0):
  np.testing.assert_array_equal(arrays['feature'], factor * IMAGES[:, 0, 0])
  np.testing.assert_array_equal(arrays['label'], LABELS)


def test_an_interrupted_computation_continues(tmp_path, monkeypatch):
  feature_files.use_folder(str(tmp_path), {'weights': 1}, ['train'])
  with pytest.raises(KeyboardInterrupt):
    compute(tmp_path, Data(fails_at=16))
  done = len(feature_files.read(str(tmp_path), 'train')['feature'])
  assert done == 8  # of 16: the second batch was being computed
  monkeypatch.setattr(feature_files, '_SECONDS', -1)  # a file for each batch
  arrays, count = compute(tmp_path, Data(batch=5))  # of another size
  assert_right(arrays)
  assert count == 15  # 5 images of the first 8 are not computed again
  assert len(list(tmp_path.glob('train-*.npz'))) == 4
  arrays, count = compute(tmp_path, Data())
  assert_right(arrays)
  assert count == 0


def test_damaged_and_missing_files_are_computed_again(tmp_path, monkeypatch):
  monkeypatch.setattr(feature_files, '_SECONDS', -1)
  feature_files.use_folder(str(tmp_path), {}, ['train'])
  compute(tmp_path, Data())
  path = tmp_path / 'train-000000008.npz'
  content = bytearray(path.read_bytes())
  content[200] ^= 1
  path.write_bytes(content)
  arrays, count = compute(tmp_path, Data())
  assert_right(arrays)
  assert count == 12
  path.unlink()
  arrays, count = compute(tmp_path, Data())
  assert_right(arrays)
  assert count == 12


def test_features_of_other_weights_are_removed(tmp_path, capfd):
  folder, key = str(tmp_path), {'the weights': 1, 'the model': 2}
  feature_files.use_folder(folder, key, ['train'])
  compute(tmp_path, Data())
  assert feature_files.matches(folder, {'the model': 2})
  feature_files.use_folder(folder, key, ['train'])
  assert capfd.readouterr().err == ''
  assert_right(feature_files.read(folder, 'train'))
  feature_files.use_folder(folder, {**key, 'the weights': 3}, ['train'])
  assert 'changed: the weights\n' in capfd.readouterr().err
  assert not feature_files.matches(folder, key)
  arrays, _ = compute(tmp_path, Data(), factor=3.0)
  assert_right(arrays, 3.0)


def test_features_that_are_wrong_are_refused(tmp_path):
  feature_files.use_folder(str(tmp_path), {}, ['train'])
  with pytest.raises(ValueError, match='8 of 8 images of the train split'):
    compute(tmp_path, Data(), factor=np.nan)
  assert feature_files.read(str(tmp_path), 'train') == {}
  with pytest.raises(ValueError, match='has 10 images, .* lists 20'):
    compute(tmp_path, Data(num=10))


def test_a_replaced_file_changes_the_description(tmp_path):
  (tmp_path / 'photos/run').mkdir(parents=True)
  (tmp_path / 'photos/1.jpg').write_bytes(b'1')
  arguments = str(tmp_path / 'photos'), str(tmp_path / 'photos/run')
  before = features.describe_files(*arguments)
  (tmp_path / 'photos/run/log.txt').write_text('of the run itself')
  assert features.describe_files(*arguments) == before
  (tmp_path / 'photos/1.jpg').write_bytes(b'two')
  assert features.describe_files(*arguments) != before
  assert features.describe_files('digits', arguments[1]) == []
