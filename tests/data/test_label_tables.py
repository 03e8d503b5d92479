"""Labels from tables and from lists of files."""

import json
import os
import unicodedata

import numpy as np
import pytest

from tests.data.test_folder_layout import make
from tests.data.test_image_folder import list_images
from tests.data.test_image_folder import numbered
from tests.data.test_image_folder import write_images
from vit_jax.data import data_settings
from vit_jax.data import sources
from vit_jax.data.folders import folder_source


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
  """Returns a folder with the images images/x0.png to images/x9.png."""
  folder = tmp_path / 'photos'
  make(folder, 'images/{x}/0')
  (folder / 'images/x').rmdir()
  for i in range(10):
    (folder / f'images/x{i}.png').touch()
  return folder


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def rows(line, count=10):
  """Returns a line for each image; {c} is cat or dog."""
  return ''.join(
    line.format(i=i, c=('cat', 'dog')[i % 2], o=(i + 1) % 2, p=i % 2) + '\n'
    for i in range(count)
  )


def labels_of(folder, **settings):
  """Returns ({image: label}, listing)."""
  found = list_images(folder, check_images=False, **settings)
  return {
    os.path.basename(path)[:-4]: label.tolist()
    for part in found.parts.values()
    for path, label in zip(part.paths, part.labels, strict=True)
  }, found


@pytest.mark.parametrize(
  'name, text',
  [
    ('labels.csv', 'file,label\n' + rows('images/x{i}.png,{c}')),
    ('labels.csv', 'id,class\n' + rows('x{i},{c}')),
    ('labels.csv', 'Image ID;Label\n' + rows('x{i};{c}')),
    ('labels.tsv', 'path\tcategory\n' + rows('photos/images/x{i}.png\t{c}')),
    ('labels.csv', '\ufefffilename,kind\n' + rows('x{i}.png,{c}')),
    ('labels.csv', 'image_id,cat,dog\n' + rows('x{i},{o},{p}')),
    ('labels.csv', 'path,label\n' + rows('C:\\data\\images\\x{i}.png,{c}')),
    ('labels.csv', rows('x{i}.png,{c}')),
    ('train.csv', 'img,class_id,class_name\n' + rows('x{i}.png,{p},{c}')),
    (
      'metadata.jsonl',
      rows('{{"file_name": "images/x{i}.png", "label": "{c}"}}'),
    ),
    ('train.txt', rows('images/x{i}.png {c}')),
  ],
)
def test_common_spellings_of_a_table(folder, name, text):
  write(folder / name, text)
  labels, found = labels_of(folder)
  assert found.class_names == ('cat', 'dog')
  assert labels == {f'x{i}': i % 2 for i in range(10)}
  assert len(found.parts['test'].paths) >= 2
  assert name in found.notes[0]
  assert not found.skipped


def test_a_table_of_parquet(folder):
  parquet = pytest.importorskip('pyarrow.parquet')
  import pyarrow

  table = pyarrow.table(
    {'file_name': [f'images/x{i}.png' for i in range(10)], 'label': [0, 1] * 5}
  )
  parquet.write_table(table, folder / 'metadata.parquet')
  assert labels_of(folder)[0] == {f'x{i}': i % 2 for i in range(10)}


def test_a_column_of_parts(folder):
  text = 'file,label,Split\n' + ''.join(
    f'x{i}.png,{"ab"[i % 2]},{("Train", "VALID", "testing")[i // 4]}\n'
    for i in range(10)
  )
  write(folder / 'labels.csv', text)
  _, found = labels_of(folder)
  assert {k: len(part.paths) for k, part in found.parts.items()} == {
    'train': 4,
    'validation': 4,
    'test': 2,
  }
  _, found = labels_of(folder, test_split='valid', validation=0)
  assert {k: len(part.paths) for k, part in found.parts.items()} == {
    'train': 4,
    'test': 4,
  }


def test_files_of_kaggle(tmp_path):
  """A train.csv, images in train/ and test/, and a test.csv without labels."""
  for part, count in (('train', 20), ('test', 5)):
    (tmp_path / part).mkdir()
    for i in range(count):
      (tmp_path / part / f'{i}.jpg').touch()
  write(tmp_path / 'train.csv', 'image_id,label\n' + rows('{i},{c}', 20))
  write(
    tmp_path / 'test.csv', 'image_id\n' + ''.join(f'{i}\n' for i in '01234')
  )
  write(tmp_path / 'sample_submission.csv', 'image_id,label\n0,0\n')
  labels, found = labels_of(tmp_path)
  assert len(labels) == 20 and not found.skipped
  assert all('/train/' in path for path in found.paths)
  assert 'test.csv has no labels' in '\n'.join(found.notes)
  assert (
    f'`python -m vit_jax predict RUN {tmp_path}/test` classifies'
    in '\n'.join(found.notes)
  )


def test_one_table_for_the_folders_of_the_splits(tmp_path):
  for part, start, stop in (('train', 0, 6), ('val', 6, 10)):
    (tmp_path / part).mkdir()
    for i in range(start, stop):
      (tmp_path / part / f'x{i}.png').touch()
  write(tmp_path / 'labels.csv', 'file,label\n' + rows('x{i}.png,{c}'))
  _, found = labels_of(tmp_path)
  assert [len(found.parts[k].paths) for k in ('train', 'test')] == [6, 4]
  assert 'test images: validation, because' in '\n'.join(found.notes)


def test_metadata_in_the_folders_of_the_parts(tmp_path):
  """The layout of ImageFolder in Hugging Face datasets."""
  for part, count in (('train', 6), ('test', 4)):
    (tmp_path / part).mkdir()
    for i in range(count):
      (tmp_path / part / f'x{i}.png').touch()
    write(
      tmp_path / part / 'metadata.csv',
      'file_name,label\n' + rows('x{i}.png,{c}', count),
    )
  _, found = labels_of(tmp_path)
  assert [len(found.parts[k].paths) for k in ('train', 'test')] == [6, 4]
  assert found.parts['test'].labels.tolist() == [0, 1, 0, 1]


def test_lists_of_files_in_class_folders(tmp_path):
  make(tmp_path / 'images', '{a,b}/4')
  write(tmp_path / 'train.txt', 'a/a0\na/a1\nb/b0\nb/b1\n')
  write(tmp_path / 'test.txt', 'a/a2\nb/b2\nb/b9\n')
  _, found = labels_of(tmp_path)
  assert [len(found.parts[k].paths) for k in ('train', 'test')] == [4, 2]
  assert {k: len(v) for k, v in found.skipped.items()} == {
    'lines without a file in test.txt': 1,
    'images without a row': 2,
  }


def test_numbers_get_the_names_of_folders(tmp_path):
  make(tmp_path / 'images', '{b,a}/4')
  write(tmp_path / 'train.txt', 'b/b0 0\nb/b1 0\na/a0 1\na/a1 1\n')
  write(tmp_path / 'val.txt', 'a/a2 1\nb/b2 0\n')
  labels, found = labels_of(tmp_path)
  assert found.class_names == ('b', 'a') and labels['b2'] == 0
  write(tmp_path / 'val.txt', 'a/a2 0\nb/b2 0\n')
  with pytest.raises(ValueError, match='config.labels=folders'):
    labels_of(tmp_path)


def test_both_spellings_of_a_file_name(tmp_path):
  """macOS decomposes letters in file names; tables are written by hand."""
  for i in range(4):
    (tmp_path / unicodedata.normalize('NFD', f'é{i}.png')).touch()
  write(tmp_path / 'labels.csv', 'file,label\n' + rows('é{i}.png,{c}', 4))
  assert len(labels_of(tmp_path)[1].paths) == 4


def test_what_is_skipped_is_counted_and_named(folder):
  text = (
    'file,label\n'
    + rows('x{i},{c}', 7)
    + 'x7,\ny1,cat\na/images/x9,dog\nx0,cat\n'
  )
  write(folder / 'labels.csv', text)
  labels, found = labels_of(folder)
  assert len(labels) == 7
  lines = '\n'.join(found.lines())
  assert 'rows without a file in labels.csv: 2 (y1, a/images/x9)' in lines
  assert 'rows without a label in labels.csv: 1 (x7)' in lines
  assert 'images without a row: 3 (images/x7.png, images/x8.png, ' in lines
  assert 'repeated rows: 1 (images/x0.png)' in lines


@pytest.mark.parametrize(
  'text, settings, facts',
  [
    (
      'file,label,class\nx0,a,c\nx1,b,c\nx2,b,d\n',
      {},
      ['label or class', 'config.label_column=label'],
    ),
    ('file,age,site\nx0,3,a\nx1,4,b\n', {}, ['age or site', 'label_column']),
    ('file,label\nx0,a\nx0,b\n', {}, ["['a'] and ['b']", 'images/x0.png']),
    ('file,label\nx0,a;b\nx1,b\n', {}, ["'a;b'", 'config.task=multi_label']),
    ('file,label\nx0,a b\nx1,b\nx2,a\n', {}, ["'a b'", 'separator=none']),
    ('file,a,b\nx0,1,1\nx1,0,1\n', {}, ["['a', 'b']", 'task=multi_label']),
    ('file,label\nx0,a\n', {'label_column': 'kind'}, ["'kind'", 'file, label']),
    ('file,label\nz0,a\nz1,b\n', {}, ['name no image', 'z0', 'images/x0.png']),
    ('file,label\nx0,a\nx1,a\n', {}, ['only one class']),
    ('file,label\nx0,a,b\n', {}, ['row 2 has 3 cells']),
    ('file,label,label\nx0,a,b\n', {}, ["several columns .* 'label'"]),
    (
      'image,id,label\nx0.png,x1,a\nx1.png,x0,b\n',
      {},
      ['image or id', 'config.file_column=image'],
    ),
    (
      'file,label\nx0,tall\n',
      {'task': 'regression'},
      ["'tall'", 'config.task=regression'],
    ),
    (
      'file,label\nx0,a b\nx1,b\n',
      {'task': 'multi_label'},
      ["'a b'", 'config.label_separator'],
    ),
  ],
)
def test_tables_that_are_refused(folder, text, settings, facts):
  write(folder / 'labels.csv', text)
  with pytest.raises(ValueError) as error:
    labels_of(folder, **settings)
  for fact in facts:
    assert fact.replace(' .* ', ' with the name ') in str(error.value)


def test_several_labels_for_an_image(folder):
  write(folder / 'labels.csv', 'file,tags\nx0,a;b\nx1,\nx2,c\nx2,a\nx3,b;c\n')
  labels, found = labels_of(folder, task='multi_label')
  assert found.class_names == ('a', 'b', 'c')
  assert labels == {
    'x0': [1, 1, 0],
    'x1': [0, 0, 0],
    'x2': [1, 0, 1],
    'x3': [0, 1, 1],
  }
  assert found.parts['train'].labels.dtype == np.float32
  write(folder / 'labels.csv', 'file,tags\nx0,a b\nx1,b\n')
  settings = {'task': 'multi_label', 'label_separator': ' '}
  assert labels_of(folder, **settings)[0] == {'x0': [1, 1], 'x1': [0, 1]}
  write(folder / 'labels.csv', 'file,a,b\nx0,1,1\nx1,0,1\n')
  assert labels_of(folder, task='multi_label')[0]['x0'] == [1, 1]


def test_each_class_of_several_has_test_images(folder):
  tags = ['a', 'a;b', 'a;c', 'a', 'a;b', 'a;c', 'a', 'a', 'a', '']
  text = ''.join(f'x{i},{tag}\n' for i, tag in enumerate(tags))
  write(folder / 'labels.csv', 'file,tags\n' + text)
  _, found = labels_of(folder, task='multi_label')
  for part in found.parts.values():
    assert part.labels.any(0).all()


def test_columns_of_numbers(folder):
  write(folder / 'labels.csv', 'file,height,site\n' + rows('x{i},{i}.5,{c}'))
  labels, found = labels_of(folder, task='regression', label_column='height')
  assert labels['x3'] == 3.5 and found.class_names == ()
  write(folder / 'labels.csv', 'file,h,w\n' + rows('x{i},{i}.5,{p}'))
  labels, _ = labels_of(folder, task='regression', target_names=('w', 'h'))
  assert labels['x3'] == [1, 3.5]
  labels, found = labels_of(folder, label_column='h')  # names of classes
  assert found.class_names[:2] == ('0.5', '1.5')


@pytest.mark.parametrize('task', ['multi_label', 'regression'])
def test_tasks_that_need_a_table(tmp_path, task):
  for name in 'ab':
    write_images(tmp_path / name, numbered(3))
  settings = data_settings.DataSettings('', (8, 8), task=task)
  with pytest.raises(ValueError, match=rf'config.task={task} needs .* table'):
    folder_source.list_images(settings, str(tmp_path))


def test_numbers_of_classes_are_in_order_and_get_names(folder):
  write(folder / 'labels.csv', 'file,label\n' + rows('x{i},{i}'))
  write(folder / 'images/x10.png', '')
  (folder / 'labels.csv').open('a').write('x10,10\n')
  assert labels_of(folder)[1].class_names == tuple(map(str, range(11)))
  write(folder / 'classes.txt', '\n'.join('klmnopqrstu'))
  labels, found = labels_of(folder)
  assert found.class_names == tuple('klmnopqrstu') and labels['x10'] == 10
  write(folder / 'classes.txt', '\n'.join('klm'))
  _, found = labels_of(folder)
  assert found.class_names == tuple(map(str, range(11)))
  assert 'classes.txt lists none of the classes' in '\n'.join(found.notes)
  write(folder / 'classes.txt', '0\n1')
  with pytest.raises(ValueError, match='lists 2 of the classes, but not 9'):
    labels_of(folder)


def test_folders_and_a_table_with_other_labels(tmp_path):
  make(tmp_path, '{a,b}/4')
  text = 'file,label\n' + ''.join(
    f'{c}{i},{"xy"[i % 2]}\n' for i in range(4) for c in 'ab'
  )
  write(tmp_path / 'labels.csv', text)
  with pytest.raises(ValueError, match='config.labels=folders or config.label'):
    labels_of(tmp_path)
  assert labels_of(tmp_path, labels='folders')[1].class_names == ('a', 'b')
  assert labels_of(tmp_path, labels='labels.csv')[1].class_names == ('x', 'y')
  with pytest.raises(ValueError, match="config.labels='no.csv'.*no such file"):
    labels_of(tmp_path, labels='no.csv')
  # A table about something else does not disturb.
  write(tmp_path / 'labels.csv', 'file,width,camera\na0,3,x\n')
  _, found = labels_of(tmp_path)
  assert found.class_names == ('a', 'b')
  assert 'the labels are the names of folders' in '\n'.join(found.notes)


def test_a_column_of_groups(folder):
  text = 'file,label,patient\n' + rows('x{i},{c},p{i}')
  write(folder / 'labels.csv', text.replace('p1\n', 'p3\n'))
  for group_by in ('patient', r'x(\d)'):
    _, found = labels_of(folder, group_by=group_by)
    assert len(found.groups) == 10
    assert len(set(found.groups.values())) == 9 + (group_by != 'patient')
    groups = [
      {found.groups[path] for path in found.parts[part].paths}
      for part in ('train', 'test')
    ]
    assert not groups[0] & groups[1] and groups[1]


def test_the_fingerprint_has_the_labels(folder):
  write(folder / 'labels.csv', 'file,label\n' + rows('x{i},{c}'))
  first = labels_of(folder)[1].fingerprint('train')
  assert labels_of(folder)[1].fingerprint('train') == first
  write(folder / 'labels.csv', 'file,label\n' + rows('x{i},{p}'))
  assert labels_of(folder)[1].fingerprint('train') != first


def test_a_broken_line_of_json(folder):
  write(folder / 'metadata.jsonl', json.dumps({'file': 'x0'}) + '\n{"a"\n')
  with pytest.raises(ValueError, match='line 2 is not JSON'):
    labels_of(folder)


def test_settings_that_nothing_would_read_are_rejected(folder, tmp_path):
  make(tmp_path / 'classes', '{a,b}/4')
  for settings in ({'label_column': 'x'}, {'label_separator': ';'}):
    for labels in ('', 'folders'):
      with pytest.raises(
        ValueError, match=f'config.{min(settings)}=.*not used'
      ):
        labels_of(tmp_path / 'classes', labels=labels, **settings)
  settings = data_settings.DataSettings('digits', (8, 8), group_by='(.)')
  with pytest.raises(
    ValueError, match="group_by='\\(.\\)' is not used: 'digits'"
  ):
    sources.get_sources(settings)
  write(folder / 'labels.csv', 'file,x,y\n' + rows('x{i},{p},{c}'))
  assert labels_of(folder, label_column='y')[1].class_names == ('cat', 'dog')
