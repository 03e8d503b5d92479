import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import ROOT
import vit_jax
from vit_jax import models
from vit_jax.data import preprocess
from vit_jax.export import formats
from vit_jax.inference import classify
from vit_jax.inference import inputs
from vit_jax.parallel import sharding
from vit_jax.run import setup


@pytest.fixture(name='model', scope='module')
def fixture_model(finished_run):
  return vit_jax.load(finished_run.workdir)


@pytest.fixture(name='batch', scope='module')
def fixture_batch(finished_run):
  return next(setup.get_datasets(finished_run.config).test())


def test_logits_give_the_accuracy_of_the_run(model, finished_run):
  right = []
  data = setup.get_datasets(finished_run.config)
  for batch in data.test():
    hits = model.logits(batch['image']).argmax(-1) == batch['label']
    right += list(hits[batch['mask'] > 0])
  assert np.mean(right) == finished_run.results['accuracy_test']
  assert model.class_names == data.class_names


def test_features_are_the_input_of_the_head(model, batch):
  features = model.features(batch['image'])
  head = model.params['head']
  assert features.shape == (16, 12)
  np.testing.assert_allclose(
    features @ head['kernel'] + head['bias'],
    model.logits(batch['image']),
    atol=1e-6,
  )


@pytest.mark.parametrize('name', ['Mixer-B_32', 'BiT-R50x1'])
def test_features_of_other_architectures(model, name):
  other = models.get_model(name, num_classes=3)
  shapes = jax.eval_shape(
    lambda: other.clone(num_classes=0).init(
      jax.random.key(0), np.zeros((1, 224, 224, 3)), train=False
    )
  )
  assert 'head' not in shapes['params']


def test_numbers_of_images_are_padded_to_powers_of_two():
  sizes = [0, 1, 2, 3, 4, 5, 64, 65, 200]
  padded = [classify.batch_size(size, 128, 1) for size in sizes]
  assert padded == [1, 1, 2, 4, 4, 8, 64, 128, 128]
  assert [classify.batch_size(size, 5, 2) for size in sizes[:6]] == [
    2,
    2,
    2,
    4,
    4,
    6,
  ]


def test_padding_does_not_change_logits_and_features(model, batch):
  images = batch['image']
  for count in (0, 1, 3):
    for function in (model.logits, model.features):
      np.testing.assert_allclose(
        function(images[:count]), function(images)[:count], atol=1e-6
      )


def test_a_second_call_compiles_nothing(model, finished_run, monkeypatch):
  shapes, put_batch = [], classify.sharding.put_batch

  def record(images, mesh):
    shapes.append(images.shape)
    return put_batch(images, mesh)

  monkeypatch.setattr(classify.sharding, 'put_batch', record)
  paths = sorted((finished_run.photos / 'test/moss').glob('*.png'))
  first = model.classify(paths[:1], top=1)
  predict = classify._make_predict_fn(
    model.model, sharding.make_mesh(jax.local_devices()), 1, model.output
  )
  read = inputs.make_read_fn(
    preprocess.for_evaluation, model.image_size, model.decoding
  )
  compiled, traced = (
    predict._cache_size(),
    read.experimental_get_tracing_count(),
  )
  assert model.classify(paths[:1], top=1) == first
  assert predict._cache_size() == compiled > 0
  assert read.experimental_get_tracing_count() == traced > 0
  # One image per device, and not the 64 of the default batch.
  assert {shape[0] for shape in shapes} == {jax.local_device_count()}


def test_classes_of_files_and_of_arrays(model, finished_run, batch):
  paths = sorted((finished_run.photos / 'test/moss').glob('*.png'))[:3]
  found = model.classify(paths, top=2)
  expected = classify.classify(model, [str(p) for p in paths], top=2)
  for answer, prediction in zip(found, expected, strict=True):
    names = [model.class_names[i] for i in prediction.classes]
    assert list(answer) == names
    np.testing.assert_allclose(
      list(answer.values()), prediction.probabilities, rtol=1e-6
    )
  (answer,) = model.classify(batch['image'][:1])
  assert sum(answer.values()) == pytest.approx(1, abs=1e-6)
  assert list(answer.values()) == sorted(answer.values(), reverse=True)
  assert (
    max(answer, key=answer.get)
    == model.class_names[model.logits(batch['image'][:1])[0].argmax()]
  )


def test_an_export_gives_the_same_logits(model, batch, tmp_path):
  formats.export(model, str(tmp_path / 'w.npz'))
  again = vit_jax.load(tmp_path / 'w.npz')
  np.testing.assert_array_equal(
    again.logits(batch['image']), model.logits(batch['image'])
  )


def test_mistakes(model, tmp_path):
  with pytest.raises(ValueError, match=r'\[2, 9, 12, 3\].* 8 x 12 pixels'):
    model.logits(np.zeros((2, 9, 12, 3)))
  (tmp_path / 'a.jpg').write_text('no image')
  with pytest.raises(ValueError, match='1 of 1 images cannot be .*a.jpg'):
    model.classify([tmp_path / 'a.jpg'])
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    vit_jax.lod  # noqa: B018


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
  subprocess.run(
    [
      sys.executable,
      '-c',
      'import sys, vit_jax, vit_jax.checkpoint, vit_jax.data\n'
      'assert not {"jax", "tensorflow", "numpy"} & set(sys.modules)',
    ],
    check=True,
    cwd=ROOT,
  )
