import csv
import os
import shutil

import numpy as np
from PIL import Image
import pytest

from vit_jax.checkpoint import trained_model
from vit_jax.commands import embed
from vit_jax.inference import embedding
from vit_jax.inference import embedding_file
from vit_jax.inference import feature_files
from vit_jax.inference import image_features
from vit_jax.inference import inputs
from vit_jax.inference import loaded_model


@pytest.fixture(name='photos', scope='module')
def fixture_photos(tmp_path_factory):
  """Returns a folder with 18 images and 2 damaged files."""
  folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
  for i in range(20):
    pixels = rng.integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{i:02}.png')
  for i in (3, 19):
    (folder / f'{i:02}.png').write_bytes(b'not an image')
  return folder


@pytest.fixture(name='trained', scope='module')
def fixture_trained(finished_run):
  return trained_model.load_model(finished_run.workdir)


def test_features_are_those_of_the_model_and_parts_continue(
  finished_run, photos, tmp_path, monkeypatch, capsys
):
  out, model = tmp_path / 'f.npz', loaded_model.load(finished_run.workdir)
  args = [finished_run.workdir, str(photos), f'--out={out}', '--batch=8']
  batches, read = inputs.batches, []

  def interrupted(paths, *rest):
    read.append(len(paths))
    for number, batch in enumerate(batches(paths, *rest)):
      if number == 2 and len(read) == 1:
        raise KeyboardInterrupt
      yield batch

  monkeypatch.setattr(inputs, 'batches', interrupted)
  with pytest.raises(SystemExit) as ended:
    embed.main(args)
  assert ended.value.code == 130
  # The second batch was being computed. The first has images 0 to 8 but 3.
  assert 'stopped after 9 of 20 images' in capsys.readouterr().err
  assert not out.exists() and os.path.isdir(f'{out}.parts')

  assert embed.main([*args, '--nearest=2']) == 1
  assert read == [20, 11]
  shown = capsys.readouterr().err
  assert '2 of 20 images could not be decoded' in shown
  assert '03.png: not an image' in shown and '19.png: not an im' in shown
  assert not os.path.exists(f'{out}.parts')
  with np.load(out) as stored:
    assert 'label' not in stored
    files, features = stored['file'].tolist(), stored['feature']
  assert [os.path.basename(x)[:2] for x in files] == [
    f'{i:02}' for i in range(20) if i not in (3, 19)
  ]
  np.testing.assert_allclose(features, model.features(files), atol=1e-6)

  units = features / np.linalg.norm(features, axis=1, keepdims=True)
  cosines = units @ units.T - 9 * np.eye(18)
  with open(f'{out}.nearest.csv', newline='', encoding='utf-8') as file:
    header, *rows = csv.reader(file)
  assert header == ['file', 'file_1', 'cosine_1', 'file_2', 'cosine_2']
  for row, values in zip(rows, cosines, strict=True):
    best = np.argsort(-values)[:2]
    assert row[1::2] == [files[i] for i in best]
    np.testing.assert_allclose(
      [float(x) for x in row[2::2]], values[best], atol=2e-6
    )

  assert embed.main(args) == 1  # the images are still damaged
  assert 'nothing is computed' in capsys.readouterr().err
  embed.main([*args, '--features=mean'])
  assert read == [20, 11, 18, 20]  # 18: of the model. Nothing is kept.


def test_kinds_of_features(trained, photos):
  """The mean of the grid is the input of this head (classifier gap)."""
  pixels = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3))
  pixels = pixels.astype(np.float32)
  found = {
    kind: image_features.make(trained.model, kind)(trained.params, pixels)
    for kind in ('head', 'mean', 'grid')
  }
  assert found['grid'].shape == (2, 2, 3, 12)
  means = np.asarray(found['grid']).mean((1, 2))
  np.testing.assert_allclose(found['mean'], means, atol=1e-6)
  np.testing.assert_allclose(found['head'], means, atol=1e-6)
  model = trained.model.clone(classifier='token', num_registers=2)
  params = model.init({'params': _key()}, pixels, train=False)['params']
  params['head']['kernel'] = np.ones_like(params['head']['kernel'])
  head, token, mean = (
    image_features.make(model, kind)(params, pixels)
    for kind in ('head', 'token', 'mean')
  )
  np.testing.assert_array_equal(head, token)
  patches = model.clone(classifier='gap', class_token=True, num_classes=0)
  del params['head']
  np.testing.assert_allclose(
    mean, patches.apply({'params': params}, pixels, train=False), atol=1e-6
  )


def _key():
  import jax

  return jax.random.key(0)


@pytest.mark.parametrize('kind', ['head', 'grid'])
def test_parquet_has_the_same_features_as_npz(tmp_path, kind):
  pytest.importorskip('pyarrow')
  shape = {'head': (5,), 'grid': (2, 3, 5)}[kind]
  folder, rng = str(tmp_path / 'parts'), np.random.default_rng(0)
  feature_files.use_folder(folder, {}, [embedding.SPLIT])
  decoded = np.array([1, 0, 1, 1, 0, 1, 1], bool)
  features = rng.normal(size=(7, *shape)).astype(np.float32)
  for first, end in ((0, 3), (3, 7)):
    rows = slice(first, end)
    with feature_files.Writer(folder, embedding.SPLIT, first) as writer:
      writer.add(
        {
          'feature': features[rows],
          'label': np.arange(7)[rows],
          'decoded': decoded[rows],
        }
      )
  names = [f'{x}.png' for x in 'abcdefg']
  for suffix in embedding_file.SUFFIXES:
    path = str(tmp_path / f'f{suffix}')
    assert embedding_file.write(path, folder, names, {'a': [1]}) == [1, 4]
    assert embedding_file.origin_of(path) == {'a': [1]}
    found = embedding_file.read(path)
    assert found['file'].tolist() == [
      x for x, is_read in zip(names, decoded, strict=True) if is_read
    ]
    np.testing.assert_array_equal(found['feature'], features[decoded])
  table = __import__('pyarrow.parquet').parquet.read_table(path)
  assert table['label'].to_pylist() == [0, 2, 3, 5, 6]


def test_a_dataset_has_labels(finished_run, tmp_path):
  out = tmp_path / 'f.npz'
  args = [finished_run.workdir, f'--dataset={finished_run.photos}']
  assert embed.main([*args, '--split=train', f'--out={out}']) == 0
  with np.load(out) as stored:
    paths = stored['file'].tolist()
    labels, features = stored['label'], stored['feature']
  files = (finished_run.photos / 'train').rglob('*.png')
  assert sorted(paths) == sorted(map(str, files))
  model = loaded_model.load(finished_run.workdir)
  np.testing.assert_allclose(features, model.features(paths), atol=1e-5)
  folders = [os.path.basename(os.path.dirname(x)) for x in paths]
  assert [model.class_names[i] for i in labels] == folders


@pytest.mark.parametrize(
  'args, message',
  [
    ([], 'There are no images'),
    (['{photos}', '--dataset=digits'], 'cannot be combined'),
    (['{photos}', '--features=token'], 'has no class token'),
    (['{photos}', '--features=grid', '--nearest=1'], '--features=grid'),
    (['{photos}', '--nearest=20'], '--nearest=20 needs more than 20 images'),
    (['{photos}', '--out=f.csv'], '--out=f.csv must end in .npz or .parquet'),
    (['{photos}', '--out=no/f.npz'], 'the folder no does not exist'),
    (['--list=no.txt'], 'no.txt: No such file'),
  ],
)
def test_mistakes(
  finished_run, photos, tmp_path, monkeypatch, capsys, args, message
):
  monkeypatch.chdir(tmp_path)
  args = [arg.format(photos=photos) for arg in args]
  with pytest.raises(SystemExit) as ended:
    embed.main([finished_run.workdir, '--out=f.npz', *args])
  assert ended.value.code == 2
  assert message in capsys.readouterr().err.splitlines()[-1]
  assert not os.path.exists('f.npz')


def test_the_list_and_other_images_give_other_features(
  finished_run, photos, tmp_path
):
  copy = shutil.copytree(photos, tmp_path / 'copy')
  (tmp_path / 'list.txt').write_text(f'{copy}/04.png\n\n{copy}/00.png\n')
  out = tmp_path / 'f.npz'
  args = [finished_run.workdir, f'--list={tmp_path}/list.txt', f'--out={out}']
  assert embed.main(args) == 0
  before = embedding_file.read(str(out))
  assert before['file'].tolist() == [f'{copy}/04.png', f'{copy}/00.png']
  os.replace(copy / '05.png', copy / '00.png')
  assert embed.main(args) == 0
  after = embedding_file.read(str(out))['feature']
  np.testing.assert_array_equal(after[0], before['feature'][0])
  assert (after[1] != before['feature'][1]).any()


def test_the_nearest_image_needs_another_image(finished_run, tmp_path, capsys):
  for i in range(3):
    (tmp_path / f'{i}.png').write_bytes(b'not an image')
  args = [finished_run.workdir, str(tmp_path), f'--out={tmp_path}/f.npz']
  with pytest.raises(SystemExit):
    embed.main([*args, '--nearest=1'])
  assert 'has the features of 0 image(s)' in capsys.readouterr().err
