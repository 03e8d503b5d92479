"""Datasets without labels: `config.labels=none`."""

import io
import tarfile

import numpy as np
from PIL import Image
import pytest

from tests import digits_run
from vit_jax import data as vit_jax_data
from vit_jax.parallel import sharding
from vit_jax.run import setup

RNG = np.random.default_rng(0)


def write(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(RNG.integers(0, 255, (8, 8, 3), np.uint8)).save(path)


def load(dataset, given=None, **settings):
  config = digits_run.make_config(
    dataset=str(dataset), labels='none', batch=8, batch_eval=8
  )
  config.update(settings)
  return setup.load_data(config, sharding.make_mesh(), given)


def test_a_folder_of_any_depth(tmp_path, capsys):
  for i in range(20):
    write(tmp_path / ('a', 'a/b/c', '.')[i % 3] / f'{i}.png')
  write(tmp_path / '.hidden/x.png')
  (tmp_path / 'labels.csv').write_text('file,label\n0.png,cat\n')
  data = load(tmp_path)
  assert sum(data.num_examples.values()) == 20 and data.num_test >= 1
  assert data.class_names == () and data.labels('train') is None
  batch = next(data.train())
  assert set(batch) == {'image'} and batch['image'].shape == (8, 8, 8, 3)
  assert sum(batch['mask'].sum() for batch in data.test()) == data.num_test
  assert 'hidden folders' in capsys.readouterr().err


def test_sub_folders_can_be_splits(tmp_path, capsys):
  for name, count in (('Train/x', 5), ('val', 3), ('test', 2), ('more', 1)):
    for i in range(count):
      write(tmp_path / name / f'{i}.png')
  data = load(tmp_path)
  assert data.num_examples == {'train': 5, 'validation': 3, 'test': 2}
  assert 'images outside of the splits: 1 (more/0.png)' in (
    capsys.readouterr().err
  )
  data = load(tmp_path, train_split='more', validation=0)
  assert data.num_examples == {'train': 1, 'test': 2}
  with pytest.raises(ValueError, match="train_split='mor': .* no such"):
    load(tmp_path, train_split='mor')
  (tmp_path / 'training').mkdir()
  with pytest.raises(ValueError, match='can both be the train split'):
    load(tmp_path)


def test_other_datasets_lose_their_labels(tmp_path):
  digits = load('digits')
  assert digits.class_names == () and set(next(digits.train())) == {'image'}
  images = RNG.integers(0, 255, (9, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'x.npz', image=images, label=np.arange(9) % 3)
  for on in ('host', 'device'):
    data = load(tmp_path / 'x.npz', data_on=on)
    assert data.class_names == () and data.labels('train') is None
    assert set(data.sample(next(data.train()))) == {'image'}
  given = vit_jax_data.from_arrays(images, np.arange(9))
  assert set(next(load('digits', given).train())) == {'image'}


def test_images_of_tar_files_need_no_label(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  with tarfile.open(tmp_path / 'train-0.tar', 'w') as archive:
    for i in range(12):
      image = io.BytesIO()
      Image.new('RGB', (8, 8), (i, i, i)).save(image, 'png')
      member = tarfile.TarInfo(f'{i:04}.png')
      member.size = len(image.getvalue())
      archive.addfile(member, io.BytesIO(image.getvalue()))
  data = load(tmp_path / 'train-*.tar')
  assert sum(data.num_examples.values()) == 12 and data.class_names == ()
  assert set(next(data.train())) == {'image'}


def test_settings_of_tables_are_refused():
  with pytest.raises(ValueError, match="config.label_column='x' is not used"):
    load('digits', label_column='x')
