"""Reads prose of the repository: docstrings, comments, messages, Markdown."""

import ast
import collections
import inspect
import re

from tests import ROOT

Text = collections.namedtuple('Text', 'path line text')
Sentence = collections.namedtuple('Sentence', 'path line text num_words')

_MIN_MESSAGE_WORDS = 5
_WORD = re.compile(r"[A-Za-z][\w'’.-]*")
# A blank line, a list item, a heading, a table row, an argument or a status.
_PARAGRAPH = re.compile(
  r'\n\s*\n|\n\s*[-*] |\n\s*\d\. |\n(?=[#|])|:\n|\n\s*\**\w+(?:, \w+)*: '
  r'|\n +\d+  '
)
_SENTENCE = re.compile(r'(?<=[.!?])\s+(?=[A-Z(\'"\d])|\s[|·]\s')
_NO_PROSE = re.compile(r'^ *```.*?```|<!--.*?-->|^\|[\s:|-]+$', re.S | re.M)
_EXAMPLE = re.compile(r'(?<=\n\n)(?: +.*(?:\n|$))+')  # in a docstring
# A regular expression is faster than `tokenize`.
_STRING_OR_COMMENT = re.compile(
  r'''("""|\'{3})(?:\\.|[^\\])*?\1|(["\'])(?:\\.|(?!\2)[^\\\n])*\2|#[^\n]*''',
  re.DOTALL,
)
_DIRECTIVE = re.compile(r'#\s*(noqa|type:|fmt:|---)')


def texts(*patterns):
  """Yields the texts of the files that match glob patterns."""
  for path in sorted({p for pattern in patterns for p in ROOT.glob(pattern)}):
    source, name = path.read_text(encoding='utf-8'), str(path.relative_to(ROOT))
    read = _from_markdown if path.suffix == '.md' else _from_python
    for line, text in read(source):
      yield Text(name, line, _without_code(text))


def sentences(text):
  """Yields the sentences, headings and table cells of a text."""
  for start, paragraph in _split(_PARAGRAPH, text.text):
    for offset, sentence in _split(_SENTENCE, paragraph):
      num_words = len(_WORD.findall(sentence))
      if num_words:
        start_of_words = start + offset + re.match(r'\s*', sentence).end()
        line = text.line + text.text.count('\n', 0, start_of_words)
        yield Sentence(text.path, line, ' '.join(sentence.split()), num_words)


def strings(node, parent=None):
  """Yields (syntax node, its parent, text) of all strings below a node."""
  text = _text_of(node)
  if text is not None:
    yield node, parent, text
    return
  for child in ast.iter_child_nodes(node):
    # The patterns of `pytest.raises(match=…)` are regular expressions.
    if getattr(child, 'arg', None) != 'match':
      yield from strings(child, node)


def _text_of(node):
  """Returns the text of a string or f-string, with X for formatted values."""
  if isinstance(node, ast.JoinedStr):
    return ''.join(_text_of(part) or 'X' for part in node.values)
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  return None


def _split(separator, text):
  """Yields (offset, text) of the parts between separators."""
  start = 0
  for match in separator.finditer(text):
    yield start, text[start : match.start()]
    start = match.end()
  yield start, text[start:]


def _blank(match):
  """Replaces a match of a regular expression by its line breaks."""
  return '\n' * match[0].count('\n')


def _without_code(text):
  """Replaces each code span by X, and each link by its text."""
  text = re.sub(r'`[^`]*`', lambda match: 'X' + _blank(match), text)
  return re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)


def _from_markdown(source):
  yield 1, _NO_PROSE.sub(_blank, source)


def _from_python(source):
  """Yields (line, text) of comments, docstrings and messages."""
  yield from _comments(source)
  for node, parent, text in strings(ast.parse(source)):
    if isinstance(parent, ast.Expr):
      yield node.lineno, _EXAMPLE.sub(_blank, inspect.cleandoc(text))
    elif len(_WORD.findall(text)) >= _MIN_MESSAGE_WORDS and not _is_code(text):
      yield node.lineno, text


def _comments(source):
  """Yields (line, text); adjacent full-line comments are one text."""
  block, start, end = [], 0, 0
  for match in _STRING_OR_COMMENT.finditer(source):
    if match[0].startswith('#') and not _DIRECTIVE.match(match[0]):
      line = source.count('\n', 0, match.start()) + 1
      is_full = not source[: match.start()].rpartition('\n')[2].strip()
      if not is_full or line != end + 1:
        yield start, '\n'.join(block)
        block, start = [], line
      block.append(match[0].lstrip('# '))
      end = line if is_full else 0
  yield start, '\n'.join(block)


def _is_code(text):
  """Returns whether a string is Python code, or a table of numbers."""
  if sum(c.isdigit() for c in text) > len(text) / 10:
    return True
  try:
    return bool(ast.parse(text.strip()))
  except (SyntaxError, ValueError):
    return False
