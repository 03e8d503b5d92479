"""The command `look`: its files, and what it cannot draw."""

import os
import re

import jax
import numpy as np
from PIL import Image
import pytest

from tests.tiny_model import make_vit
from vit_jax import checkpoint
from vit_jax import models
from vit_jax.checkpoint import trained_model
from vit_jax.commands import look
from vit_jax.figures import attention_maps
from vit_jax.figures import catalog
from vit_jax.figures import neighbors
from vit_jax.figures import photo_figures
from vit_jax.inference import loaded_model


@pytest.fixture(name='run', scope='module')
def fixture_run(finished_run):
  return finished_run.workdir


@pytest.fixture(name='photos', scope='module')
def fixture_photos(finished_run):
  return sorted(map(str, (finished_run.photos / 'test').rglob('*.png')))


def error_of(args, capsys):
  with pytest.raises(SystemExit) as ended:
    look.main(args)
  assert ended.value.code == 2
  return capsys.readouterr().err.splitlines()[-1]


def test_the_names_are_those_of_the_catalog():
  assert look._OF_PHOTOS == catalog.OF_PHOTOS
  assert look._OF_PARAMETERS == catalog.OF_PARAMETERS
  assert look._OF_IMAGES == catalog.OF_IMAGES
  page = look.make_parser().format_help()
  rows = re.findall(r'^  (\w+)  +\w', page.split('Exit status')[0], re.M)
  assert set(catalog.NAMES) <= set(rows)


def test_figures_of_photos_and_their_numbers(run, photos, tmp_path, capsys):
  """The model has classifier gap and 2 x 3 patches of 4 pixels."""
  other = tmp_path / 'other' / os.path.basename(photos[0])
  other.parent.mkdir()
  other.write_bytes(open(photos[4], 'rb').read())
  pair, out = [photos[0], str(other)], tmp_path / 'out' / 'deep'
  assert look.main([run, *pair, f'--out={out}']) == 0
  shown = capsys.readouterr().err
  assert "skipped: figures=attention: a model with classifier='gap'" in shown
  stem = os.path.basename(photos[0])[:-4]
  names = {
    f'{title}_{name}'
    for title in (stem, f'{stem}_2')
    for name in ('rollout', 'relevance', 'features', 'similarity')
  }
  assert {p.stem for p in out.iterdir()} == names
  for name in names:
    assert f'{out}/{name}.png\n' in shown
    assert Image.open(out / f'{name}.png').size[0] > 300
  model = loaded_model.load(run)
  probabilities = model.predict(pair)
  images = neighbors.read(model, pair)
  rollout = photo_figures.reduce(model, images, attention_maps.rollout)
  for i, title in enumerate((stem, f'{stem}_2')):
    stored = np.load(out / f'{title}_rollout.npz')
    np.testing.assert_allclose(stored['rollout'], rollout[i], atol=1e-6)
    stored = np.load(out / f'{title}_relevance.npz')
    assert stored['class'] == probabilities[i].argmax()
    assert stored['name'] == model.class_names[stored['class']]
    stored = np.load(out / f'{title}_similarity.npz')
    assert stored['similarity'][tuple(stored['patch'])] == pytest.approx(1)


def test_another_class_and_the_attention_of_a_patch(run, photos, tmp_path):
  args = [run, photos[0], f'--out={tmp_path}', '--patch=1,2']
  assert (
    look.main([*args, '--figures=relevance,attention', '--class=moss']) == 0
  )
  stem = os.path.basename(photos[0])[:-4]
  trained = trained_model.load_model(run)
  images = neighbors.read(trained, photos[:1])
  last = photo_figures.reduce(trained, images, attention_maps.last_block)
  stored = np.load(tmp_path / f'{stem}_attention.npz')['attention']
  np.testing.assert_allclose(stored, last['patches'][0, :, 5], atol=1e-6)
  assert stored.shape == (3, 2, 3)
  found = np.load(tmp_path / f'{stem}_relevance.npz')
  assert (found['name'], found['class']) == ('moss', 1)
  expected = photo_figures.reduce(
    trained, images, attention_maps.relevance, np.array([1])
  )
  np.testing.assert_allclose(found['relevance'], expected[0], atol=1e-6)


def test_figures_of_the_weights_and_of_many_images(
  run, photos, finished_run, tmp_path, capsys
):
  args = [run, f'--images={finished_run.photos}/test', f'--out={tmp_path}']
  assert look.main([*args, '--count=7']) == 0
  names = {*catalog.OF_PARAMETERS, *catalog.OF_IMAGES}
  assert {p.stem for p in tmp_path.iterdir()} == names
  trained = trained_model.load_model(run)
  chosen = neighbors.read(trained, [photos[i * 30 // 7] for i in range(7)])
  expected = photo_figures.reduce(trained, chosen, attention_maps.distance)
  found = np.load(tmp_path / 'attention_distance.npz')
  expected = [x.mean(0) for x in expected]
  np.testing.assert_allclose(found['distance'], expected, rtol=1e-5)
  cka = np.load(tmp_path / 'cka.npz')['cka']
  np.testing.assert_allclose(np.diag(cka), 1)
  assert np.load(tmp_path / 'norms.npz')['block_0'].shape == (7, 6)
  args += ['--renormalize', '--figures=attention_distance', '--count=7']
  assert look.main(args) == 0
  same = np.load(tmp_path / 'attention_distance.npz')['distance']
  np.testing.assert_allclose(same, found['distance'], rtol=1e-5)  # gap


def test_the_nearest_files(run, photos, finished_run, tmp_path):
  args = [
    run,
    photos[3],
    f'--images={finished_run.photos}',
    f'--out={tmp_path}',
  ]
  assert look.main([*args, '--figures=nearest']) == 0
  (table,) = tmp_path.glob('*.npz')
  found = np.load(table)
  model = loaded_model.load(run)
  every = sorted(map(str, finished_run.photos.rglob('*.png')))
  every.remove(photos[3])
  x = model.features([photos[3], *every])
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  cosines = x[1:] @ x[0]
  best = np.argsort(-cosines)[:5]
  assert found['path'].tolist() == [every[i] for i in best]
  np.testing.assert_allclose(found['cosine'], cosines[best], atol=1e-5)


@pytest.mark.parametrize(
  'args, message',
  [
    (['--figures=rolout'], "'rolout' is not a figure (did you mean rollout?)"),
    (['--figures=rollout'], '--figures=rollout needs photos'),
    (['--figures=cka'], '--figures=cka needs many images. Use --images='),
    (['{photo}', '--figures=nearest'], '--figures=nearest needs many images'),
    (['--class=moss'], '--class has no effect on the figures filters'),
    (['{photo}', '--figures=filters'], 'The photo has no effect'),
    (['{photo}', '--patch=5'], '--patch=5 is not ROW,COLUMN'),
    (['{photo}', '--patch=2,0'], '--patch=2,0 is outside of the 2 x 3 patches'),
    (['{photo}', '--class=mos'], '--class=mos is not a class of'),
    (['{photo}', '--figures=attention'], 'Use --patch=ROW,COLUMN'),
    (['no.png'], 'no.png: no such file'),
    (['{photo}', '--out={photo}'], 'cannot be written: it is a file'),
  ],
)
def test_mistakes(run, photos, tmp_path, monkeypatch, capsys, args, message):
  monkeypatch.chdir(tmp_path)
  args = [arg.format(photo=photos[0]) for arg in args]
  assert message in error_of([run, *args], capsys)
  assert not os.path.exists('figures') or not os.listdir('figures')


def trained_of(model, size=(32, 24), **settings):
  return trained_model.TrainedModel(
    source='w', name='n', settings={}, model=model, params={}, image_size=size,
    trained_size=size, class_names=None, **settings,
  )  # fmt: skip


MIXER = models.get_model('mixer-b16', num_classes=3)
BIT = models.BitResNet(num_classes=3, num_units=(1,), width_factor=1)


@pytest.mark.parametrize('name', catalog.NAMES)
def test_what_a_model_cannot_have_is_an_error(name):
  def reason(model, options=catalog.DEFAULT, **settings):
    try:
      catalog.check(trained_of(model, **settings), name, options)
    except ValueError as error:
      return str(error)

  needs_attention = (
    *('rollout', 'attention', 'relevance', 'attention_distance'),
  )
  for model, kind in ((MIXER, 'MlpMixer'), (BIT, 'BitResNet')):
    if name in (*needs_attention, 'positions'):
      assert reason(model).startswith(f'figures={name}: {kind} has no')
    else:
      assert reason(model) is None
  found = reason(make_vit(num_classes=3, fractal_columns=2))
  if name in (*needs_attention, 'norms', 'cka'):
    assert 'fractal_columns=2' in found
  else:
    assert found is None
  found = reason(make_vit(positions='none'))
  assert bool(found) == (name in ('relevance', 'positions'))
  assert reason(make_vit(num_classes=3, classifier='map')) is None
  found = reason(make_vit(num_classes=2), output='identity')
  assert bool(found) == (name == 'relevance')
  options = catalog.Options(patch=(4, 0))
  found = reason(make_vit(num_classes=3), options)
  assert bool(found) == (name in ('attention', 'similarity'))


def test_weights_of_a_mixer(tmp_path, photos, capsys):
  model = models.MlpMixer(3, 16, 8, 1, 4, 8)
  images = np.zeros((1, 32, 32, 3), np.float32)
  params = model.init(jax.random.key(0), images, train=False)['params']
  path = str(tmp_path / 'mixer.npz')
  checkpoint.save(path, params)
  args = [path, photos[0], '--model=mixer-b16', f'--out={tmp_path}']
  sizes = {'hidden_size': 8, 'num_layers': 1, 'tokens_mlp_dim': 4, 'mlp_dim': 8}
  args += [f'--config.model.{name}={x}' for name, x in sizes.items()]
  message = error_of([*args, '--figures=features,rollout'], capsys)
  assert 'figures=rollout: MlpMixer has no attention weights' in message
  assert not list(tmp_path.glob('*.png'))
