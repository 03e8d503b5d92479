"""Factors of the learning rate and of the weight decay, by parameter path."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import math
import re

import jax
import jax.numpy as jnp
import optax

from vit_jax.models import param_paths
from vit_jax.optim import rules
from vit_jax.optim import weight_decay

Rules = str | Sequence[tuple[str, float]]


def check(lr_rules: Rules, decay_rules: Rules) -> None:
  """Raises ValueError if a rule cannot be read; needs no parameters."""
  parse(lr_rules, 'lr_rules')
  parse(decay_rules, 'decay_rules')


def parse(given: Rules, name: str = 'lr_rules') -> list[tuple[str, float]]:
  """Returns rules as a list of (expression, factor).

  Args:
    given: 'EXPRESSION:FACTOR,EXPRESSION:FACTOR', or a sequence of pairs.
    name: setting of the rules: 'lr_rules' or 'decay_rules'.

  Raises:
    ValueError: a rule cannot be read, or a factor is below 0. Factors of the
      learning rate must be greater than 0.
  """
  setting = f'config.{name}={given!r}'
  pairs = given
  if isinstance(given, str):
    # An expression may have a colon or a comma. So a rule ends with a colon, a
    # number, and a comma or the end of the text.
    pairs = re.findall(r'(.+?):([-+.\deE]+)(?:,|$)', given)
    if ','.join(f'{a}:{b}' for a, b in pairs) != given.removesuffix(','):
      pairs = None
  try:
    found = [(pattern, float(factor)) for pattern, factor in pairs]
    for pattern, _ in found:
      rules.compile_pattern(pattern, setting)
  except (TypeError, ValueError) as error:
    if 'regular expression' in str(error):
      raise
    raise ValueError(
      f"{setting} must be 'EXPRESSION:FACTOR,…', such as "
      "'head/.*:10,.*encoderblock_0/.*:0.1', or in a config file a tuple of "
      "pairs, such as (('head/.*', 10.0),)"
    ) from error
  for pattern, factor in found:
    if name == 'lr_rules' and not (math.isfinite(factor) and factor > 0):
      raise ValueError(
        f'{setting}: the factor {factor:g} of {pattern!r} must be greater than '
        '0. To train a parameter not at all, use config.freeze'
      )
    if not (math.isfinite(factor) and factor >= 0):
      raise ValueError(
        f'{setting}: the factor {factor:g} of {pattern!r} must be at least 0. '
        'Use 0 for no weight decay'
      )
  return found


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
  by_layer = layer_factors(paths, layer_decay)
  by_rule = _of_trained(paths, frozen, lr_rules, 'lr_rules')
  return {
    path: (1.0 if factor is None else factor) * by_layer[path]
    for path, factor in by_rule.items()
  }


def decay_factors(
  paths: Sequence[str], frozen: Collection[str], decay_rules: Rules
) -> dict[str, float]:
  """Returns {path: factor of the weight decay} of trained parameters.

  Args:
    paths: paths of all parameters of the model.
    frozen: paths of frozen parameters.
    decay_rules: `config.decay_rules`. Without a rule, the factor is 1 for
      kernels, and 0 for other parameters.

  Raises:
    ValueError: a rule has no effect.
  """
  by_rule = _of_trained(paths, frozen, decay_rules, 'decay_rules')
  return {
    path: float(weight_decay.is_kernel(path)) if factor is None else factor
    for path, factor in by_rule.items()
  }


def _of_trained(paths, frozen, given, name):
  """Returns {path: factor of the first rule, or None} of trained parameters."""
  parsed, setting = parse(given, name), f'config.{name}'
  for pattern, _ in parsed:
    found = rules.matches(re.compile(pattern), paths)
    if found and set(found) <= set(frozen):
      raise ValueError(
        f'{setting}: {pattern!r} matches only parameters that config.freeze '
        'freezes. Remove this rule, or freeze less'
      )
  trained = [path for path in paths if path not in frozen]
  by_rule = rules.first_match(trained, parsed, setting)
  return {path: by_rule.get(path) for path in trained}


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
      lambda path, x: x * factors[rules.path_of(path)], updates
    )

  return optax.stateless(scale)


def drop_first(steps: Mapping[str, int]) -> optax.GradientTransformation:
  """Returns a transformation that drops the first updates of some paths.

  It follows the direction of an optimizer such as Adam, whose moments thus
  contain the gradients of the dropped updates.

  Args:
    steps: {path: number of dropped updates}.
  """

  def init(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    del params

    def kept(path, x):
      num_dropped = steps.get(rules.path_of(path), 0)
      return jnp.where(state.count < num_dropped, 0, x) if num_dropped else x

    count = optax.safe_increment(state.count)
    updates = jax.tree.map_with_path(kept, updates)
    return updates, optax.ScaleByScheduleState(count)

  return optax.GradientTransformation(init, update)


def describe(
  factors: Mapping[str, float], what: str = 'the learning rate'
) -> str:
  """Returns a line about the factors of `what`; '' if all are 1."""
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
  return f'factors of {what}: ' + ', '.join(texts)
