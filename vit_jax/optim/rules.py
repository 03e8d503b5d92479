"""Rules by parameter path: which parameters are trained, and at which rates.

A rule is a regular expression. It applies to the parameters whose whole path
matches, such as 'Transformer/encoderblock_0/LayerNorm_0/scale'. Trees of
trained parameters have the structure of all parameters, with None in place of
frozen ones. JAX and optax skip None, so there is no gradient and no optimizer
state for a frozen parameter.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import math
import re
from typing import Any

import jax
import optax

from vit_jax.models import param_paths

Rules = str | Sequence[tuple[str, float]]


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


def _compile(pattern, setting):
  """Returns the compiled expression, or raises ValueError."""
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{setting}: {pattern!r} is not a regular expression ({error}). Escape '
      'special characters with a backslash'
    ) from error


def _matches(compiled, paths):
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
  count = len(_matches(re.compile(inside), paths))
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
  compiled = _compile(pattern, setting)
  frozen = frozenset(_matches(compiled, paths))
  for part in _alternatives(pattern):
    # An inline flag such as (?i) at the start applies to all alternatives.
    if not _matches(re.compile(part, compiled.flags), paths):
      raise _no_match(setting, part, paths)
  if len(frozen) == len(paths):
    raise ValueError(
      f'{setting}: {pattern!r} matches all {len(paths)} parameters, so nothing '
      'would be trained. Do not match the head, for example'
    )
  return frozen


# --- factors of the learning rate --------------------------------------------


def check(freeze: str, lr_rules: Rules) -> None:
  """Raises ValueError if a rule cannot be read; needs no parameters."""
  _compile(freeze, 'config.freeze')
  parse(lr_rules)


def parse(lr_rules: Rules) -> list[tuple[str, float]]:
  """Returns `config.lr_rules` as a list of (expression, factor).

  Args:
    lr_rules: 'EXPRESSION:FACTOR,EXPRESSION:FACTOR', or a sequence of pairs.

  Raises:
    ValueError: a rule cannot be read, or a factor is not greater than 0.
  """
  setting = f'config.lr_rules={lr_rules!r}'
  pairs = lr_rules
  if isinstance(lr_rules, str):
    # An expression may have a colon or a comma. So a rule ends with a colon, a
    # number, and a comma or the end of the text.
    pairs = re.findall(r'(.+?):([-+.\deE]+)(?:,|$)', lr_rules)
    if ','.join(f'{a}:{b}' for a, b in pairs) != lr_rules.removesuffix(','):
      pairs = None
  try:
    rules = [(pattern, float(factor)) for pattern, factor in pairs]
    for pattern, _ in rules:
      _compile(pattern, setting)
  except (TypeError, ValueError) as error:
    if 'regular expression' in str(error):
      raise
    raise ValueError(
      f"{setting} must be 'EXPRESSION:FACTOR,…', such as "
      "'head/.*:10,.*encoderblock_0/.*:0.1', or in a config file a tuple of "
      "pairs, such as (('head/.*', 10.0),)"
    ) from error
  for pattern, factor in rules:
    if not (math.isfinite(factor) and factor > 0):
      raise ValueError(
        f'{setting}: the factor {factor:g} of {pattern!r} must be greater than '
        '0. To train a parameter not at all, use config.freeze'
      )
  return rules


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
    found = _matches(_compile(pattern, setting), paths)
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


def lr_factors(
  paths: Sequence[str],
  frozen: Collection[str],
  lr_rules: Rules,
  layer_decay: float,
) -> dict[str, float]:
  """Returns {path: factor of the learning rate} of trained parameters.

  Args:
    paths: paths of all parameters of the model.
    frozen: paths of frozen parameters.
    lr_rules: `config.lr_rules`. Parameters without a rule have the factor 1.
    layer_decay: `config.layer_decay`; see `layer_factors`. It is multiplied
      with the factors of the rules.

  Raises:
    ValueError: a rule has no effect, or the model has no numbered blocks.
  """
  trained = [path for path in paths if path not in frozen]
  by_layer = layer_factors(paths, layer_decay)
  setting = 'config.lr_rules'
  rules = parse(lr_rules)
  for pattern, _ in rules:
    found = _matches(re.compile(pattern), paths)
    if found and set(found) <= set(frozen):
      raise ValueError(
        f'{setting}: {pattern!r} matches only parameters that config.freeze '
        'freezes. Remove this rule, or freeze less'
      )
  by_rule = first_match(trained, rules, setting)
  return {path: by_rule.get(path, 1.0) * by_layer[path] for path in trained}


def layer_factors(paths: Sequence[str], layer_decay: float) -> dict[str, float]:
  """Returns {path: layer_decay ** (L + 1 - depth)} for a model of L blocks.

  The depth is 0 for embeddings and tokens, i + 1 for block i, and L + 1 for
  all others, such as the last norm and the head. Bao et al. 2021, BEiT, arXiv
  2106.08254, appendix; He et al. 2021, MAE, arXiv 2111.06377, appendix A.

  Args:
    paths: paths of all parameters of the model.
    layer_decay: factor from one layer to the layer below. 1 is no decay.

  Raises:
    ValueError: the model has no numbered blocks.
  """
  if layer_decay == 1:
    return dict.fromkeys(paths, 1.0)
  depths = {path: param_paths.depth(path) for path in paths}
  blocks = [depth for depth in depths.values() if depth]
  if not blocks:
    raise ValueError(
      f'config.layer_decay={layer_decay} needs a sequence of blocks, such as '
      f'{param_paths.block(0)}, which this model does not have. Use '
      'config.layer_decay=1.0, and config.lr_rules for its parts'
    )
  last = max(blocks) + 1
  return {
    path: layer_decay ** (last - (last if depth is None else depth))
    for path, depth in depths.items()
  }


def scale_updates(factors: Mapping[str, float]) -> optax.GradientTransformation:
  """Returns a transformation that multiplies the update of each path."""

  def scale(updates, params):
    del params
    return jax.tree.map_with_path(
      lambda path, x: x * factors[path_of(path)], updates
    )

  return optax.stateless(scale)


def describe_factors(factors: Mapping[str, float]) -> str:
  """Returns a line about the factors; '' if all are 1."""
  groups = {}
  for path, factor in factors.items():
    groups.setdefault(factor, []).append(path)
  if set(groups) <= {1.0}:
    return ''
  texts = [
    f'{factor:.4g} for {len(paths)} array(s) such as {paths[0]}'
    for factor, paths in sorted(groups.items())
  ]
  if len(texts) > 5:
    texts[2:-2] = [f'… {len(texts) - 4} more …']
  return 'factors of the learning rate: ' + ', '.join(texts)
