"""Texts to token ids, for LiT: BERT word pieces and SentencePiece.

Needs the optional extra: `pip install -e '.[text]'`.
"""

from collections.abc import Callable
import os

from vit_jax.data import tensorflow as tf

MAX_TOKENS = 16  # of the published LiT models

_CLS, _UNKNOWN = '[CLS]', '[UNK]'


def make_tokenizer(
  vocabulary: str, max_tokens: int = MAX_TOKENS, vocab_size: int | None = None
) -> Callable:
  """Returns the function from texts to ids, int32 [B, max_tokens].

  It takes a text, a list of texts or a string tensor, in a tf.data map too.

  Args:
    vocabulary: path of a BERT vocabulary (`.txt`, a word piece a line), or of a
      SentencePiece model (`.model`).
    max_tokens: longer texts are cut, shorter ones padded.
    vocab_size: of the model that reads the ids; None is any.

  Raises:
    ValueError: the file is missing, no vocabulary, or of another size; or the
      optional library is missing.
  """
  make = {'.txt': _make_bert, '.model': _make_sentencepiece}.get(
    os.path.splitext(vocabulary)[1]
  )
  if make is None:
    raise ValueError(
      f'{vocabulary}: a vocabulary ends in .txt (BERT) or '
      '.model (SentencePiece)'
    )
  if not os.path.isfile(vocabulary):
    raise ValueError(f'{vocabulary}: no such vocabulary')
  tokenize, num_pieces = make(vocabulary, max_tokens)
  if vocab_size not in (None, num_pieces):
    raise ValueError(
      f'{vocabulary} holds {num_pieces} pieces, the model has '
      f'{vocab_size}: it is the vocabulary of another model'
    )

  def texts_to_ids(texts):
    return tokenize(tf.reshape(tf.convert_to_tensor(texts, tf.string), [-1]))

  return texts_to_ids


def _tensorflow_text():
  try:
    import tensorflow_text
  except ModuleNotFoundError as error:
    raise ValueError(
      'reading texts needs the library tensorflow-text: '
      "pip install -e '.[text]'"
    ) from error
  return tensorflow_text


def _make_bert(path, max_tokens):
  """[CLS], lower-case word pieces (arXiv 1810.04805), zeros behind.

  Returns:
    (the function texts -> ids, the number of pieces in the vocabulary).
  """
  with open(path, encoding='utf-8', newline=None) as file:
    pieces = [line.rstrip('\n') for line in file]
  missing = [piece for piece in (_CLS, _UNKNOWN) if piece not in pieces]
  if missing:
    raise ValueError(
      f'{path}: not a BERT vocabulary, it lacks ' + ' and '.join(missing)
    )
  if len(set(pieces)) < len(pieces):
    repeated = next(p for i, p in enumerate(pieces) if p in pieces[:i])
    raise ValueError(
      f'{path}: not a BERT vocabulary, it lists {repeated!r} twice'
    )
  table = tf.lookup.StaticVocabularyTable(
    tf.lookup.KeyValueTensorInitializer(
      pieces, tf.range(len(pieces), dtype=tf.int64)
    ),
    num_oov_buckets=1,
  )
  tokenizer = _tensorflow_text().BertTokenizer(
    table, lower_case=True, token_out_type=tf.int64
  )
  cls = pieces.index(_CLS)

  def tokenize(texts):  # [B] -> [B, max_tokens]
    ids = (
      tokenizer.tokenize(texts)
      .merge_dims(1, 2)
      .to_tensor(shape=[None, max_tokens - 1])
    )
    first = tf.fill([tf.shape(ids)[0], 1], tf.constant(cls, ids.dtype))
    return tf.cast(tf.concat([first, ids], axis=1), tf.int32)

  return tokenize, len(pieces)


def _make_sentencepiece(path, max_tokens):
  """Pieces, then the end-of-sentence id up to and at the last position.

  Returns:
    (the function texts -> ids, the number of pieces in the vocabulary).
  """
  make = _tensorflow_text().SentencepieceTokenizer
  with open(path, 'rb') as file:
    model = file.read()
  try:
    tokenizer = make(model)
    with_end = make(model, add_eos=True)
    end = int(with_end.tokenize('')[0])
  except tf.errors.OpError as error:
    raise ValueError(f'{path}: not a SentencePiece model') from error

  def tokenize(texts):  # [B] -> [B, max_tokens]
    ids = tokenizer.tokenize(texts)[:, : max_tokens - 1]
    return ids.to_tensor(end, shape=[None, max_tokens])

  return tokenize, int(tokenizer.vocab_size())
