"""LiT on datasets and tables of captions, with `evaluate`."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from scipy import special

from tests import reference
from tests import tiny_lit
from vit_jax import base_config
from vit_jax.checkpoint import trained_model
from vit_jax.commands import evaluate
from vit_jax.inference import lit_classifier
from vit_jax.inference import lit_embeddings
from vit_jax.parallel import sharding
from vit_jax.run import evaluation
from vit_jax.run import setup
from vit_jax.run.start import lit_evaluators
from vit_jax.run.start import named_evaluators

JPEGS = sorted(reference.JPEGS.glob('[0-3]_*.jpg'))
CLASSES = ('cat', 'fire_truck', 'the_dog')
PROMPTS = ('a photo of a {}.', '{}')
CAPTIONS = [
  ('test/cat/0.jpg', 'a cat'),
  ('test/the_dog/1.jpg', 'the dog'),
  ('test/the_dog/1.jpg', 'fire'),
]


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
  """Path of a folder: 11 test images in 3 classes, one training image each."""
  folder = pathlib.Path(tmp_path) / 'photos'
  for label, name in enumerate(CLASSES):
    for part, count in (('train', 1), ('test', 3 + (label > 0))):
      (folder / part / name).mkdir(parents=True)
      for i in range(count):
        shutil.copy(JPEGS[(i + label) % 4], folder / part / name / f'{i}.jpg')
  return folder


@pytest.fixture(name='model')
def fixture_model(tmp_path, monkeypatch):
  """Returns (name, path of the weights) of a tiny model."""
  return tiny_lit.save(monkeypatch, 'transformer', tmp_path)


def captions(tmp_path):
  """Writes a table; returns its path."""
  rows = ['file,caption', *(f'{file},{text}' for file, text in CAPTIONS)]
  (tmp_path / 'captions.csv').write_text('\n'.join(rows))
  return str(tmp_path / 'captions.csv')


def test_images_of_a_dataset_have_integer_gray_levels(folder):
  config = lit_evaluators.make_config(str(folder), batch_eval=8)
  data = setup.load_data(config, sharding.make_mesh())
  data = lit_evaluators.Towers(None).prepared(data)
  images = [x for batch in data.test() for x in batch['image']]
  paths = sorted((folder / 'test').glob('*/*.jpg'))
  for image, path in zip(images, paths, strict=False):  # a batch is padded
    np.testing.assert_array_equal(image, lit_embeddings.read_image(path))
    np.testing.assert_allclose(
      image * 127.5, np.floor(image * 127.5) + 0.5, atol=1e-4
    )


def test_the_command_gives_the_numbers_of_single_embeddings(
  model, folder, tmp_path, capsys
):
  """Each test image counts once: 11 images, in batches of 8."""
  name, weights = model
  arguments = [
    *(weights, f'--model={name}', f'--dataset={folder}', '--batch=8', '--json'),
    *('--with=zero_shot,retrieval,knn', '--knn.k=1', f'--workdir={tmp_path}'),
    f'--zero_shot.prompts={",".join(PROMPTS)}',
    f'--retrieval.captions={captions(tmp_path)}',
  ]
  assert evaluate.main(arguments) == 0
  found = json.loads(capsys.readouterr().out)

  lit = lit_embeddings.load(name, weights)
  paths = sorted((folder / 'test').glob('*/*.jpg'))
  images = lit_embeddings.embed_images(lit, list(map(str, paths)))
  classes = lit_classifier.embed_classes(
    lit, ['cat', 'fire truck', 'the dog'], PROMPTS
  )
  logits = np.exp(np.float64(lit.params['t'])) * images @ classes.T
  labels = np.array([CLASSES.index(x.parent.name) for x in paths])
  right = logits.argmax(1) == labels
  losses = -special.log_softmax(logits, 1)[np.arange(11), labels]
  assert found['accuracy_zero_shot'] == pytest.approx(right.mean())
  assert found['loss_zero_shot'] == pytest.approx(losses.mean(), rel=1e-4)
  assert found['count'] == 11 and 0 < right.sum() < 11

  train = sorted((folder / 'train').glob('*/*.jpg'))
  near = images @ lit_embeddings.embed_images(lit, list(map(str, train))).T
  assert found['accuracy_k1_knn'] == np.mean(near.argmax(1) == labels)

  owners = [folder / file for file, _ in CAPTIONS]
  zimg = lit_embeddings.embed_images(lit, [str(owners[0]), str(owners[1])])
  ztxt = lit_embeddings.embed_texts(lit, [text for _, text in CAPTIONS])
  best = np.argmax(ztxt @ zimg.T, axis=1)
  expected = np.mean(best == np.array([0, 1, 1]))
  assert found['text_to_image_recall_1_retrieval'] == pytest.approx(expected)
  assert found['images_retrieval'] == 2 and found['captions_retrieval'] == 3


def test_retrieval_needs_no_classes(model, tmp_path):
  (tmp_path / 'photos').mkdir()
  shutil.copy(JPEGS[0], tmp_path / 'photos/a.jpg')
  (tmp_path / 'table.csv').write_text('file,caption\na.jpg,a cat')
  config = lit_evaluators.make_config(str(tmp_path / 'photos'))
  base_config.add_evaluator(
    config, 'texts', 'retrieval', captions=str(tmp_path / 'table.csv')
  )
  lit = lit_embeddings.load(*model)
  found = named_evaluators.measure_lit(config, str(tmp_path), lit, 'LiT')
  assert found['image_to_text_recall_1_texts'] == 1 and 'count' not in found
  config.dataset = 'cifar10'
  with pytest.raises(ValueError, match="a folder .* config.dataset='cifar10'"):
    named_evaluators.measure_lit(config, str(tmp_path), lit, 'LiT')


def test_mistakes_are_found(model, folder, tmp_path):
  lit = lit_embeddings.load(*model)

  def measure(names=None, batch=8):
    config = lit_evaluators.make_config(str(folder), batch_eval=batch)
    base_config.add_evaluator(config, 'texts', 'zero_shot')
    return named_evaluators.measure_lit(
      config, str(tmp_path), lit, 'LiT', names
    )

  with pytest.raises(ValueError, match='2 class names.* has 3'):
    measure(['cat', 'dog'])
  batch = 8 * jax.device_count() + 1
  with pytest.raises(ValueError, match=f'batch_eval={batch} .*multiple of 8'):
    measure(batch=batch)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--dataset=x'], 'no head. Use --with=zero_shot'),
    (['--with=zero_shot'], 'no dataset to evaluate on'),
    (['--dataset=x', '--with=retrieval'], "--retrieval.captions='' must be"),
    (
      ['--dataset=x', '--with=zero_shot', '--zero_shot.prompts=a cat'],
      "--zero_shot.prompts=('a cat',) must be texts with {}",
    ),
    (
      ['--dataset=x', '--with=zero_shot', '--image_size=32'],
      '--image_size=(32, 32) is not used for LiT',
    ),
    (
      ['--dataset=x', '--with=zero_shot', '--zero_shot.prompts=a {}, or a {}.'],
      'for a comma in a prompt, use a list',
    ),
    (
      ['--dataset=x', '--with=retrieval', '--split=validation'],
      '--split=validation is not used for LiT with --with=retrieval',
    ),
    (
      ['--dataset=x', '--with=knn', '--class_names=x.txt'],
      '--class_names=x.txt is not used for LiT with --with=knn',
    ),
    (
      ['--dataset=x', '--with=zero_shot', '--by_class'],
      '--by_class is not used with --with',
    ),
  ],
)
def test_a_mistake_is_one_line(arguments, message, capsys, tmp_path):
  with pytest.raises(SystemExit) as error:
    evaluate.main(['LiT-B16B', f'--workdir={tmp_path}', *arguments])
  text = capsys.readouterr().err
  assert error.value.code == 2 and message in text and text.count('\n') == 1


@pytest.mark.parametrize('kind', ['zero_shot', 'retrieval'])
def test_other_models_have_no_text_tower(kind, finished_run, tmp_path):
  """The error comes before the data are read."""
  config = finished_run.config.copy_and_resolve_references()
  config.dataset = '/nowhere'
  options = {'captions': 'x.csv'} if kind == 'retrieval' else {}
  base_config.add_evaluator(config, 'texts', kind, **options)
  with pytest.raises(ValueError, match="'texts' .* the run has no text tower"):
    setup.check(config)
  message = f"'texts' .*{finished_run.workdir}.* has no text tower"
  trained = trained_model.load_model(finished_run.workdir)
  for measure in (
    lambda: named_evaluators.measure_trained(config, str(tmp_path), trained),
    lambda: evaluation.evaluate_only(config, str(tmp_path), trained=trained),
  ):
    with pytest.raises(ValueError, match=message):
      measure()
