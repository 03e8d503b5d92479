"""Tokenizers for LiT, from texts to ids: BERT WordPiece and SentencePiece.

They need the optional extra: `pip install -e '.[text]'`.
"""

from collections.abc import Callable
import os

from vit_jax.data import tensorflow as tf

MAX_TOKENS = 16  # text length of the published LiT models

_CLS, _UNKNOWN = '[CLS]', '[UNK]'


def make_tokenizer(
  vocabulary: str, max_tokens: int = MAX_TOKENS, vocab_size: int | None = None
) -> Callable:
  """Returns a function from texts to ids, int32 [B, max_tokens].

  The function accepts a text, a list of texts or a string tensor. It also works
  in a tf.data map.

  Args:
    vocabulary: path of a BERT vocabulary (`.txt`, one word piece per line), or
      of a SentencePiece model (`.model`).
    max_tokens: longer texts are cut, shorter texts are padded.
    vocab_size: expected number of pieces; None accepts any number.

  Raises:
    ValueError: the file is missing, is not a vocabulary, or has another size;
      or the optional library is missing.
  """
  make = {'.txt': _make_bert, '.model': _make_sentencepiece}.get(
    os.path.splitext(vocabulary)[1]
  )
  if make is None:
    raise ValueError(
      f'{vocabulary} is not a vocabulary. The file name must end in .txt '
      '(BERT) or .model (SentencePiece).'
    )
  if not os.path.isfile(vocabulary):
    raise ValueError(
      f'{vocabulary}: there is no such vocabulary file. Check the path.'
    )
  tokenize, num_pieces = make(vocabulary, max_tokens)
  if vocab_size not in (None, num_pieces):
    raise ValueError(
      f'{vocabulary} has {num_pieces} pieces, but the model expects '
      f'{vocab_size}. Use the vocabulary that belongs to the model.'
    )

  def texts_to_ids(texts):
    return tokenize(tf.reshape(tf.convert_to_tensor(texts, tf.string), [-1]))

  return texts_to_ids


def _tensorflow_text():
  try:
    import tensorflow_text
  except ModuleNotFoundError as error:
    raise ValueError(
      'The library tensorflow-text is missing. vit_jax needs it to read texts. '
      "Install it with: pip install -e '.[text]'"
    ) from error
  return tensorflow_text


def _make_bert(path, max_tokens):
  """Makes a BERT tokenizer: [CLS], lower-case word pieces, then zeros.

  Devlin et al. 2018 (arXiv 1810.04805).

  Returns:
    (function from texts to ids, number of pieces in the vocabulary).
  """
  with open(path, encoding='utf-8', newline=None) as file:
    pieces = [line.rstrip('\n') for line in file]
  missing = [piece for piece in (_CLS, _UNKNOWN) if piece not in pieces]
  if missing:
    raise ValueError(
      f'{path} is not a BERT vocabulary: it lacks {" and ".join(missing)}. Use '
      'the vocabulary that belongs to the model.'
    )
  if len(set(pieces)) < len(pieces):
    repeated = next(p for i, p in enumerate(pieces) if p in pieces[:i])
    raise ValueError(
      f'{path} is not a BERT vocabulary: it lists {repeated!r} twice. Use the '
      'vocabulary that belongs to the model.'
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
  """Makes a SentencePiece tokenizer: pieces, then end-of-sentence ids.

  The last position is always an end-of-sentence id, even if a text is cut.

  Returns:
    (function from texts to ids, number of pieces in the vocabulary).
  """
  make = _tensorflow_text().SentencepieceTokenizer
  with open(path, 'rb') as file:
    model = file.read()
  try:
    tokenizer = make(model)
    with_end = make(model, add_eos=True)
    end = int(with_end.tokenize('')[0])
  except tf.errors.OpError as error:
    raise ValueError(
      f'{path} is not a SentencePiece model. Use the vocabulary that belongs '
      'to the model.'
    ) from error

  def tokenize(texts):  # [B] -> [B, max_tokens]
    ids = tokenizer.tokenize(texts)[:, : max_tokens - 1]
    return ids.to_tensor(end, shape=[None, max_tokens])

  return tokenize, int(tokenizer.vocab_size())
