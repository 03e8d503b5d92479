"""Rules by parameter path, and the parameters that are not trained.

A rule is a regular expression. It applies to the parameters whose whole path
matches, such as 'Transformer/encoderblock_0/LayerNorm_0/scale'. Trees of
trained parameters have the structure of all parameters, with None in place of
frozen ones. JAX and optax skip None, so there is no gradient and no optimizer
state for a frozen parameter.
"""

from collections.abc import Collection
from collections.abc import Sequence
import re
from typing import Any

import jax


def path_of(key_path: Any) -> str:
  """Returns the path of a leaf, joined by '/'."""
  return jax.tree_util.keystr(key_path, simple=True, separator='/')


def paths_of(tree: Any) -> list[str]:
  """Returns the paths of all leaves of a tree."""
  return [path_of(path) for path, _ in jax.tree.leaves_with_path(tree)]


def groups_of(paths: Sequence[str]) -> list[str]:
  """Returns the modules of paths, one for each block or top-level module."""
  names = (
    re.match(r'((?:.*?/)?(?:encoderblock|MixerBlock)_[^/]+|[^/]+)', path)[1]
    for path in paths
  )
  return list(dict.fromkeys(names))


def select(tree: Any, frozen: Collection[str]) -> Any:
  """Returns `tree` with None in place of the leaves with a path in `frozen`."""
  return jax.tree.map_with_path(
    lambda path, x: None if path_of(path) in frozen else x, tree
  )


def merge(trained: Any, tree: Any) -> Any:
  """Returns `trained` with the leaves of `tree` in place of None."""
  return jax.tree.map(
    lambda new, old: old if new is None else new,
    trained,
    tree,
    is_leaf=lambda x: x is None,
  )


# --- expressions -------------------------------------------------------------


def compile_pattern(pattern: str, setting: str) -> re.Pattern:
  """Returns the compiled expression of a setting, or raises ValueError."""
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{setting}: {pattern!r} is not a regular expression ({error}). Escape '
      'special characters with a backslash'
    ) from error


def matches(compiled: re.Pattern, paths: Sequence[str]) -> list[str]:
  """Returns the paths that an expression matches as a whole."""
  return [path for path in paths if compiled.fullmatch(path)]


def _alternatives(pattern):
  """Returns the parts of an expression between '|' outside of brackets."""
  parts, depth, start, in_class = [], 0, 0, False
  for token in re.finditer(r'\\.|[][()|]', pattern):
    match token[0]:
      case '[':
        in_class = True
      case ']':
        in_class = False
      case '(' if not in_class:
        depth += 1
      case ')' if not in_class:
        depth -= 1
      case '|' if not in_class and not depth:
        parts.append(pattern[start : token.start()])
        start = token.end()
  return [*parts, pattern[start:]]


def _no_match(setting, pattern, paths):
  """Returns a ValueError for an expression that matches no path."""
  inside = f'.*{pattern}.*'
  count = len(matches(re.compile(inside), paths))
  examples = {}  # a path of each module; one of all blocks
  for path in paths:
    examples.setdefault(re.sub(r'\d+', '', groups_of([path])[0]), path)
  return ValueError(
    f'{setting}: {pattern!r} matches no parameter. It must match the whole '
    'path. '
    + (f'{inside!r} matches {count} of {len(paths)}. ' if count else '')
    + 'Some paths are: '
    + ', '.join(list(examples.values())[:6])
  )


def first_match(
  paths: Sequence[str], rules: Sequence[tuple[str, Any]], setting: str
) -> dict[str, Any]:
  """Returns {path: value of the first rule that matches the path}.

  Args:
    paths: paths of the parameters that the rules are for.
    rules: (regular expression, value) in order of priority.
    setting: name of the setting, for messages.

  Raises:
    ValueError: a rule has no effect, because it matches no path or because
      earlier rules match the same paths.
  """
  values = {}
  for pattern, value in rules:
    found = matches(compile_pattern(pattern, setting), paths)
    if not found:
      raise _no_match(setting, pattern, paths)
    new = [path for path in found if path not in values]
    if not new:
      raise ValueError(
        f'{setting}: {pattern!r} has no effect, because earlier rules match '
        'the same parameters, and the first match counts. Move it to the front '
        'or remove it'
      )
    values.update(dict.fromkeys(new, value))
  return values


# --- frozen parameters -------------------------------------------------------


def find_frozen(paths: Sequence[str], pattern: str) -> frozenset[str]:
  """Returns the paths of the parameters that are not trained.

  Args:
    paths: paths of all parameters of the model.
    pattern: `config.freeze`. '' freezes nothing.

  Raises:
    ValueError: the expression is invalid, matches all parameters, or has an
      alternative ('a|b' has two) that matches none.
  """
  setting = 'config.freeze'
  if not pattern:
    return frozenset()
  compiled = compile_pattern(pattern, setting)
  frozen = frozenset(matches(compiled, paths))
  for part in _alternatives(pattern):
    # An inline flag such as (?i) at the start applies to all alternatives.
    if not matches(re.compile(part, compiled.flags), paths):
      raise _no_match(setting, part, paths)
  if len(frozen) == len(paths):
    raise ValueError(
      f'{setting}: {pattern!r} matches all {len(paths)} parameters, so nothing '
      'would be trained. Do not match the head, for example'
    )
  return frozen
