"""Paths with characters that are special for libraries or shells."""

import os
from unittest import mock

import jax
import numpy as np
from PIL import Image
import pytest

from tests.run import test_checkpointing
from vit_jax import base_config
from vit_jax.checkpoint import metadata
from vit_jax.checkpoint import weights_file
from vit_jax.checkpoint.pretrained import search
from vit_jax.export import formats
from vit_jax.inference import classify
from vit_jax.parallel import compilation_cache
from vit_jax.run import checkpointing
from vit_jax.run import setup

ODD = ['[lr=0.1]', 'a*b?', '[!x]', '{a,b} $HOME %41 #1', '~']


@pytest.mark.parametrize('name', ODD)
def test_checkpoints_in_odd_folders(tmp_path, name):
  folder = tmp_path / name / 'checkpoints'
  state = test_checkpointing.make_state(1)
  checkpoints = checkpointing.Checkpoints(folder, keep=2)
  checkpoints.save(12, state)
  checkpoints.close()
  restored = checkpointing.Checkpoints(folder, keep=2).restore(
    12, test_checkpointing.make_init_fn()
  )
  test_checkpointing.equal(restored, state)
  test_checkpointing.equal(
    weights_file.load(tmp_path / name), jax.device_get(state.params)
  )


@pytest.mark.parametrize('name', ['a**b', 'a\\b', 'gs:'])
def test_paths_that_libraries_misread_are_rejected(tmp_path, name):
  folder = tmp_path / name / 'x'
  with pytest.raises(ValueError, match='its path contains .*Rename'):
    checkpointing.Checkpoints(folder, keep=2)
  assert not folder.exists()
  (folder / 'checkpoints/3').mkdir(parents=True)
  with pytest.raises(ValueError, match='its path contains .*Rename'):
    weights_file.load(folder / 'checkpoints/3')


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
  data = setup.get_datasets(config)
  assert set(data.class_names) == {'a', name} and data.num_train == 4
  assert next(data.train())['image'][..., 2].mean() > 0.5
  assert len(classify.find_images([str(tmp_path / name)])) == 6

  for suffix in ('.npz', '.safetensors'):
    path = str(tmp_path / name / f'{name}{suffix}')
    formats.check_free(path)
    weights_file.save(path, {'head': {'bias': np.ones(3, np.float32)}})
    found = search.find(f'{name}{suffix}', str(tmp_path / name))
    loaded = weights_file.load(found, num_heads=1)
    np.testing.assert_array_equal(loaded['head']['bias'], 1)


def test_the_home_folder_is_expanded_everywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  weights_file.save(tmp_path / 'w.npz', {'a': np.ones(3, np.float32)})
  Image.new('RGB', (4, 4)).save(tmp_path / 'image.png')
  (tmp_path / 'names.txt').write_text('cat\ndog\n')
  np.testing.assert_array_equal(weights_file.load('~/w.npz')['a'], 1)
  assert (
    search.find('~/w.npz')
    == search.find('w.npz', '~')
    == str(tmp_path / 'w.npz')
  )
  bucket = tmp_path / 'vit_models/augreg'
  bucket.mkdir(parents=True)
  os.rename(tmp_path / 'w.npz', bucket / 'x.npz')
  assert search.find('augreg/x', sources=['~']) == str(bucket / 'x.npz')
  assert tuple(metadata.class_names_in('~/names.txt')) == ('cat', 'dog')
  assert list(classify.find_images(['~/image.png', '~'])) == [
    str(tmp_path / 'image.png')
  ]
  config = mock.Mock(jax_compilation_cache_dir=None)
  monkeypatch.setattr(compilation_cache, 'jax', mock.Mock(config=config))
  compilation_cache.use('~/compiled')
  config.update.assert_called_once_with(
    'jax_compilation_cache_dir', str(tmp_path / 'compiled')
  )
