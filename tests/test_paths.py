"""Paths with characters that libraries or shells give a meaning."""

import os
from unittest import mock

import jax
import numpy as np
from PIL import Image
import pytest

from tests import test_train_state
from vit_jax import base_config
from vit_jax import checkpoint
from vit_jax import classify
from vit_jax import description
from vit_jax import export
from vit_jax import input_pipeline
from vit_jax import plan
from vit_jax import train_state
from vit_jax import weights

ODD = ['[lr=0.1]', 'a*b?', '[!x]', '{a,b} $HOME %41 #1', '~']


@pytest.mark.parametrize('name', ODD)
def test_checkpoints_in_odd_folders(tmp_path, name):
  folder = tmp_path / name / 'checkpoints'
  state = test_train_state.make_state(1)
  checkpoints = train_state.Checkpoints(folder, keep=2)
  checkpoints.save(12, state)
  checkpoints.close()
  restored = train_state.Checkpoints(folder, keep=2).restore(
      12, test_train_state.make_init_fn())
  test_train_state.equal(restored, state)
  test_train_state.equal(checkpoint.load(tmp_path / name),
                         jax.device_get(state.params))


@pytest.mark.parametrize('name', ['a**b', 'a\\b', 'gs:'])
def test_names_that_would_be_misread_are_refused(tmp_path, name):
  folder = tmp_path / name / 'x'
  with pytest.raises(ValueError, match='checkpoints cannot be in a folder'):
    train_state.Checkpoints(folder, keep=2)
  assert not folder.exists()
  (folder / 'checkpoints/3').mkdir(parents=True)
  with pytest.raises(ValueError, match='checkpoints cannot be in a folder'):
    checkpoint.load(folder / 'checkpoints/3')


@pytest.mark.parametrize('name', ODD)
def test_data_and_weights_in_odd_folders(tmp_path, name):
  for label in ('a', name):
    folder = tmp_path / name / label
    folder.mkdir(parents=True)
    for i in range(3):
      Image.new('RGB', (4, 4), (i, 0, 200)).save(folder / f'{name}{i}.png')
  config = base_config.for_dataset(str(tmp_path / name))
  config.update(dict(batch=4, batch_eval=4))
  config.pp.crop = 4
  data = input_pipeline.get_datasets(config, tmp_path)
  assert set(data.class_names) == {'a', name} and data.num_train == 4
  assert next(data.train())['image'][..., 2].mean() > 0.5
  assert len(classify.find_images([str(tmp_path / name)])) == 6

  for suffix in ('.npz', '.safetensors'):
    path = str(tmp_path / name / f'{name}{suffix}')
    export.check_free(path)
    checkpoint.save(path, {'head': {'bias': np.ones(3, np.float32)}})
    found = weights.find(f'{name}{suffix}', str(tmp_path / name))
    loaded = checkpoint.load(found, num_heads=1)
    np.testing.assert_array_equal(loaded['head']['bias'], 1)


def test_the_home_folder_is_expanded_everywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  checkpoint.save(tmp_path / 'w.npz', {'a': np.ones(3, np.float32)})
  Image.new('RGB', (4, 4)).save(tmp_path / 'image.png')
  (tmp_path / 'names.txt').write_text('cat\ndog\n')
  np.testing.assert_array_equal(checkpoint.load('~/w.npz')['a'], 1)
  assert weights.find('~/w.npz') == weights.find('w.npz', '~') == str(
      tmp_path / 'w.npz')
  bucket = tmp_path / 'vit_models/augreg'
  bucket.mkdir(parents=True)
  os.rename(tmp_path / 'w.npz', bucket / 'x.npz')
  assert weights.find('augreg/x', sources=['~']) == str(bucket / 'x.npz')
  assert tuple(description.read_class_names('~/names.txt')) == ('cat', 'dog')
  assert list(classify.find_images(['~/image.png', '~'])) == [
      str(tmp_path / 'image.png')]
  config = mock.Mock(jax_compilation_cache_dir=None)
  monkeypatch.setattr(plan, 'jax', mock.Mock(config=config))
  plan.use_compilation_cache('~/compiled')
  config.update.assert_called_once_with(
      'jax_compilation_cache_dir', str(tmp_path / 'compiled'))
