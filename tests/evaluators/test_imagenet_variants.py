"""Accuracy on variants of ImageNet, in prepared small folders."""

import io
import json
import tarfile
import types

import jax
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from tests import reference
from vit_jax import base_config
from vit_jax import models
from vit_jax.checkpoint import trained_model
from vit_jax.commands import evaluate
from vit_jax.data import class_names
from vit_jax.evaluators import imagenet
from vit_jax.export import formats
from vit_jax.run.start import named_evaluators

IDS = class_names.imagenet_ids(1000)
RNG = np.random.default_rng(0)


@pytest.fixture(name='model', scope='module')
def fixture_model():
  """Returns a tiny classifier of ImageNet, and a function for its logits."""
  settings = dict(patch_size=4, hidden_size=8, num_heads=2, num_layers=1)
  module = models.get_model('testing', num_classes=1000, **settings)
  params = reference.params_like(reference.initial_params(module, (8, 8)))
  found = trained_model.TrainedModel(
    'w', 'testing', settings, module, params, (8, 8), (8, 8), None
  )
  apply = jax.jit(lambda x: module.apply({'params': params}, x, train=False))
  return found, lambda pixels: np.asarray(apply(pixels / 127.5 - 1))


def write(folder, names):
  """Writes an image for each path; returns the pixels [N, 8, 8, 3]."""
  pixels = RNG.integers(0, 255, (len(names), 8, 8, 3), np.uint8)
  for name, image in zip(names, pixels, strict=True):
    path = folder / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  return pixels


def measure(model, folder, tmp_path, **options):
  config = base_config.for_dataset(str(folder))
  config.pp.crop = config.batch_eval = 8
  base_config.add_evaluator(config, 'set', 'imagenet', **options)
  found = named_evaluators.measure_trained(config, str(tmp_path), model)
  return [found[f'{x}_set'] for x in ('accuracy', 'top_5', 'count')]


def expected(logits, right):
  """Returns what `measure` returns, of rows [N, K] of right classes."""
  best = np.argsort(-logits, axis=1)
  hits = np.take_along_axis(right, best[:, :5], axis=1)[right.any(1)]
  return pytest.approx([hits[:, 0].mean(), hits.any(1).mean(), len(hits)])


def test_only_the_200_classes_of_a_compete(model, tmp_path):
  trained, logits_of = model
  wanted = np.sort(RNG.permutation(1000)[:200])
  pixels = write(tmp_path / 'a/test', [f'{IDS[k]}/1' for k in wanted])
  logits = logits_of(pixels)[:, wanted]
  found = measure(trained, tmp_path / 'a', tmp_path, variant='a')
  assert found == expected(logits, np.eye(200, dtype=bool))
  with pytest.raises(ValueError, match='ImageNet-sketch has 1000 .* has 200'):
    measure(trained, tmp_path / 'a', tmp_path, variant='sketch')


def test_the_200_classes_are_found_among_the_1000_names_of_tfds(model):
  trained, _ = model
  wanted = np.sort(RNG.permutation(1000)[:200])
  sources = {'test': types.SimpleNamespace(labels=np.repeat(wanted, 2))}
  data = types.SimpleNamespace(
    class_names=class_names.readable(IDS),
    settings=types.SimpleNamespace(dataset='imagenet_r'),
    sources=sources,
  )
  arguments = 'r', '', trained.class_names, 1000, data, 'test', 'w'
  allowed, competes = imagenet.allowed_classes(*arguments)
  np.testing.assert_array_equal(np.flatnonzero(competes), wanted)
  np.testing.assert_array_equal(allowed[wanted], np.eye(1000)[wanted])
  sources['test'].labels = wanted[:150]
  with pytest.raises(ValueError, match='imagenet_r has 150. Use the complete'):
    imagenet.allowed_classes(*arguments)
  sources['test'].labels = None
  with pytest.raises(ValueError, match='Raise config.in_memory_bytes'):
    imagenet.allowed_classes(*arguments)


@pytest.mark.parametrize(
  'variant', ['v2', pytest.param('sketch', marks=pytest.mark.slow)]
)
def test_numbers_and_ids_are_the_1000_classes(variant, model, tmp_path):
  trained, logits_of = model
  names = [str(i) for i in range(1000)] if variant == 'v2' else IDS
  pixels = write(tmp_path / 'set/test', [f'{name}/1' for name in names])
  logits = logits_of(pixels)
  found = measure(trained, tmp_path / 'set', tmp_path, variant=variant)
  assert found == expected(logits, np.eye(1000, dtype=bool))


def test_an_answer_can_be_any_label_of_real(model, tmp_path):
  trained, logits_of = model
  names = [f'ILSVRC2012_val_{i:08d}' for i in range(1, 31)]
  logits = logits_of(write(tmp_path / 'val', names))
  right, lists = np.zeros((30, 1000), bool), []
  for i in range(30):
    labels = [int(x) for x in RNG.integers(0, 1000, 3)]
    labels += [int(logits[i].argmax())] * (i % 2)
    labels = sorted({*labels}) if i % 5 else []
    right[i, labels] = True
    lists.append(labels)
  (tmp_path / 'real.json').write_text(json.dumps(lists))
  found = measure(
    *(trained, tmp_path / 'val', tmp_path),
    **dict(variant='real', labels=str(tmp_path / 'real.json')),
  )
  assert found[2] == 24 and found == expected(logits, right)


def test_real_is_also_the_tfds_dataset(model, tmp_path, monkeypatch, capsys):
  """A small archive, prepared with the code of TFDS; no label for a fifth."""
  trained, logits_of = model
  right, lists = [], {}
  with tarfile.open(tmp_path / 'ILSVRC2012_img_val.tar', 'w') as archive:
    for i in range(30):
      file = tarfile.TarInfo(f'ILSVRC2012_val_{i + 1:08d}.JPEG')
      content = io.BytesIO()
      pixels = np.full((8, 8, 3), RNG.integers(0, 255, 3), np.uint8)
      Image.fromarray(pixels).save(content, 'JPEG', quality=100)
      file.size = content.tell()
      content.seek(0)
      archive.addfile(file, content)
      best = logits_of(np.asarray(Image.open(content))[None])[0].argmax()
      labels = [*RNG.integers(0, 1000, 3), *[best] * (i % 2)]
      lists[file.name] = [int(x) for x in labels] if i % 5 else []
      right += [best in labels] if i % 5 else []
  builder = tfds.builder_cls('imagenet2012_real')
  # The lists are the only thing that TFDS downloads.
  monkeypatch.setattr(builder, '_get_real_labels', lambda self, _: lists)
  builder(data_dir=tmp_path / 'tfds').download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=tmp_path)
  )
  formats.export(trained, str(tmp_path / 'w.npz'))
  arguments = [
    *(str(tmp_path / 'w.npz'), '--dataset=imagenet2012_real'),
    *(f'--tfds_data_dir={tmp_path}/tfds', '--split=validation', '--batch=8'),
    *('--with=imagenet', '--imagenet.variant=real', f'--workdir={tmp_path}'),
  ]
  capsys.readouterr()
  assert evaluate.main(arguments) == 0
  shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
  assert float(shown['count_imagenet']) == 24 == len(right)
  assert float(shown['accuracy_imagenet']) == pytest.approx(np.mean(right))


def test_objectnet_needs_a_list_of_classes(model, tmp_path):
  trained, logits_of = model
  names = ['chair', 'mug', 'odd']
  logits = logits_of(write(tmp_path / 'set/test', [f'{x}/1' for x in names]))
  best = int(logits[0].argmax())
  mapping = {'chair': [IDS[best], 5], 'mug': [7]}
  path = tmp_path / 'classes.json'
  path.write_text(json.dumps(mapping))
  right = np.zeros((3, 1000), bool)
  right[0, [best, 5]] = right[1, 7] = True
  options = dict(variant='objectnet', labels=str(path))
  found = measure(trained, tmp_path / 'set', tmp_path, **options)
  assert found == expected(logits, right) and found[2] == 2
  path.write_text(json.dumps({'chair': ['n0']}))
  with pytest.raises(ValueError, match="'chair' has 'n0', which is no class"):
    measure(trained, tmp_path / 'set', tmp_path, **options)
  with pytest.raises(ValueError, match='objectnet needs .*labels, a JSON file'):
    measure(trained, tmp_path / 'set', tmp_path, variant='objectnet')


def test_only_competing_logits_can_be_answers():
  logits, labels = np.float32([[0, 3, 1], [2, 1, 0]]), np.array([1, 1])
  allowed = np.array([[0, 0, 1], [1, 0, 0]], bool)
  rows = jax.device_get(
    imagenet.of_rows(logits, labels, allowed, np.array([True, False, True]))
  )
  np.testing.assert_array_equal(rows['right'], [False, True])
