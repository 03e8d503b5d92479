import json

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from vit_jax.data import tokenizer

FOLDER = reference.DATA / 'tokenizers'
BERT, PIECES = str(FOLDER / 'bert_vocab.txt'), str(FOLDER / 'sp_bpe.model')
EXPECTED = json.loads((FOLDER / 'tokenizers.json').read_text())
LENGTHS = [
  (path, expected, int(length))
  for path, expected in (
    (BERT, EXPECTED['bert']),
    (PIECES, EXPECTED['sentencepiece']['bpe']),
  )
  for length in expected
  if length.isdigit()
]


@pytest.mark.parametrize('path, expected, length', LENGTHS)
def test_ids_equal_the_reference(path, expected, length):
  tokenize = tokenizer.make_tokenizer(path, length)
  ids = tokenize(EXPECTED['texts'])
  assert ids.dtype == tf.int32
  np.testing.assert_array_equal(ids, expected[str(length)])


@pytest.mark.parametrize('path', [BERT, PIECES])
def test_one_text_no_text_and_a_dataset(path):
  tokenize = tokenizer.make_tokenizer(path)
  text = 'a photo of a cat'
  np.testing.assert_array_equal(tokenize(text), tokenize([text]))
  assert tokenize([]).shape == (0, 16)
  dataset = tf.data.Dataset.from_tensor_slices([text]).map(tokenize)
  np.testing.assert_array_equal(next(iter(dataset)), tokenize(text))
  np.testing.assert_array_equal(
    tokenizer.make_tokenizer(path, 1)('x').shape, [1, 1]
  )


def test_a_vocabulary_with_other_line_ends_is_the_same(tmp_path):
  content = (FOLDER / 'bert_vocab.txt').read_text()
  expected = tokenizer.make_tokenizer(BERT)(EXPECTED['texts'])
  for end in ('\r\n', '\n'):
    path = tmp_path / 'vocab.txt'
    path.write_text(content.strip('\n').replace('\n', end) + end, newline='')
    found = tokenizer.make_tokenizer(str(path))(EXPECTED['texts'])
    np.testing.assert_array_equal(found, expected)


def test_files_that_are_not_a_vocabulary(tmp_path):
  (tmp_path / 'a.txt').write_text('a\nb\n[CLS]\n')
  (tmp_path / 'a.model').write_text('nothing of the kind')
  (tmp_path / 'c.txt').write_text('[CLS]\na\n[UNK]\na\n')
  for name, message in (
    ('a.txt', r'a.txt is not a BERT .* \[UNK\]'),
    ('b.txt', 'b.txt.* no such'),
    ('c.txt', "c.txt is not a BERT .*'a' twice"),
    ('a.model', 'a.model is not a SentencePiece'),
    ('a.json', 'a.json .* .txt .* or .model'),
  ):
    with pytest.raises(ValueError, match=message):
      tokenizer.make_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize('path, size', [(BERT, 253), (PIECES, 320)])
def test_a_vocabulary_of_another_size_is_rejected(path, size):
  tokenizer.make_tokenizer(path, vocab_size=size)
  with pytest.raises(ValueError, match=f'{path} has {size} pieces.*model.* 9'):
    tokenizer.make_tokenizer(path, vocab_size=9)
