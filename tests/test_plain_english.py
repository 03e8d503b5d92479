"""Rules for the prose of the code and its documentation."""

import ast
import collections
import re

import pytest

from tests import prose
from tests import ROOT

GROUPS = {
  'package': [
    f'{folder}/**/*.py'
    for folder in ('vit_jax', 'configs', 'scripts', 'benchmarks')
  ],
  'tests': ['tests/**/*.py'],
  'docs': ['*.md', 'docs/**/*.md', 'benchmarks/**/*.md'],
}
MIN_WORDS = 4  # shorter texts are names, headings and table cells
MAX_AVERAGE, MAX_WORDS = 18, 40
# {regular expression: what to write instead}, for words with no other use here.
AVOID = {
  r'told|tells': 'contains, specifies',
  r'said': 'logged, stated',
  r'beside': 'next to',
  r'wish\w*': 'expected, requested',
  r'wants': 'needs, expects',
  r'mend\w*': 'fix, repair',
  r'likewise|as (said )?above': 'repeat the noun',
  r'afresh|anew': 'again; randomly initialized',
  r'(go|goes|going) on': 'continue, resume',
  r'(left|leave|leaves|leaving) out': 'skip, omit',
  r'lies?|lying': 'is stored, is placed',
  r'share out': 'shard',
  r'held against': 'compared with',
  r'(is|are|be|was|were) refused': 'is rejected; raises ValueError',
  r'fetch|fetches|fetched': 'download',
  r"(a|the) run's folder": 'the run folder',
  r'data sets?': 'dataset',
  r'(test|training|validation) parts?': 'split',
  r'set apart': 'held out',
  r'(?-i:(the|Face) hub)': 'the Hub',
  r'wherein|of (which|whose)': 'split the sentence',
  r'note that|simply': 'delete it',
  r'(initial|normal|recogn|optim|standard|organ|summar)is(e|es|ed|ing|ation)': (
    'American spelling'
  ),
  r'colours?|cent(re|res|red)|behaviours?|neighbours?': 'American spelling',
}
# These modules name flags; all others name Python arguments and settings.
COMMAND_LINE = ('vit_jax/commands/', 'vit_jax/main.py', 'vit_jax/__main__.py')


@pytest.fixture(name='sentences', scope='module')
def fixture_sentences():
  """Returns {group: sentences of its files}."""
  return {
    group: [
      sentence
      for text in prose.texts(*patterns)
      for sentence in prose.sentences(text)
    ]
    for group, patterns in GROUPS.items()
  }


@pytest.mark.parametrize('group', GROUPS)
def test_sentences_are_short(sentences, group):
  words = [x.num_words for x in sentences[group] if x.num_words >= MIN_WORDS]
  assert len(words) > 100
  assert sum(words) / len(words) <= MAX_AVERAGE
  long = [
    f'{x.path}:{x.line}: {x.num_words} words: {x.text}'
    for x in sentences[group]
    if x.num_words > MAX_WORDS
  ]
  assert not long, '\n'.join(long)


@pytest.mark.parametrize('pattern', AVOID)
def test_words_to_avoid(sentences, pattern):
  word = re.compile(rf'\b({pattern})\b', re.IGNORECASE)
  found = [
    f'{x.path}:{x.line}: {x.text}'
    for group in sentences.values()
    for x in group
    if word.search(x.text) and x.text not in AVOID
  ]
  assert not found, '\n'.join([f'Use instead: {AVOID[pattern]}', *found])


def test_errors_of_the_library_name_no_flags():
  """Reads each `raise` statement, and our functions that it calls."""
  flag = re.compile(r'(?<![\w-])--[a-z]\w+')
  functions, statements = collections.defaultdict(list), []
  for path in ROOT.glob('vit_jax/**/*.py'):
    name = str(path.relative_to(ROOT))
    if not name.startswith(COMMAND_LINE):
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef):
          functions[node.name].append((name, node))
        elif isinstance(node, ast.Raise):
          statements.append((name, node))
  assert len(functions) > 100 and len(statements) > 100
  called = {
    getattr(node, 'id', getattr(node, 'attr', None))
    for _, statement in statements
    for node in ast.walk(statement)
  }
  found = {
    f'{name}:{string.lineno}: {text}'
    for name, node in sum([functions[name] for name in called], statements)
    for string, parent, text in prose.strings(node)
    if flag.search(text) and not isinstance(parent, ast.Expr)  # a docstring
  }
  assert not found, '\n'.join(sorted(found))
