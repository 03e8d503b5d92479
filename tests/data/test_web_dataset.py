"""Tar files with pairs of an image and a label."""

import io
import itertools
import json
import os
import tarfile

import numpy as np
from PIL import Image
import pytest

from tests import digits_run
from vit_jax.data.image_files import image_kinds
from vit_jax.data.streams import shard_index
from vit_jax.data.streams import web_dataset
from vit_jax.parallel import sharding
from vit_jax.run import setup


def write(path, numbers, suffix='cls', label=lambda i: str(i % 2)):
  """Writes a tar file; the color of an image is its number."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w') as archive:
    for i in numbers:
      image = io.BytesIO()
      Image.new('RGB', (4, 4), (i, i, i)).save(image, 'png')
      for name, content in (
        (f'{i:04}.png', image.getvalue()),
        (f'{i:04}.{suffix}', label(i).encode()),
      ):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


@pytest.fixture(name='folder')
def fixture_folder(tmp_path, monkeypatch):
  """Returns a folder with 40 training, 10 test images, and its own cache."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  folder = tmp_path / 'shards'
  for i in range(4):
    write(folder / f'train-{i:03}.tar', range(10 * i, 10 * i + 10))
  write(folder / 'test-000.tar', range(100, 110))
  return folder


def load(dataset, share=None, **settings):
  config = digits_run.make_config(
    dataset=str(dataset), batch=10, batch_eval=4, seed=3, **settings
  )
  config.pp.min_area = 1.0
  return setup.get_datasets(config, share=share)


def numbers(batch):
  """Returns the number of each image that is not padding."""
  mask = batch.get('mask', np.ones(len(batch['label']))) > 0
  values = np.round((batch['image'][mask, 0, 0, 0] + 1) * 127.5).astype(int)
  np.testing.assert_array_equal(values % 2, batch['label'][mask])
  return values.tolist()


def test_each_epoch_has_all_examples_and_resuming_is_exact(folder):
  data = load(folder)
  assert data.class_names == ('0', '1')
  assert data.num_examples == {'train': 40, 'test': 10}
  assert sorted(sum(map(numbers, data.test()), [])) == list(range(100, 110))
  epochs = [numbers(b) for b in itertools.islice(data.train(), 12)]
  for i in range(3):
    assert sorted(sum(epochs[4 * i : 4 * i + 4], [])) == list(range(40))
  assert epochs[:4] != epochs[4:8] != epochs[8:]
  resumed = [numbers(b) for b in itertools.islice(data.train(5), 7)]
  assert resumed == epochs[5:]
  other = load(folder, shuffle_buffer=7)
  assert [numbers(b) for b in itertools.islice(other.train(), 4)] != epochs[:4]


def test_processes_share_the_examples(folder):
  seen = []
  for i in range(2):
    share = sharding.Share((i,), 2, i, 2)
    data = load(folder, share)
    seen.append(
      sum((numbers(b) for b in itertools.islice(data.train(), 4)), [])
    )
    assert data.num_examples['train'] == 40
  assert len(seen[0]) == len(seen[1]) == 20
  assert sorted(seen[0] + seen[1]) == list(range(40))


def test_held_out_examples(folder):
  (folder / 'test-000.tar').unlink()
  data = load(folder, validation=8)
  counts = data.num_examples
  assert counts['validation'] == 8 and sum(counts.values()) == 40
  assert counts['test'] >= 2
  held = [
    sorted(sum(map(numbers, data.evaluate(s)), []))
    for s in counts
    if s != 'train'
  ]
  seen = sum(
    (numbers(b) for b in itertools.islice(data.train(), counts['train'] // 10)),
    [],
  )
  assert not set(seen) & set(sum(held, []))


def test_patterns_and_single_files(folder):
  pattern = f'{folder}/train-{{000..002}}.tar'
  assert len(web_dataset.find_shards(pattern)) == 3
  assert len(web_dataset.find_shards(f'{folder}/{{train,test}}-*.tar')) == 5
  assert web_dataset.find_shards(f'{folder}/train-000.tar')
  assert not web_dataset.find_shards('cifar10')
  with pytest.raises(ValueError, match='train-004.tar'):
    web_dataset.find_shards(f'{folder}/train-{{000..009}}.tar')
  assert load(pattern).num_train < 30


@pytest.mark.parametrize(
  'suffix, label, names',
  [
    ('json', lambda i: json.dumps({'label': 'ab'[i % 2], 'n': i}), ('a', 'b')),
    ('txt', lambda i: 'xy'[i % 2], ('x', 'y')),
  ],
)
def test_labels_in_other_files(folder, suffix, label, names):
  write(folder / 'other/part.tar', range(20), suffix, label)
  data = load(folder / 'other/part.tar')
  assert data.class_names == names
  assert sum(map(numbers, data.test()), [])


def test_the_list_is_made_once(folder, monkeypatch):
  shards = web_dataset.find_shards(str(folder))
  first = shard_index.load(shards, str(folder))
  write(folder / 'train-002.tar', range(5))
  listed = []
  original = shard_index.list_examples
  monkeypatch.setattr(
    shard_index,
    'list_examples',
    lambda path: listed.append(path) or original(path),
  )
  second = shard_index.load(shards, str(folder))
  changed = str(folder / 'train-002.tar')
  assert listed == [changed] and len(second[changed]) == 5
  assert {k: v for k, v in first.items() if k != changed} == {
    k: v for k, v in second.items() if k != changed
  }


def test_files_of_one_name_in_two_folders_keep_their_lists(tmp_path):
  for part, label in (('train', lambda i: 'ab'[i % 2]), ('val', lambda i: 'b')):
    path = tmp_path / part / '0000.tar'
    write(path, range(4), label=label)
    os.utime(path, (1, 1))
  shards = web_dataset.find_shards(str(tmp_path))
  first = shard_index.load(shards, str(tmp_path))
  assert shard_index.load(shards, str(tmp_path)) == first
  train, val = first.values()
  assert [x.fields['cls'] for x in train] == ['a', 'b', 'a', 'b']
  assert [x.fields['cls'] for x in val] == ['b'] * 4


def test_heic_images_are_listed_when_they_can_be_read(folder, monkeypatch):
  path = folder / 'heic/x.tar'
  write(path, range(4))
  with tarfile.open(path, 'a') as archive:
    archive.addfile(tarfile.TarInfo('9.heic'))
  for reads, count in ((False, 4), (True, 5)):
    monkeypatch.setattr(image_kinds, 'reads_heic', lambda reads=reads: reads)
    found = shard_index.load([str(path)], str(path.parent))
    assert len(found[str(path)]) == count


def test_images_without_the_label_field_are_skipped(folder, capsys):
  path = folder / 'few/x.tar'
  write(path, range(20), label=lambda i: '' if i == 4 else str(i % 2))
  with tarfile.open(path, 'a') as archive:
    for name in ('98.png', '98.json'):
      content = b'{"score": 1}'
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  data = load(path)
  assert data.class_names == ('0', '1')
  assert data.num_train + data.num_test == 19
  shown = capsys.readouterr().err
  assert 'images without the field cls: 2 (' in shown
  assert 'labels are the field cls' in shown


def test_tar_files_that_are_refused(folder):
  write(folder / 'b/x.tar', range(20), 'txt', lambda i: f'a photo of {i}')
  with pytest.raises(ValueError, match="20 different texts.*'a photo of 0'"):
    load(folder / 'b')
  write(folder / 'c/x.tar', range(4), 'xml')
  with pytest.raises(ValueError, match='no pairs of an image and a label'):
    load(folder / 'c')
  with pytest.raises(ValueError, match='an archive.*tar -xf'):
    load(folder / 'c/x.tar')
  (folder / 'c/x.tar').write_bytes(b'no tar file' * 99)
  with pytest.raises(ValueError, match='x.tar cannot be read as a tar file'):
    load(folder / 'c')
  write(folder / 'more.tar', range(3))
  with pytest.raises(ValueError, match='do not, such as .*more.tar'):
    load(folder)
