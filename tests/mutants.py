"""Mutants for `tests.mutate`: generated from a syntax tree, or from a list."""

import ast
import copy
import dataclasses
import json
import os


@dataclasses.dataclass(frozen=True)
class Mutant:
  """A source tree with one mistake in it."""

  id: str
  path: str  # of the changed file, relative to the root
  line: int  # where the change begins
  what: str  # description of the mistake
  text: str  # of the complete changed file
  places: tuple[tuple[int, ...], ...]  # see `_places`


def _make(id_, path, what, text, changed):
  start = len(os.path.commonprefix([text, changed]))
  same = len(os.path.commonprefix([text[start:][::-1], changed[start:][::-1]]))
  first = text.count('\n', 0, start) + 1
  last = text.count('\n', 0, max(start, len(text) - same - 1)) + 1
  return Mutant(id_, path, first, what, changed, _places(text, first, last))


def _places(text, first, last):
  """Returns groups of lines: tests that reach them may detect the change.

  The first group contains the changed statements. Each further group is a
  function around them. It is used if no test seems to reach the earlier groups,
  for example because AutoGraph runs a copy. Module-level changes give ().
  """
  statements, functions = set(), []
  for node in ast.walk(ast.parse(text)):
    if not isinstance(node, ast.stmt):
      continue
    body = getattr(node, 'body', None)
    end = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
    if node.lineno <= last and first <= end:
      statements.update(range(node.lineno, end + 1))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      if end < first and last <= node.end_lineno:
        functions.append(tuple(range(body[0].lineno, node.end_lineno + 1)))
  return (tuple(statements), *sorted(functions, key=len)) if functions else ()


# --- from a list --------------------------------------------------------------


def from_list(root, list_path):
  """Returns (mutants, [(id, reason)] of the entries that no longer apply)."""
  found, stale = {}, []
  with open(list_path, encoding='utf-8') as file:
    lines = file.read().splitlines()
  for number, line in enumerate(lines, start=1):
    name = f'line {number}'
    try:
      name, path, what, old, new = map(
        json.loads(line).get, ('id', 'file', 'what', 'old', 'new')
      )
      path, text = _find(root, path, old)
      changed = text.replace(old, new)
      if name in found:
        raise ValueError('another entry has this id: choose a unique id')
      if changed == text or not _compiles(changed):
        raise ValueError('`new` changes nothing, or is not valid Python')
      found[name] = _make(name, path, what, text, changed)
    except ValueError as error:
      stale.append((name, str(error)))
    except (AttributeError, TypeError):
      stale.append(
        (f'line {number}', 'its keys must be id, file, what, old and new')
      )
  return list(found.values()), stale


def _find(root, path, old):
  """Returns (path, text) of the file with `old`: code may have been moved."""
  texts = {
    str(file.relative_to(root)): file.read_text(encoding='utf-8')
    for file in (root / path.partition('/')[0]).rglob('*.py')
  }
  if old not in texts.get(path, ''):
    found = [path for path, text in texts.items() if old in text]
    if len(found) != 1:
      raise ValueError(
        f'`old` is not in {path}, and in {len(found)} other '
        'files of its package'
      )
    path = found[0]
  if texts[path].count(old) > 1:
    raise ValueError(f'`old` occurs {texts[path].count(old)} times in {path}')
  return path, texts[path]


# --- from a syntax tree -------------------------------------------------------

_PAIRS = (
  (ast.Lt, ast.LtE),
  (ast.Gt, ast.GtE),
  (ast.Eq, ast.NotEq),
  (ast.In, ast.NotIn),
  (ast.Is, ast.IsNot),
  (ast.Add, ast.Sub),
  (ast.Mult, ast.Div),
  (ast.And, ast.Or),
  (ast.BitAnd, ast.BitOr),
)
_OTHER = {
  **dict(_PAIRS),
  **{b: a for a, b in _PAIRS},
  ast.FloorDiv: ast.Mult,
  ast.Mod: ast.Mult,
  ast.Pow: ast.Mult,
}
# Swapping the arguments of these functions changes nothing, or always fails.
_UNORDERED = ('isinstance', 'max', 'min')


def generate(root, path):
  """Returns all mutants of a module that compile, in the order of lines."""
  path = str((root / path).resolve().relative_to(root))
  text = (root / path).read_text(encoding='utf-8')
  lines = text.encode().splitlines(keepends=True)

  def offset(line, column):
    return sum(map(len, lines[: line - 1])) + column

  mutants, seen = [], {text}
  for node, kind, new in _changes(ast.parse(text)):
    start = offset(node.lineno, node.col_offset)
    end = offset(node.end_lineno, node.end_col_offset)
    source = text.encode()
    changed = (source[:start] + new.encode() + source[end:]).decode()
    if changed in seen or not _compiles(changed):
      continue
    seen.add(changed)
    old = ' '.join(source[start:end].decode().split())
    place = f'{path}:{node.lineno}:{node.col_offset}-{node.end_col_offset}'
    mutants.append(
      _make(f'{place}:{kind}', path, f'{old[:60]} → {new[:60]}', text, changed)
    )
  return sorted(mutants, key=lambda mutant: mutant.line)


def _compiles(text):
  try:
    return bool(compile(text, 'mutant', 'exec'))
  except (SyntaxError, ValueError):
    return False


def _changes(node):
  """Yields (node, kind, replacement text) for each change of a syntax tree."""
  if isinstance(node, ast.stmt):
    yield from _of_statement(node)
  elif isinstance(node, ast.expr):
    yield from (
      (node, kind, f'({ast.unparse(new)})')
      for kind, new in _of_expression(node)
    )
  # Error messages and annotations are not changed. F-strings are not changed
  # either: before Python 3.12, their parts have the position of the string.
  if isinstance(node, (ast.Raise, ast.JoinedStr)):
    return
  for field, value in ast.iter_fields(node):
    if field in ('annotation', 'returns'):
      continue
    for child in value if isinstance(value, list) else [value]:
      if isinstance(child, ast.AST):
        yield from _changes(child)


def _of_statement(node):
  """Yields `return None`, negated conditions, and removed statements."""
  value = getattr(node, 'value', None)
  if isinstance(node, ast.Return) and value is not None:
    yield node, 'none', 'return None'
  # Comparisons and `not` are negated by changing their operator.
  if isinstance(node, (ast.If, ast.While)) and not isinstance(
    node.test, (ast.Compare, ast.UnaryOp)
  ):
    yield node.test, 'negate', f'(not ({ast.unparse(node.test)}))'
  changes_something = isinstance(node, ast.Assign) and any(
    not isinstance(target, ast.Name) or target.id in _names(value)
    for target in node.targets
  )
  if (
    isinstance(
      node, (ast.Raise, ast.If, ast.AugAssign, ast.Break, ast.Continue)
    )
    or isinstance(node, ast.Expr)
    and isinstance(value, ast.Call)
    or changes_something
  ):
    yield node, 'remove', 'pass'


def _names(tree):
  return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _of_expression(node):
  """Yields (kind, changed copy) for each change of an expression."""
  other = _OTHER.get(type(getattr(node, 'op', None)))
  if other:
    yield _with(node, other.__name__, op=other())
  if isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
    new = _OTHER[type(node.ops[0])]
    yield _with(node, new.__name__, ops=[new(), *node.ops[1:]])
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
    yield 'positive', node.operand
  if isinstance(node, ast.IfExp):
    yield _with(node, 'swap', body=node.orelse, orelse=node.body)
  if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
    value = node.value
    yield _with(
      node,
      'constant',
      value=(
        not value if isinstance(value, bool) else 0 if value == 1 else value + 1
      ),
    )
  if isinstance(node, ast.Call):
    for keyword in node.keywords:
      if keyword.arg:
        yield _with(
          node,
          f'without-{keyword.arg}',
          keywords=[other for other in node.keywords if other is not keyword],
        )
    if (
      len(node.args) > 1
      and ast.unparse(node.func) not in _UNORDERED
      and not any(isinstance(arg, ast.Starred) for arg in node.args[:2])
    ):
      yield _with(node, 'swap', args=[*node.args[1::-1], *node.args[2:]])


def _with(node, kind, **fields):
  new = copy.copy(node)
  for name, value in fields.items():
    setattr(new, name, value)
  return kind, new
