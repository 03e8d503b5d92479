import functools
import shutil
import sys

import jax
import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests import tiny_lit
from vit_jax import models
from vit_jax.checkpoint import weights_file
from vit_jax.data import preprocess
from vit_jax.inference import lit_embeddings

TEXTS = ['a photo of a cat', 'the dog', 'x', 'running', 'he was on the beach']


@pytest.mark.parametrize('kind', ['bert', 'transformer'])
def test_embeddings_equal_the_model_for_any_batch_size(
  kind, tmp_path, monkeypatch
):
  name, weights = tiny_lit.save(monkeypatch, kind, tmp_path)
  lit = lit_embeddings.load(name, weights)
  images = reference.images()[:, :, :, ::-1]
  zimg, ztxt, _ = jax.jit(models.get_model(name).apply)(
    {'params': tiny_lit.params(name)},
    images=images,
    tokens=lit.tokenize(TEXTS).numpy(),
  )
  np.testing.assert_allclose(
    lit_embeddings.embed_images(lit, images, batch=3), zimg, atol=1e-4
  )
  for batch in (2, 64):
    np.testing.assert_allclose(
      lit_embeddings.embed_texts(lit, TEXTS, batch), ztxt, atol=1e-4
    )
  np.testing.assert_allclose(np.linalg.norm(ztxt, axis=-1), 1, atol=1e-6)
  assert np.abs(ztxt[:, None] - ztxt).max(-1)[~np.eye(5, dtype=bool)].min() > (
    1e-3
  )  # the texts do differ


def test_nothing_to_embed_is_an_error(tmp_path, monkeypatch):
  lit = lit_embeddings.load(*tiny_lit.save(monkeypatch, 'bert', tmp_path))
  with pytest.raises(ValueError, match='no texts'):
    lit_embeddings.embed_texts(lit, [])
  with pytest.raises(ValueError, match=r'\[2, 32, 32, 3\].* 224 x 224 pixels'):
    lit_embeddings.embed_images(lit, np.zeros((2, 32, 32, 3)))


def test_published_names_and_a_vocabulary_in_another_folder(
  tmp_path, monkeypatch
):
  """The mirror of the bucket is a local folder here."""
  mirror = tmp_path / 'vit_models/lit'
  mirror.mkdir(parents=True)
  name, path = tiny_lit.save(monkeypatch, 'bert', mirror)
  load = functools.partial(lit_embeddings.load, sources=[str(tmp_path)])
  expected = lit_embeddings.embed_texts(load(name), TEXTS)
  moved = shutil.copy(path, tmp_path / 'mine.npz')  # without a vocabulary
  for args in (('lit-b16b', moved), (name, path, str(mirror / f'{name}.txt'))):
    np.testing.assert_array_equal(
      lit_embeddings.embed_texts(load(*args), TEXTS), expected
    )
  by_hand = lit_embeddings.load(name, moved, folder=mirror, sources=())
  np.testing.assert_array_equal(
    lit_embeddings.embed_texts(by_hand, TEXTS), expected
  )
  (mirror / f'{name}.txt').unlink()
  with pytest.raises(ValueError, match=f'no weights found for .{name}.txt'):
    load(name, path)


def test_files_that_cannot_be_loaded(tmp_path, monkeypatch):
  name, weights = tiny_lit.save(monkeypatch, 'transformer', tmp_path)
  other, other_weights = tiny_lit.save(monkeypatch, 'bert', tmp_path)
  shutil.copy(tiny_lit.VOCABULARIES['bert'], tmp_path / 'short.txt')
  with open(tmp_path / 'short.txt', 'a', encoding='utf-8') as file:
    file.write('\nvitjax')
  vit = str(tmp_path / 'vit.npz')
  weights_file.save(vit, {'head': {'kernel': np.zeros((2, 3))}})
  damaged = str(tmp_path / 'damaged.npz')
  tree = tiny_lit.params(other)
  tree['txt']['head']['bias'] = np.zeros(3)
  weights_file.save(damaged, tree)
  words = str(tiny_lit.VOCABULARIES['bert'])
  for args, message in (
    (('LiT-B17', weights), "'LiT-B17'.* LiT-B16B"),
    (('ViT-B_16', weights), 'ViT-B_16 has no text tower. .*: LiT-'),
    ((name, 'nowhere.npz'), "no weights found for 'nowhere.npz'"),
    ((name, weights, words), r'bert_vocab.txt .* LiT-L16Ti. .* \.model '),
    (
      (other, other_weights, str(tmp_path / 'short.txt')),
      'short.txt has 254 pieces, .* 253',
    ),
    ((other, vit, words), 'vit.npz has no text tower'),
    (
      (other, weights, words),
      f'{name}.npz .* not .*weights of {other}, but of {name}',
    ),
    (
      (other, damaged, words),
      r'of LiT-B16B:\n  txt/head/bias: \(3,\) in the file, \(8,\) in the',
    ),
  ):
    with pytest.raises(ValueError, match=message):
      lit_embeddings.load(*args)


def test_the_missing_library_is_named(tmp_path, monkeypatch):
  name, weights = tiny_lit.save(monkeypatch, 'bert', tmp_path)
  monkeypatch.setitem(sys.modules, 'tensorflow_text', None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[text\]'"):
    lit_embeddings.load(name, weights)


def test_images_are_prepared_as_for_lit(tmp_path):
  path = reference.JPEGS / '1_200x300.jpg'
  image = lit_embeddings.read_image(path)
  np.testing.assert_array_equal(
    image, preprocess.for_lit(tf.constant(path.read_bytes()))
  )
  assert image.shape == (224, 224, 3)
  (tmp_path / 'text.jpg').write_text('no image')
  with pytest.raises(ValueError, match='text.jpg: .* cannot be decoded'):
    lit_embeddings.read_image(tmp_path / 'text.jpg')
  with pytest.raises(ValueError, match='nowhere.jpg: .* no such image'):
    lit_embeddings.read_image('nowhere.jpg')


def test_one_compilation_serves_all_batches(tmp_path, monkeypatch):
  lit = lit_embeddings.load(*tiny_lit.save(monkeypatch, 'bert', tmp_path))
  lit_embeddings.embed_texts(lit, TEXTS[:1], batch=4)
  with jax.no_tracing():
    lit_embeddings.embed_texts(lit, TEXTS + TEXTS, batch=4)
