"""Which sub-folders are parts, classes, or neither."""

import unicodedata

import numpy as np
import pytest

from tests.data.test_image_folder import list_images
from vit_jax.data import class_names
from vit_jax.data import data_settings
from vit_jax.data import sources
from vit_jax.data.folders import archives
from vit_jax.data.folders import hold_out
from vit_jax.data.folders import image_folder
from vit_jax.data.folders import split_names


def make(folder, *entries):
  """Makes empty image files: 'train/{a,b}/2' has two images in each class."""
  for entry in entries:
    start, _, count = entry.rpartition('/')
    before, _, rest = start.partition('{')
    names, _, after = rest.partition('}')
    for name in names.split(','):
      path = folder / f'{before}{name}{after}'
      path.mkdir(parents=True, exist_ok=True)
      for i in range(int(count)):
        (path / f'{name}{i}.png').touch()


def sizes(folder, **settings):
  """Returns ({part: number of images}, class names, lines)."""
  found = list_images(folder, check_images=False, **settings)
  return (
    {name: len(part.paths) for name, part in found.parts.items()},
    found.class_names,
    '\n'.join(found.lines()),
  )


@pytest.mark.parametrize(
  'entries, expected, line',
  [
    (
      ['training/{a,b}/4', 'testing/{a,b}/3'],
      {'train': 8, 'test': 6},
      'training images: training/; test images: testing/',
    ),
    (
      ['Train/{a,b}/4', 'Validation/{a,b}/2'],
      {'train': 8, 'test': 4},
      'test images: Validation/, because there is no other test',
    ),
    (
      ['TRAINING_SET/{a,b}/4', 'dev/{a,b}/1', 'test-images/{a,b}/2'],
      {'train': 8, 'validation': 2, 'test': 4},
      'validation images: dev/',
    ),
    (
      ['data/train/{a,b}/4', 'data/val/{a,b}/2'],
      {'train': 8, 'test': 4},
      'only sub-folder, data',
    ),
    (['photos/{a,b}/10'], {'train': 16, 'test': 4}, 'only sub-folder, photos'),
    (
      ['a/{train,test}/3', 'b/{train,test}/2'],
      {'train': 5, 'test': 5},
      'training images: CLASS/train/',
    ),
    (['train/{a,b}/10'], {'train': 16, 'test': 4}, 'training images: train/'),
    (
      ['train/train/{a,b}/3', 'test/test/{a,b}/2'],
      {'train': 6, 'test': 4},
      'test images: test/',
    ),
    (
      ['train/{a,b}/10', '{test}/7'],
      {'train': 16, 'test': 4},
      'the images in test are in no class',
    ),
    (
      ['train/{a,b}/10', 'test/{test}/7'],
      {'train': 16, 'test': 4},
      'the images in test/test are in no class',
    ),
    (
      ['train/{a,b}/4', 'test/{a,b}/2', '{extra}/3'],
      {'train': 8, 'test': 4},
      'folders next to the parts: 1 (extra)',
    ),
    (['{car,bus,train}/10'], {'train': 27, 'test': 3}, 'train is read as a cl'),
    (
      ['{a,b}/4', 'test/{a,b}/2'],
      {'train': 8, 'test': 4},
      'test images: test/',
    ),
  ],
)
def test_parts_and_classes_are_recognized(tmp_path, entries, expected, line):
  make(tmp_path, *entries)
  counts, names, lines = sizes(tmp_path)
  assert counts == expected and line in lines
  assert names == (
    ('bus', 'car', 'train') if 'car' in entries[0] else ('a', 'b')
  )


@pytest.mark.parametrize(
  'entries, facts',
  [
    (['{car,bus}/2', 'train/{x,y}/2'], ['train_split=./train', "split='.'"]),
    (['{car,bus,test}/2'], ['test_split=./test', "train_split='.'"]),
    (['{train,test}/3'], ["train_split='.'", 'config.labels']),
    (
      ['{car,train,test}/2'],
      [': test can', "split='.'", 'split=. and config.test_split=./test'],
    ),
    (
      ['train/{a,b}/2', 'val/{a,b}/2', 'valid/{a,b}/2'],
      ['val and valid', 'config.validation=./val'],
    ),
    (['val/{a,b}/2', 'test/{a,b}/2'], ['train is missing', 'val']),
    (['train/{a,b}/2', 'test/{c}/2'], ['not in the training split: c']),
  ],
)
def test_two_readings_are_refused_and_settings_choose(tmp_path, entries, facts):
  make(tmp_path, *entries)
  with pytest.raises(ValueError) as error:
    sizes(tmp_path)
  for fact in facts:
    assert fact in str(error.value)


def test_settings_choose_between_two_readings(tmp_path):
  make(tmp_path / 'a', '{car,bus,test}/10')
  assert sizes(tmp_path / 'a', train_split='.')[0] == {'train': 27, 'test': 3}
  counts, names, _ = sizes(tmp_path / 'a', train_split='.', test_split='./test')
  assert names == ('bus', 'car') and counts == {'train': 18, 'test': 2}
  make(tmp_path / 'b', '{car,bus}/2', 'train/{x,y}/10')
  counts, names, lines = sizes(tmp_path / 'b', train_split='./train')
  assert names == ('x', 'y') and counts == {'train': 18, 'test': 2}
  make(tmp_path / 'c', '{train,test}/10')
  counts, names, _ = sizes(tmp_path / 'c', train_split='.')
  assert names == ('test', 'train') and counts == {'train': 18, 'test': 2}


def test_settings_choose_what_validation_images_are(tmp_path):
  make(tmp_path, 'train/{a,b}/10', 'val/{a,b}/2', 'test/{a,b}/1')
  assert sizes(tmp_path)[0] == {'train': 20, 'validation': 4, 'test': 2}
  counts, _, lines = sizes(tmp_path, validation=0)
  assert (
    counts == {'train': 20, 'test': 2} and 'config.validation=0: 4' in lines
  )
  counts, _, _ = sizes(tmp_path, validation=0.25)
  assert counts == {'train': 15, 'test': 2, 'validation': 5}
  counts, _, _ = sizes(tmp_path, test_split='validation', validation='test')
  assert counts == {'train': 20, 'test': 4, 'validation': 2}


def test_a_tfds_slice_is_no_subfolder(tmp_path):
  make(tmp_path, 'train/{a,b}/2')
  with pytest.raises(ValueError, match=r"train\[:98%\]' is a slice of a TFDS"):
    sizes(tmp_path, train_split='train[:98%]')


def test_hidden_folders_and_runs_are_skipped(tmp_path):
  make(tmp_path, '{a,b,.git,@eaDir}/10')
  make(tmp_path / 'a', '{.ipynb_checkpoints,__MACOSX}/3', '{deep}/1')
  for run in ('b/run', 'workdirs/one', 'workdirs/two'):
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / 'config.json').write_text('{}')
    (tmp_path / run / 'metrics.jsonl').touch()
    (tmp_path / run / 'curve.png').touch()
  (tmp_path / 'now/checkpoints').mkdir(parents=True)
  (tmp_path / 'now/log.txt').touch()
  counts, names, lines = sizes(tmp_path)
  assert names == ('a', 'b') and sum(counts.values()) == 21
  assert 'folders of runs: 2 (now, workdirs)' in lines
  assert 'hidden folders: 5 (' in lines
  hidden = []
  paths = image_folder.images_below(str(tmp_path), hidden)
  assert len(paths) == 21 and len(hidden) == 8


def test_two_spellings_of_one_name_are_one_class(tmp_path):
  composed = unicodedata.normalize('NFC', 'Käse')
  make(tmp_path, f'train/{{{composed},b}}/3')
  decomposed = unicodedata.normalize('NFD', 'Käse')
  make(tmp_path, f'test/{{{decomposed},b}}/2')
  counts, names, _ = sizes(tmp_path)
  assert counts == {'train': 6, 'test': 4} and names == (composed, 'b')


def test_wordnet_ids_get_readable_names(tmp_path):
  make(tmp_path, '{n02123045,n01440764}/3')
  assert sizes(tmp_path)[1] == ('tench', 'tabby')
  assert class_names.readable(['n02123045', 'cat']) == ('n02123045', 'cat')


def test_a_file_gives_the_order_of_the_classes(tmp_path):
  make(tmp_path, '{a,b,c}/3')
  (tmp_path / 'classes.txt').write_text('c\na\nb\nd\n')
  _, names, lines = sizes(tmp_path)
  assert names == ('c', 'a', 'b') and 'also lists 1 (d)' in lines
  (tmp_path / 'classes.txt').write_text('c\na\n')
  with pytest.raises(ValueError, match=r'classes.txt lists 2 .*not 1 \(b\)'):
    sizes(tmp_path)
  (tmp_path / 'classes.txt').write_text('other words\n')
  assert sizes(tmp_path)[1] == ('a', 'b', 'c')


def test_groups_stay_on_one_side(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    for i in range(60):
      (tmp_path / name / f'p{i // 4}_{i}.png').touch()
  found = list_images(tmp_path, False, group_by=r'(p\d+)_', validation=0.2)
  groups = {
    name: {path.rpartition('/')[2].partition('_')[0] for path in part.paths}
    for name, part in found.parts.items()
  }
  assert not groups['train'] & groups['test']
  assert not groups['validation'] & (groups['train'] | groups['test'])
  for part, low, high in (('test', 0.05, 0.2), ('validation', 0.1, 0.3)):
    for label in (0, 1):
      count = (found.parts[part].labels == label).sum()
      assert low < count / 60 < high
  for pattern, message in (
    ('(', 'regular expression'),
    ('p', 'has 0 groups'),
    (r'(p7)_', 'does not match .*of all images'),
  ):
    with pytest.raises(ValueError, match=message):
      list_images(tmp_path, False, group_by=pattern)


def test_names_that_contain_the_name_of_a_split(tmp_path):
  make(tmp_path, 'seg_train/{a,b}/4', 'seg_test/{a,b}/2', 'seg_pred/x/3')
  with pytest.raises(ValueError) as error:
    sizes(tmp_path)
  settings = 'config.test_split=./seg_test config.train_split=./seg_train'
  assert settings in str(error.value)
  found, names, _ = sizes(
    tmp_path, train_split='./seg_train', test_split='./seg_test'
  )
  assert found == {'train': 8, 'test': 4} and names == ('a', 'b')
  _, names, _ = sizes(tmp_path, train_split='.')
  assert names == ('seg_pred', 'seg_test', 'seg_train')
  make(tmp_path / 'one', 'bullet_train/x/4', 'car/x/2')
  assert sizes(tmp_path / 'one')[1] == ('bullet_train', 'car')


def test_large_groups_and_single_groups():
  labels = np.array([0] * 100 + [1] * 20)
  for big in 'abcdefgh':  # groups are taken in the order of hashes
    groups = [big] * 50 + [f'p{i // 5}' for i in range(50)] + ['only'] * 20
    held = hold_out.by_group(groups, labels, 0.1)
    assert not held[:50].any() and 10 <= held[50:100].sum() <= 20
    assert not held[100:].any()  # the class would lose all training images
  # Two large groups: one of them is needed.
  held = hold_out.by_group(['a'] * 30 + ['b'] * 20, np.zeros(50, int), 0.1)
  assert held.tolist() == [False] * 30 + [True] * 20


def test_the_usual_names_of_splits():
  names = {
    'train': ('train', 'Training', 'TRN', 'training_set', 'train-images'),
    'validation': ('val', 'valid', 'validation', 'Dev', 'valid_data'),
    'test': ('test', 'TESTING', 'eval', 'test set'),
    None: ('trains', 'tester', 'devil', 'set', 'images', 'value', ''),
  }
  for split, spellings in names.items():
    for name in spellings:
      assert split_names.part_of(name) == split, name


def test_given_parts_must_not_share_a_group(tmp_path):
  make(tmp_path, 'train/{a,b}/3', 'test/{a,b}/2')
  with pytest.raises(ValueError, match=r'4 group.* in train and in test'):
    list_images(tmp_path, False, group_by=r'([ab]\d)\.png')


@pytest.mark.parametrize(
  'name, facts',
  [
    ('photos.zip', ['python -m zipfile -e photos.zip photos']),
    ('my photos.tar.gz', ["mkdir 'my photos' && tar -xf 'my photos.tar.gz'"]),
    ('labels.csv', ['config.labels=labels.csv']),
    ('gs://bucket/birds', ['gcloud storage cp -r gs://bucket/birds .']),
    ('https://x.org/birds', ['from a local disk']),
    ('/no/such/folder', ['no such folder']),
    ('photo.xyz', ['a file, not a folder']),
    ('my photos', ['is no folder here', 'current folder']),
  ],
)
def test_names_that_are_no_folders(tmp_path, monkeypatch, name, facts):
  monkeypatch.chdir(tmp_path)
  if '.' in name and not {'/', ':'} & set(name):
    (tmp_path / name).touch()
  settings = data_settings.DataSettings(name, (8, 8))
  with pytest.raises(ValueError) as error:
    sources.get_sources(settings)
  for fact in facts:
    assert fact in str(error.value)
  assert archives.unpack_command('a.jpg') is None


def test_a_folder_with_the_name_of_a_built_in_dataset(tmp_path, monkeypatch):
  make(tmp_path / 'digits', '{a,b}/10')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r'config.dataset=\./digits .*rename'):
    sources.get_sources(data_settings.DataSettings('digits', (8, 8)))
