import os
import shutil

from PIL import Image
import pytest

from tests import reference
from vit_jax import base_config
from vit_jax.data import data_settings
from vit_jax.data import preprocess
from vit_jax.data import sources
from vit_jax.data.folders import folder_source
from vit_jax.data.folders import image_folder
from vit_jax.run import given
from vit_jax.run import run_files
from vit_jax.run import setup
from vit_jax.tasks import classification


def write_images(folder, names, color=0):
  folder.mkdir(parents=True, exist_ok=True)
  for i, name in enumerate(names):
    Image.new('RGB', (8, 6), (color, i, 0)).save(folder / name)


def numbered(count, suffix='.png'):
  return [f'{i}{suffix}' for i in range(count)]


def find(folder, check_images=True, **settings):
  """Returns [{class: paths}] of the parts train, test, validation."""
  found = list_images(folder, check_images, **settings)
  return [
    {
      name: paths
      for label, name in enumerate(found.class_names)
      if (
        paths := [
          path
          for path, own in zip(part.paths, part.labels, strict=True)
          if own == label
        ]
      )
    }
    for part in found.parts.values()
  ]


def list_images(folder, check_images=True, **settings):
  settings = data_settings.DataSettings(str(folder), (8, 8), **settings)
  return folder_source.list_images(settings, str(folder), check_images)


def names_of(part, folder):
  return {
    name: [os.path.relpath(p, folder) for p in paths]
    for name, paths in part.items()
  }


def test_splits_given_by_folders(tmp_path):
  write_images(tmp_path / 'train/dog', ['b.JPG', 'a.jpeg', '.hidden.png'])
  write_images(tmp_path / 'train/cat', ['x.PNG', 'y.webp', 'z.gif', 'u.bmp'])
  write_images(tmp_path / 'test/dog', ['c.jpg'])
  (tmp_path / 'train/dog/notes.txt').write_text('not an image')
  (tmp_path / 'train/.cache').mkdir()
  train, test = find(tmp_path)
  assert names_of(train, tmp_path / 'train') == {
    'cat': ['cat/u.bmp', 'cat/x.PNG', 'cat/y.webp', 'cat/z.gif'],
    'dog': ['dog/a.jpeg', 'dog/b.JPG'],
  }
  assert names_of(test, tmp_path / 'test') == {'dog': ['dog/c.jpg']}


def test_other_names_of_the_splits(tmp_path):
  for part in ('train', 'val'):
    for name in ('a', 'b'):
      write_images(tmp_path / part / name, ['0.png'])
  train, test = find(tmp_path, test_split='val')
  assert len(train) == len(test) == 2
  assert find(tmp_path) == [train, test]


def test_labels_follow_training_if_the_test_split_lacks_a_class(tmp_path):
  # File systems list folders by age, in reverse, or by a hash.
  for name, color in (('b', 20), ('d', 40), ('a', 10), ('c', 30)):
    write_images(tmp_path / 'train' / name, numbered(2), color)
  write_images(tmp_path / 'test/c', ['0.png'], 30)
  config = base_config.for_dataset(str(tmp_path))
  train, test = sources.get_sources(base_config.data_settings(config)).values()
  assert train.class_names == test.class_names == tuple('abcd')
  assert test.read(0)['label'] == 2
  examples = [train.read(i) for i in range(8)]
  assert [int(x['label']) for x in examples] == [0, 0, 1, 1, 2, 2, 3, 3]
  assert [int(preprocess.decode(x['image'])[0, 0, 0]) for x in examples] == [
    10,
    10,
    20,
    20,
    30,
    30,
    40,
    40,
  ]


def test_held_out_images_are_stable(tmp_path):
  for name in ('a', 'b'):
    write_images(tmp_path / name, numbered(200))
  write_images(tmp_path / 'few', numbered(2))
  write_images(tmp_path / 'one', numbered(1))
  train, test = find(tmp_path)
  # Every version of vit_jax must hold out these images: runs can then resume.
  held_out = {
    name: sorted(int(os.path.basename(p)[:-4]) for p in paths)
    for name, paths in test.items()
  }
  assert held_out == {
    'a': [
      19,
      46,
      54,
      55,
      59,
      64,
      70,
      87,
      96,
      97,
      111,
      118,
      123,
      129,
      146,
      148,
      163,
      175,
      192,
    ],
    'b': [
      0,
      16,
      21,
      23,
      25,
      37,
      39,
      41,
      44,
      46,
      54,
      55,
      124,
      128,
      132,
      144,
      146,
      170,
      172,
      174,
      188,
      199,
    ],
    'few': [1],
  }  # a class with two images has one test image
  assert [len(train['few']), len(test['few'])] == [1, 1]
  assert len(train['one']) == 1 and 'one' not in test
  everything = {p for part in (train, test) for v in part.values() for p in v}
  assert len(everything) == 403

  moved = tmp_path.parent / 'moved'
  shutil.copytree(tmp_path, moved)
  write_images(moved / 'a', ['new.png'])
  train_again, test_again = find(moved)
  new = {'new.png'}
  for before, after in ((train, train_again), (test, test_again)):
    for name in ('a', 'b', 'few'):
      names = {os.path.basename(p) for p in after[name]} - new
      assert names == {os.path.basename(p) for p in before[name]}


def test_the_fingerprint_is_of_training_and_test_images(tmp_path):
  """A resumed run must reject other images in any of the two splits."""
  for part in ('train', 'test'):
    for name in ('a', 'b'):
      write_images(tmp_path / part / name, numbered(2))
  config = base_config.for_dataset(str(tmp_path))

  def fingerprint():
    return setup.get_datasets(config).fingerprint

  first = fingerprint()
  assert fingerprint() == first
  (tmp_path / 'test/a/0.png').rename(tmp_path / 'test/a/5.png')
  second = fingerprint()
  (tmp_path / 'train/a/0.png').rename(tmp_path / 'train/a/5.png')
  assert len({first, second, fingerprint()}) == 3


def test_undecodable_images_are_listed_and_skipped(tmp_path, capsys):
  for part in ('train', 'test'):
    for name in ('a', 'b'):
      write_images(tmp_path / part / name, numbered(30))
  (tmp_path / 'train/a/text.jpg').write_text('not an image')
  jpeg = (reference.JPEGS / '1_200x300.jpg').read_bytes()
  (tmp_path / 'test/b/cut.jpg').write_bytes(jpeg[:9000])
  (tmp_path / 'test/b/empty.png').write_bytes(b'')
  (tmp_path / 'test/b/link.png').symlink_to(tmp_path / 'nowhere.png')
  train, test = find(tmp_path)
  log = capsys.readouterr().err
  assert '4 of 124 images' in log
  for name in ('text.jpg', 'cut.jpg', 'empty.png', 'link.png'):
    assert name in log
  assert [len(train['a']), len(test['b'])] == [30, 30]

  with pytest.raises(
    ValueError, match='4 of 124.*text.jpg.*config.max_bad_images=0.02 '
  ):
    find(tmp_path, max_bad_images=0.02)


def test_an_image_in_another_class_is_detected_on_resuming(tmp_path):
  """The class names, their order and the number of images do not change."""
  folder, workdir = tmp_path / 'images', tmp_path / 'run'
  for part in ('train', 'test'):
    write_images(folder / part / 'a', ['0.png', '1.png'])
    write_images(folder / part / 'b', ['2.png', '3.png'])
  config = base_config.for_dataset(str(folder))
  workdir.mkdir()
  data = setup.get_datasets(config)
  task = classification.make(config, data)
  run_files.save(workdir, config, data, task.deployed, given.Given(), None)
  run_files.check_data(workdir, setup.get_datasets(config))
  for part in ('train', 'test'):
    os.rename(folder / part / 'a/1.png', folder / part / 'b/1.png')
    with pytest.raises(ValueError, match='data have changed'):
      run_files.check_data(workdir, setup.get_datasets(config))
    os.rename(folder / part / 'b/1.png', folder / part / 'a/1.png')


@pytest.mark.parametrize(
  'layout, message',
  [
    ([], 'no images in .*train,test}/{class}/image or {class}/image.* .jpg,'),
    (['a/0.png', 'a/1.png'], "only one class, 'a'"),
    (
      ['train/a/0.png', 'train/b/0.png', 'test/a/0.png', 'test/zebra/0.png'],
      'test split .* not in the training split: zebra',
    ),
    (
      ['train/a/0.png', 'train/b/', 'test/a/0.png'],
      'no training images in class b',
    ),
    (
      ['train/a/0.png', 'train/b/0.png', 'test/'],
      'no images in the test split',
    ),
  ],
)
def test_folders_that_cannot_be_used(tmp_path, layout, message):
  for entry in layout:
    if entry.endswith('/'):
      (tmp_path / entry).mkdir(parents=True)
    else:
      write_images((tmp_path / entry).parent, [os.path.basename(entry)])
  with pytest.raises(ValueError, match=message):
    find(tmp_path)


def test_unusual_class_names(tmp_path):
  for name in ('Käse, gerieben', 'a b'):
    write_images(tmp_path / name, numbered(4))
  found = sources.get_sources(
    base_config.data_settings(base_config.for_dataset(str(tmp_path)))
  )
  assert found['train'].class_names == ('Käse, gerieben', 'a b')


@pytest.mark.parametrize('part', ['', 'train'])
@pytest.mark.parametrize(
  'link, target',
  [('a/up', '..'), ('a/self', '.'), ('a/above', '{}'), ('again', '.')],
)
def test_a_link_to_a_folder_that_contains_it_is_not_followed(
  tmp_path, capsys, part, link, target
):
  for other in {part, part and 'test'}:
    for name in ('a', 'b'):
      write_images(tmp_path / 'data' / other / name, numbered(3))
  plain = find(tmp_path / 'data')
  link = tmp_path / 'data' / part / link
  link.symlink_to(target.format(tmp_path))
  (tmp_path / 'data' / part / 'c').symlink_to('c')  # a broken link
  capsys.readouterr()
  assert find(tmp_path / 'data') == plain
  log = capsys.readouterr().err
  assert f'{link} is a link to ' in log and log.count('\n') == 1


def test_a_loop_of_two_links_ends(tmp_path):
  for name in ('a', 'b'):
    write_images(tmp_path / 'data' / name, numbered(10))
  write_images(tmp_path / 'else/where', ['x.png'])
  (tmp_path / 'data/a/out').symlink_to(tmp_path / 'else')
  (tmp_path / 'else/where/back').symlink_to(tmp_path / 'data/a')
  paths = image_folder.images_below(str(tmp_path / 'data/a'))
  assert [os.path.relpath(path, tmp_path / 'data/a') for path in paths] == [
    *numbered(10),
    'out/where/x.png',
  ]


def test_folders_that_link_to_each_other_are_read_quickly(tmp_path):
  """8 linked folders have 8! paths. Each folder is read at most twice."""
  folders = [tmp_path / 'a' / str(i) for i in range(8)]
  for folder in folders:
    write_images(folder, ['x.png'])
    for other in set(folders) - {folder}:
      (folder / f'to{other.name}').symlink_to(other)
  paths = image_folder.images_below(str(tmp_path / 'a'))
  assert len(paths) <= 16
  assert {os.path.realpath(path) for path in paths} == {
    str(folder / 'x.png') for folder in folders
  }


def test_links_to_files_and_folders_elsewhere(tmp_path, capsys):
  for name in ('a', 'b'):
    write_images(tmp_path / 'store' / name, numbered(20))
  (tmp_path / 'data/c').mkdir(parents=True)
  for name in ('a', 'b'):
    (tmp_path / 'data' / name).symlink_to(tmp_path / 'store' / name)
  write_images(tmp_path / 'others', numbered(5))
  for i in range(4):
    (tmp_path / f'data/c/{i}.png').symlink_to(tmp_path / f'others/{i}.png')
  (tmp_path / 'data/c/4.png').hardlink_to(tmp_path / 'others/4.png')
  train, test = find(tmp_path / 'data')
  assert {name: len(train[name] + test[name]) for name in train} == {
    'a': 20,
    'b': 20,
    'c': 5,
  }
  assert not capsys.readouterr().err


@pytest.mark.parametrize('link_to', ['symlink_to', 'hardlink_to'])
@pytest.mark.parametrize(
  'first, second',
  [
    ('train/a', 'test/a'),
    ('train/a', 'train/b'),
    ('test/a', 'test/b'),
    ('train/b', 'test/a'),
  ],
)
def test_a_file_in_two_classes_or_two_splits_is_rejected(
  tmp_path, link_to, first, second
):
  for part in ('train', 'test'):
    for name in ('a', 'b'):
      write_images(tmp_path / part / name, numbered(3))
  getattr(tmp_path / second / '9.png', link_to)(tmp_path / first / '1.png')
  with pytest.raises(ValueError, match='are the same file') as error:
    find(tmp_path)
  assert f'{tmp_path / first}/1.png and ' in str(error.value) or (
    f' and {tmp_path / first}/1.png' in str(error.value)
  )
  assert f'{tmp_path / second}/9.png' in str(error.value)


def test_a_folder_in_two_splits_with_different_names_is_rejected(tmp_path):
  for name in ('a', 'b'):
    write_images(tmp_path / 'train' / name, numbered(3))
  (tmp_path / 'test').symlink_to('train')
  with pytest.raises(ValueError, match='are the same file.*total: 6'):
    find(tmp_path)
  train, test = find(tmp_path, test_split='train')
  assert train == test and len(train['a']) == 3


def test_a_file_twice_in_one_class_counts_once(tmp_path, capsys, monkeypatch):
  for name in ('a', 'b'):
    write_images(tmp_path / 'data' / name, numbered(20))
  plain = find(tmp_path / 'data')
  (tmp_path / 'data/a/link.png').symlink_to('3.png')
  (tmp_path / 'data/a/other.png').hardlink_to(tmp_path / 'data/a/4.png')
  (tmp_path / 'data/a/same').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'elsewhere').symlink_to(tmp_path / 'data/a/deeper')
  write_images(tmp_path / 'data/a/deeper', ['x.png'])
  capsys.readouterr()
  train, test = find(tmp_path / 'data')
  assert sorted(train['a'] + test['a']) == sorted(
    plain[0]['a'] + plain[1]['a'] + [f'{tmp_path}/data/a/deeper/x.png']
  )
  assert (
    f'{tmp_path}/data: 3 path(s) repeat an image' in capsys.readouterr().err
  )

  stat = os.stat
  monkeypatch.setattr(
    os,
    'stat',
    lambda *args, **kwargs: os.stat_result(
      [0 if i == 1 else x for i, x in enumerate(stat(*args, **kwargs))]
    ),
  )
  keys = set(
    map(
      image_folder.identity, image_folder.images_below(str(tmp_path / 'data/a'))
    )
  )
  assert len(keys) == 22  # the two symbolic links add no key
