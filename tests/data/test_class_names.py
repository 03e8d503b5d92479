import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
import tensorflow_datasets as tfds

from tests import ROOT
from vit_jax.data import class_names


def test_the_ids_of_1000_classes_are_in_the_order_of_tfds():
  """The published heads were trained with the label order of TFDS."""
  labels = (
    (pathlib.Path(tfds.__file__).parent / 'datasets/imagenet2012/labels.txt')
    .read_text()
    .split()
  )
  assert class_names.imagenet_ids(1000) == tuple(labels)


@pytest.mark.parametrize(
  'num_classes, place, wordnet_id, name',
  [
    (1000, 0, 'n01440764', 'tench'),
    (1000, 134, 'n02012849', 'crane (wading bird)'),
    (1000, 207, 'n02099601', 'golden retriever'),
    (1000, 281, 'n02123045', 'tabby'),
    (1000, 517, 'n03126707', 'crane (lifting device)'),
    (1000, 638, 'n03710637', 'maillot (tights)'),
    (1000, 639, 'n03710721', 'maillot (swimsuit)'),
    (1000, 999, 'n15075141', 'toilet tissue'),
    (21843, 0, 'n00004475', 'organism'),
    (21843, 2264, 'n02099601', 'golden retriever'),
    (21843, 2397, 'n02123045', 'tabby (tabby cat)'),
    (21843, 9205, 'n03931044', 'picture'),
    (21843, 15027, 'n09859684', 'bleacher'),
    (21843, 21842, 'n15102894', 'knothole'),
  ],
)
def test_well_known_classes(num_classes, place, wordnet_id, name):
  assert class_names.imagenet_ids(num_classes)[place] == wordnet_id
  assert class_names.imagenet(num_classes)[place] == name


@pytest.mark.parametrize('num_classes', [1000, 21843])
def test_every_class_has_its_own_name(num_classes):
  names = class_names.imagenet(num_classes)
  ids = class_names.imagenet_ids(num_classes)
  assert len({name.casefold() for name in names}) == num_classes
  assert len(ids) == num_classes and list(ids) == sorted(set(ids))
  assert all(name == name.strip() and '_' not in name for name in names)


def test_other_heads_have_no_names():
  assert class_names.imagenet(10) is None
  assert class_names.imagenet_ids(21841) is None


def test_an_installed_package_has_the_names(tmp_path):
  for part in ('setup.py', 'pyproject.toml', 'README.md'):
    shutil.copy(ROOT / part, tmp_path)
  shutil.copytree(ROOT / 'vit_jax', tmp_path / 'vit_jax')
  subprocess.run(
    [
      sys.executable,
      '-c',
      'import setuptools.build_meta as build; build.build_wheel(".")',
    ],
    cwd=tmp_path,
    check=True,
    capture_output=True,
  )
  (wheel,) = tmp_path.glob('*.whl')
  with zipfile.ZipFile(wheel) as packed:
    packed.extractall(tmp_path / 'installed')
  code = (
    'from vit_jax.data import class_names; import sys; '
    'assert "installed" in class_names.__file__; '
    'print(class_names.imagenet(1000)[281])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path / 'installed',
    text=True,
    capture_output=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': str(tmp_path / 'installed')},
  )
  assert done.stdout == 'tabby\n'
  assert (
    tmp_path / 'installed/vit_jax/data/imagenet/WORDNET_LICENSE.txt'
  ).is_file()


def test_classes_that_a_mirror_changes():
  digits = tuple(map(str, range(10)))
  assert class_names.mirrored(digits) == list(digits)
  assert class_names.mirrored(('b', 'd', 'cat')) == ['b', 'd']
  assert class_names.mirrored(('x', 'cat', 'dog')) == []
  assert class_names.mirrored(('turn_left', 'upright')) == ['turn_left']
