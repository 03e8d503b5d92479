import dataclasses
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from vit_jax.commands import check
from vit_jax.data import data_settings
from vit_jax.data import input_pipeline
from vit_jax.data.folders import folder_source


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
    '18 of 19 images have a side below 224 px, so they are enlarged',
    'files with the same content: 0 group(s)',
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
  assert found['equal_files_with_different_labels'] == across
  assert len(found['equal_files']) == 3
  assert found['near_duplicates'] == [['train/cat/3.jpg', 'test/cat/near.png']]
  _, page = run(photos, capsys)
  assert page.count('warning: 1 group(s) of files have the same content') == 2
  assert 'almost equal' not in page


def test_imbalance_and_classes_without_test_images(photos, capsys):
  for path in (photos / 'train/dog/1.jpg', photos / 'test/dog/0.jpg'):
    path.unlink()
  _, page = run(photos, capsys)
  assert "12 training images of 'cat', 1 of 'dog'" in page
  assert 'warning: no test images of 1 (dog)' in page


def test_hashes_and_sizes_are_those_of_the_files(photos):
  """The cache of the check gives the same findings as the files."""
  shutil.copy(photos / 'train/cat/0.jpg', photos / 'test/cat/copy.jpg')
  turned = Image.Exif()
  turned[0x0112] = 6
  picture(9).save(photos / 'train/dog/turned.jpg', exif=turned)
  found = [find(photos) for _ in range(2)]
  assert found[0].checked.paths == found[1].checked.paths
  np.testing.assert_array_equal(*(x.checked.records for x in found))
  paths, records = found[1].checked.paths, found[1].checked.records
  contents = [pathlib.Path(path).read_bytes() for path in paths]
  _, first = np.unique(contents, return_inverse=True)
  np.testing.assert_array_equal(
    first[:, None] == first, records['content'][:, None] == records['content']
  )
  sizes = [(r['height'], r['width']) for r in records]
  assert sizes[paths.index(str(photos / 'train/dog/turned.jpg'))] == (90, 60)
  assert set(sizes) == {(90, 60), (60, 90)}


def find(photos):
  return folder_source.list_images(
    data_settings.DataSettings(str(photos), (224, 224)), str(photos)
  )


def test_a_run_warns_and_keeps_what_was_found(photos, capsys):
  shutil.copy(photos / 'train/cat/0.jpg', photos / 'test/cat/copy.jpg')
  shutil.copy(photos / 'train/cat/1.jpg', photos / 'train/dog/copy.jpg')
  (photos / 'train/dog/1.jpg').unlink()
  settings = data_settings.DataSettings(str(photos), (224, 224))
  data = input_pipeline.get_datasets(settings)
  lines = capsys.readouterr().err.splitlines()
  assert (
    f'{photos}: 19 JPEG, 60 x 90 pixels; always answering '
    "'cat' is right for 80.0 % of the test images"
  ) in lines
  warnings = [line for line in lines if line.startswith('warning: ')]
  assert len(warnings) == 3
  for text in (
    "12 training images of 'cat', 2 of 'dog'",
    'such as train/cat/0.jpg (train), test/cat/copy.jpg (test)',
    'such as train/cat/1.jpg (cat), train/dog/copy.jpg (dog)',
  ):
    assert sum(text in line for line in warnings) == 1
  stored = json.loads(json.dumps(data.findings))
  assert stored['classes']['train'] == {'cat': 12, 'dog': 2}
  assert stored['equal_files_in_two_splits'] == [
    ['train/cat/0.jpg', 'test/cat/copy.jpg']
  ]
  held = dataclasses.replace(settings, validation=0.2)
  assert input_pipeline.get_datasets(held).findings['images']['validation'] == 3


def test_labels_of_several_classes_and_numbers(photos, capsys):
  """Rows of classes are counted; equal files with other labels are named."""
  shutil.copy(photos / 'train/cat/0.jpg', photos / 'train/cat/copy.jpg')
  files = sorted((photos / 'train/cat').glob('*.jpg'))
  rows = [[x.relative_to(photos), '"cat, red"'] for x in files]
  rows[-1][1] = 'cat'  # copy.jpg
  rows += [[x.relative_to(photos), 'red'] for x in photos.glob('train/dog/*')]
  table = photos / 'labels.csv'
  lines = [','.join(map(str, row)) for row in [['file', 'labels'], *rows]]
  table.write_text('\n'.join(lines))
  status, page = run(
    photos, capsys, '--labels=labels.csv', '--task=multi_label', '--json'
  )
  found = json.loads(page)
  assert status == 1 and found['majority'] is None
  counts = found['classes']
  assert sum(of['red'] for of in counts.values()) == len(rows) - 1
  assert sum(of['cat'] for of in counts.values()) == len(files)
  assert found['equal_files_with_different_labels'] == [
    ['train/cat/0.jpg', 'train/cat/copy.jpg']
  ]
  numbers = [[row[0], i] for i, row in enumerate(rows)]
  lines = [','.join(map(str, row)) for row in [['file', 'weight'], *numbers]]
  table.write_text('\n'.join(lines))
  status, page = run(photos, capsys, '--labels=labels.csv', '--task=regression')
  assert status == 1
  assert 'train/cat/0.jpg (0), train/cat/copy.jpg (12)' in page


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path, capsys):
  with pytest.raises(SystemExit) as error:
    check.main([str(tmp_path / 'missing')])
  assert error.value.code == 2 and 'no such folder' in capsys.readouterr().err


def test_the_settings_of_a_run_can_be_given(photos, capsys):
  for path in photos.glob('*/*/*.jpg'):
    path.rename(photos / f'{path.parts[-3]}_{path.parts[-2]}_{path.name}')
  rows = [
    f'{x.name},{x.name.split("_")[1]} cat\n' for x in photos.glob('*.jpg')
  ]
  (photos / 'labels.csv').write_text('photo,kind\n' + ''.join(rows))
  columns = '--file_column=photo', '--label_column=kind', '--task=multi_label'
  with pytest.raises(SystemExit):
    run(photos, capsys, *columns)
  assert '--label_separator=none' in capsys.readouterr().err
  status, page = run(photos, capsys, *columns, '--label_separator=none')
  assert status == 0 and 'dog cat' in page
