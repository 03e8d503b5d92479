"""The check for undecodable images, and its cache."""

import os
import pathlib

import numpy as np
import pytest

from tests.data.test_image_folder import find
from tests.data.test_image_folder import numbered
from tests.data.test_image_folder import write_images
from vit_jax.data import data_settings
from vit_jax.data.folders import folder_source
from vit_jax.data.image_files import check_cache
from vit_jax.data.image_files import image_checks


@pytest.fixture(name='cache')
def fixture_cache(tmp_path, monkeypatch):
  """Path of an empty cache folder."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache/vit_jax/image_checks'


@pytest.fixture(name='checked')
def fixture_checked(monkeypatch):
  """Returns a list to which each check adds the names of its images."""
  checked = []
  decode_all = image_checks._decode_all

  def record(paths):
    checked.append([os.path.basename(path) for path in paths])
    return decode_all(paths)

  monkeypatch.setattr(image_checks, '_decode_all', record)
  return checked


def test_the_check_is_remembered_until_a_file_changes(
  tmp_path, cache, checked, capsys
):
  for name in ('a', 'b'):
    write_images(tmp_path / 'images' / name, numbered(30))
  (tmp_path / 'images/a/text.jpg').write_text('not an image')
  first = find(tmp_path / 'images')
  capsys.readouterr()
  assert find(tmp_path / 'images') == first
  assert '1 of 61' in capsys.readouterr().err
  assert len(checked.pop(0)) == 61
  assert checked.pop(0) == ['text.jpg']
  write_images(tmp_path / 'images/b', ['late.png'])
  find(tmp_path / 'images')
  assert sorted(checked.pop(0)) == ['late.png', 'text.jpg']
  # Overwrite a file in place with the same number of bytes.
  path = tmp_path / 'images/b/7.png'
  path.write_bytes(path.read_bytes()[::-1])
  train, test = find(tmp_path / 'images')
  assert sorted(checked.pop(0)) == ['7.png', 'text.jpg']
  assert '2 of 62' in capsys.readouterr().err
  assert str(path) not in train['b'] + test['b']
  # A repair of an undecodable image may keep the modification time.
  status = path.stat()
  path.write_bytes(path.read_bytes()[::-1])
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  train, test = find(tmp_path / 'images')
  assert str(path) in train['b'] + test['b']
  (file,) = cache.iterdir()
  assert 62 <= len(np.load(file)) <= 64


def test_all_splits_share_the_cache(
  tmp_path, cache, checked, capsys, monkeypatch
):
  for part, count in (('train', 20), ('test', 5), ('late', 4)):
    for name in ('a', 'b'):
      write_images(
        tmp_path / 'images' / part / name,
        [f'{part}{i}.png' for i in range(count)],
      )
  find(tmp_path / 'images')
  find(tmp_path / 'images', test_split='train')
  find(tmp_path / 'images', train_split='test', test_split='test')
  find(tmp_path / 'images')
  assert list(map(len, checked)) == [50, 0, 0, 0]
  find(tmp_path / 'images', test_split='late')
  assert sorted(checked.pop()) == sorted(
    f'late{i}.png' for i in range(4) for _ in 'ab'
  )
  monkeypatch.chdir(tmp_path)
  find('images/../images')
  find(tmp_path / 'images', test_split='late')
  assert checked[-2:] == [[], []]
  assert not capsys.readouterr().err
  assert len(list(cache.iterdir())) == 1


def test_removed_images_are_removed_from_the_cache(tmp_path, cache):
  for number in range(6):
    for name in ('a', 'b'):
      write_images(
        tmp_path / 'images' / name, [f'{i}.png' for i in range(10)], number
      )
    find(tmp_path / 'images')
  (file,) = cache.iterdir()
  assert 20 <= len(np.load(file)) <= 40


@pytest.mark.parametrize(
  'limit, value', [('_MAX_FILES', 2), ('_MAX_BYTES', 2 * 328 + 1)]
)
def test_the_most_recently_used_folders_are_kept(
  tmp_path, cache, checked, monkeypatch, limit, value
):
  monkeypatch.setattr(check_cache, limit, value)
  for number in range(3):
    for name in ('a', 'b'):
      write_images(tmp_path / str(number) / name, numbered(2))
  find(tmp_path / '0')
  find(tmp_path / '1')
  newest = pathlib.Path(check_cache.path_of(tmp_path / '1'))
  for file in cache.iterdir():
    age = 50 if file == newest else 100
    os.utime(file, ns=(0, newest.stat().st_mtime_ns - age * 10**9))
  find(tmp_path / '0')  # now the most recently used
  find(tmp_path / '2')
  del checked[:]
  for number in (0, 2, 1):
    find(tmp_path / str(number))
  assert list(map(len, checked)) == [0, 0, 4]
  assert len(list(cache.iterdir())) == 2


def test_an_unwritable_cache_gives_only_a_warning(
  tmp_path, checked, capsys, monkeypatch
):
  for name in ('a', 'b'):
    write_images(tmp_path / 'images' / name, numbered(3))
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  for _ in range(2):
    train, test = find(tmp_path / 'images')
    assert len(train['a'] + test['a']) == 3
    log = capsys.readouterr().err
    assert log.count('warning: ') == log.count('\n') == 1
    assert f'{tmp_path}/file/vit_jax/image_checks' in log
    assert 'Not a directory' in log and 'XDG_CACHE_HOME' in log
  assert list(map(len, checked)) == [6, 6]


def test_a_full_disk_leaves_no_part_of_a_file(
  tmp_path, cache, capsys, monkeypatch
):
  for name in ('a', 'b'):
    write_images(tmp_path / 'images' / name, numbered(3))

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  find(tmp_path / 'images')
  assert 'No space left' in capsys.readouterr().err
  assert not list(cache.iterdir())


def test_a_damaged_cache_is_replaced(tmp_path, cache, checked, capsys):
  for name in ('a', 'b'):
    write_images(tmp_path / 'images' / name, numbered(3))
  find(tmp_path / 'images')
  (file,) = cache.iterdir()
  content = file.read_bytes()
  other = np.zeros(3)
  for damage in (
    lambda: file.write_bytes(content[:-21]),
    lambda: file.write_bytes(b''),
    lambda: np.save(file, other),
    lambda: np.save(file, np.array([{}]), allow_pickle=True),
  ):
    damage()
    find(tmp_path / 'images')
    assert file.read_bytes() == content
  assert list(map(len, checked)) == [6, 6, 6, 6, 6]
  keys = np.load(file)['key']
  assert list(keys) == sorted(keys)
  assert not capsys.readouterr().err


def test_the_cache_is_in_the_home_folder(tmp_path, monkeypatch):
  for name in ('a', 'b'):
    write_images(tmp_path / 'images' / name, numbered(3))
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('XDG_CACHE_HOME')
  folder_source.list_images(
    data_settings.DataSettings('', (8, 8)), str(tmp_path / 'images')
  )
  assert len(list((tmp_path / '.cache/vit_jax/image_checks').iterdir())) == 1
