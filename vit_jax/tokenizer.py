"""Texts to token ids, for LiT: BERT word pieces and SentencePiece.

Needs the optional extra: `pip install -e '.[text]'`.
"""

import os

import tensorflow as tf
import tensorflow_text

MAX_TOKENS = 16  # of the published LiT models

_CLS, _UNKNOWN = '[CLS]', '[UNK]'


def make_tokenizer(vocabulary, max_tokens=MAX_TOKENS):
  """Returns the function from texts to ids, int32 [B, max_tokens].

  It takes a text, a list of texts or a string tensor, in a tf.data map too.

  Args:
    vocabulary: path of a BERT vocabulary (`.txt`, a word piece a line), or of a
      SentencePiece model (`.model`).
    max_tokens: longer texts are cut, shorter ones padded.

  Raises:
    ValueError: the file is missing or no vocabulary.
  """
  make = {'.txt': _make_bert, '.model': _make_sentencepiece}.get(
      os.path.splitext(vocabulary)[1])
  if make is None:
    raise ValueError(f'{vocabulary}: a vocabulary ends in .txt (BERT) or .model '
                     '(SentencePiece)')
  if not os.path.isfile(vocabulary):
    raise ValueError(f'{vocabulary}: no such vocabulary')
  tokenize = make(vocabulary, max_tokens)

  def texts_to_ids(texts):
    return tokenize(tf.reshape(tf.convert_to_tensor(texts, tf.string), [-1]))

  return texts_to_ids


def _make_bert(path, max_tokens):
  """[CLS], lower-case word pieces (arXiv 1810.04805), zeros behind."""
  with open(path, encoding='utf-8', newline=None) as file:
    pieces = [line.rstrip('\n') for line in file]
  missing = [piece for piece in (_CLS, _UNKNOWN) if piece not in pieces]
  if missing:
    raise ValueError(f'{path}: not a BERT vocabulary, it lacks '
                     + ' and '.join(missing))
  table = tf.lookup.StaticVocabularyTable(
      tf.lookup.KeyValueTensorInitializer(
          pieces, tf.range(len(pieces), dtype=tf.int64)), num_oov_buckets=1)
  tokenizer = tensorflow_text.BertTokenizer(
      table, lower_case=True, token_out_type=tf.int64)
  cls = pieces.index(_CLS)

  def tokenize(texts):  # [B] -> [B, max_tokens]
    ids = tokenizer.tokenize(texts).merge_dims(1, 2).to_tensor(
        shape=[None, max_tokens - 1])
    first = tf.fill([tf.shape(ids)[0], 1], tf.constant(cls, ids.dtype))
    return tf.cast(tf.concat([first, ids], axis=1), tf.int32)

  return tokenize


def _make_sentencepiece(path, max_tokens):
  """Pieces, then the end-of-sentence id up to and at the last position."""
  with open(path, 'rb') as file:
    model = file.read()
  try:
    tokenizer = tensorflow_text.SentencepieceTokenizer(model)
    with_end = tensorflow_text.SentencepieceTokenizer(model, add_eos=True)
    end = int(with_end.tokenize('')[0])
  except tf.errors.OpError as error:
    raise ValueError(f'{path}: not a SentencePiece model') from error

  def tokenize(texts):  # [B] -> [B, max_tokens]
    ids = tokenizer.tokenize(texts)[:, :max_tokens - 1]
    return ids.to_tensor(end, shape=[None, max_tokens])

  return tokenize
