import json
import shutil

import numpy as np
from PIL import Image
import pytest

from vit_jax.commands import check
from vit_jax.data.folders import findings


def picture(seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
  return Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC)


@pytest.fixture(name='photos')
def fixture_photos(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  folder, seed = tmp_path / 'photos', 0
  for split, counts in (('train', (12, 2)), ('test', (3, 1))):
    for name, count in zip(('cat', 'dog'), counts, strict=True):
      (folder / split / name).mkdir(parents=True)
      for i in range(count):
        seed += 1
        picture(seed).save(folder / split / name / f'{i}.jpg')
  return folder


def run(photos, capsys, *options):
  capsys.readouterr()
  status = check.main([str(photos), *options])
  return status, capsys.readouterr().out


def test_a_good_folder(photos, capsys):
  picture(99).resize((300, 250)).save(photos / 'train/dog/large.png')
  (photos / 'train/dog/film.MOV').write_bytes(b'x')
  status, page = run(photos, capsys)
  assert status == 0
  for line in (
    'images: 15 train, 4 test',
    'cat            12           3',
    'dog             3           1',
    'kinds of files: 18 JPEG, 1 PNG',
    'height x width: smallest 60 x 90, median 60 x 90, largest 250 x 300',
    '18 of 19 images have a side below 224 px',
    'files with the same content: 0 groups',
    "always answering 'cat' is right for 75.0 % of the test images",
  ):
    assert f'\n{line}\n' in f'\n{page}'
  assert 'skipped: files of kind video' in page and 'film.MOV' in page
  assert 'warning' not in page


def test_copies_in_two_splits_or_classes_are_contradictions(photos, capsys):
  shutil.copy(photos / 'train/cat/0.jpg', photos / 'test/cat/copy.jpg')
  shutil.copy(photos / 'train/cat/1.jpg', photos / 'train/dog/copy.jpg')
  shutil.copy(photos / 'train/cat/2.jpg', photos / 'train/cat/copy.jpg')
  picture(4).resize((140, 90)).save(photos / 'test/cat/near.png')  # 3.jpg
  status, found = run(photos, capsys, '--json', '--near')
  found = json.loads(found)
  assert status == 1
  across = [['train/cat/0.jpg', 'test/cat/copy.jpg']]
  assert found['equal_files_in_two_splits'] == across
  across = [['train/cat/1.jpg', 'train/dog/copy.jpg']]
  assert found['equal_files_in_two_classes'] == across
  assert len(found['equal_files']) == 3
  assert found['near_duplicates'] == [['train/cat/3.jpg', 'test/cat/near.png']]
  _, page = run(photos, capsys)
  assert page.count('warning: 1 of these groups are in different') == 2
  assert 'almost equal' not in page


def test_imbalance_and_classes_without_test_images(photos, capsys):
  for path in (photos / 'train/dog/1.jpg', photos / 'test/dog/0.jpg'):
    path.unlink()
  _, page = run(photos, capsys)
  assert "12 training images of 'cat', 1 of 'dog'" in page
  assert 'warning: no test images of 1 (dog)' in page


def test_files_of_equal_size_and_equal_ends_are_compared_as_a_whole(tmp_path):
  content = bytearray(b'a' * 20_000)
  paths = [str(tmp_path / name) for name in 'abcd']
  for path in paths[:2]:
    (tmp_path / path).write_bytes(content)
  content[10_000] = 0  # in the middle
  (tmp_path / 'c').write_bytes(content)
  content[0] = 0
  (tmp_path / 'd').write_bytes(content)
  assert findings.equal_files(paths) == [paths[:2]]


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path, capsys):
  with pytest.raises(SystemExit) as error:
    check.main([str(tmp_path / 'missing')])
  assert error.value.code == 2 and 'no such folder' in capsys.readouterr().err
