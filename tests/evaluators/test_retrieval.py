"""Recall of retrieval, compared with a loop over sorted similarities."""

import numpy as np
import pytest

from vit_jax.data.folders.labels import captions
from vit_jax.evaluators.metrics import retrieval


def test_recall_is_that_of_sorted_similarities(monkeypatch):
  monkeypatch.setattr(retrieval, '_ROWS', 7)  # in several blocks
  rng = np.random.default_rng(0)
  images, texts = rng.normal(size=(30, 4)), rng.normal(size=(75, 4))
  owners = np.concatenate([np.arange(30), rng.integers(0, 30, 45)])
  texts += images[owners]
  found = retrieval.measure(images, texts, owners)
  for k in (1, 5, 10):
    hits = [
      i in owners[np.argsort(-texts @ image)[:k]]
      for i, image in enumerate(images)
    ]
    assert found[f'image_to_text_recall_{k}'] == pytest.approx(np.mean(hits))
    hits = [
      owner in np.argsort(-images @ text)[:k]
      for text, owner in zip(texts, owners, strict=True)
    ]
    assert found[f'text_to_image_recall_{k}'] == pytest.approx(np.mean(hits))
  assert 0 < found['image_to_text_recall_1'] < 1
  perfect = retrieval.measure(images, images, np.arange(30), ranks=(1,))
  norms = retrieval.measure(
    *(x / np.linalg.norm(images, axis=1)[:, None] for x in (images, images)),
    *(np.arange(30), (1,)),
  )
  assert set(norms.values()) == {1.0} != set(perfect.values())
  equal = retrieval.measure(
    images[:1].repeat(30, 0), texts[:1].repeat(75, 0), owners
  )
  assert set(equal.values()) == {0.0}


def test_captions_are_rows_of_a_table(tmp_path):
  (tmp_path / 'in').mkdir()
  for name in ('in/a.jpg', 'b.png', 'unused.png'):
    (tmp_path / name).write_bytes(b'')
  table = tmp_path / 'captions.csv'
  table.write_text('image,caption\nb.png,"a cat, asleep"\na,dog\nb,two\n')
  paths, texts, owners = captions.read(str(tmp_path), str(table))
  assert paths == [f'{tmp_path}/b.png', f'{tmp_path}/in/a.jpg']
  assert texts == ['a cat, asleep', 'dog', 'two']
  assert owners.tolist() == [0, 1, 0]
  table.write_text('image,caption\nc.png,cat\n')
  with pytest.raises(ValueError, match=r'1 row.* no image in .*: 1 \(c.png\)'):
    captions.read(str(tmp_path), str(table))
  table.write_text('image,label\nb.png,cat\n')
  with pytest.raises(ValueError, match='Name them file and caption'):
    captions.read(str(tmp_path), str(table))
