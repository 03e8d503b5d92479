"""An optimizer that the caller of a run gives, in place of the config's."""

from collections.abc import Callable
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Settings that a given optimizer replaces.
_OPTIMIZER = (
  *('optimizer', 'momentum', 'adam_b1', 'adam_b2', 'momentum_dtype'),
  *('lion_b1', 'lion_b2', 'muon_momentum', 'muon_rms', 'adafactor_b2_cap'),
  *('weight_decay', 'weight_decay_scale', 'weight_decay_end', 'decay_rules'),
  *('grad_norm_clip', 'array_norm_clip'),
)
_SCHEDULE = (
  *('base_lr', 'decay_type', 'warmup_steps', 'warmup_epochs', 'warmup_start'),
  *('linear_end', 'cosine_end', 'rsqrt_timescale', 'drop_steps'),
  *('drop_factor', 'cooldown_steps'),
)
_EXPECTED = (
  'Use a gradient transformation of optax, such as optax.adamw(1e-4), or a '
  'function from the learning-rate schedule of the config to one, such as '
  'optax.lion'
)


def uses_schedule(given: Any) -> bool:
  """Returns whether an optimizer uses the config's schedule; None does."""
  return given is None or callable(given)


def resolve(
  given: Any, schedule: Callable | None
) -> optax.GradientTransformation:
  """Returns the gradient transformation of a given optimizer.

  Args:
    given: a gradient transformation, such as `optax.adamw(1e-4)`, or a function
      from the schedule of the config to one, such as `optax.lion`.
    schedule: learning-rate schedule of the config, for a function.

  Raises:
    ValueError: `given` is neither, or the function returns something else.
  """
  if isinstance(given, optax.GradientTransformation):
    return given
  if isinstance(given, type) or not callable(given):
    raise ValueError(
      f'optimizer={_text(given)} is not an optimizer of optax. {_EXPECTED}'
    )
  try:
    inspect.signature(given).bind(schedule)
  except TypeError as error:
    raise ValueError(
      f'optimizer={_text(given)} must accept the learning-rate schedule as its '
      f'only argument ({error}). {_EXPECTED}'
    ) from error
  tx = given(schedule)
  if not isinstance(tx, optax.GradientTransformation):
    raise ValueError(
      f'optimizer={_text(given)} returns {_text(tx)}, which is not a gradient '
      f'transformation. {_EXPECTED}'
    )
  return tx


def _text(value):
  """Returns a short text for a value of any type."""
  name = getattr(value, '__qualname__', None)
  if isinstance(value, type):
    return f'the class {value.__module__}.{name}'
  if name:
    return f'the function {name}'
  if value is None or isinstance(value, str | float | int):
    return repr(value)
  return f'an object of {type(value).__module__}.{type(value).__qualname__}'


def describe(given: Any, opt_state: Any) -> str:
  """Returns a line about a given optimizer and the settings it replaces.

  Args:
    given: the optimizer, from the caller.
    opt_state: its state, or the shapes of its state.
  """
  names = []

  def note(node):
    name = type(node).__name__
    if isinstance(node, tuple) and hasattr(node, '_fields'):
      if name not in ('EmptyState', 'MaskedNode', *names):
        names.append(name)
    return False

  jax.tree.leaves(opt_state, is_leaf=note)
  name = _text(given) if callable(given) else 'a gradient transformation'
  return (
    f'optimizer: {name}, given as an argument, with the state '
    f'{", ".join(names) or "()"}. {describe_unused(given)}'
  )


def describe_unused(given: Any) -> str:
  """Returns a text about the settings that an optimizer replaces."""
  unused = _OPTIMIZER + (() if uses_schedule(given) else _SCHEDULE)
  return 'Not used: ' + ', '.join(f'config.{name}' for name in unused)


def advice(given: Any) -> str:
  """Returns what to do if the loss is not finite: 'Lower …'."""
  if given is None:
    return 'Lower config.base_lr, set config.grad_norm_clip'
  if uses_schedule(given):
    return 'Lower config.base_lr, clip the gradients in `optimizer`'
  return 'Lower the learning rate of `optimizer`, clip the gradients in it'


# --- checks on the shapes of the parameters ----------------------------------


def check(tx: optax.GradientTransformation, params: Any) -> None:
  """Raises ValueError if a run cannot use or save a given optimizer.

  Args:
    tx: from `optimizer.make_optimizer`.
    params: shapes of the trained parameters.
  """

  def init(params):
    state = tx.init(params)
    _check_state(state)
    return state

  update = _make_update(tx, _sum)
  state = _shapes('init(params)', init, params)
  loss = jax.ShapeDtypeStruct((), jnp.float32)
  updates, new_state = _shapes(
    'update(grads, state, params, value=…, grad=…, value_fn=…)',
    *(update, params, state, params, loss),
  )
  for what, old, new in (
    ('updates of another structure than the parameters', params, updates),
    ('a state of another structure, shape or dtype', state, new_state),
  ):
    if jax.tree.structure(old) != jax.tree.structure(new):
      raise ValueError(
        f'optimizer: its update returns {what}. A run needs an optimizer that '
        'keeps them'
      )
  for (path, old), new in zip(
    jax.tree.leaves_with_path(state), jax.tree.leaves(new_state), strict=True
  ):
    if (old.shape, old.dtype) != (new.shape, new.dtype):
      raise ValueError(
        f'optimizer: its update changes state{jax.tree_util.keystr(path)} from '
        f'{old.dtype}{list(old.shape)} to {new.dtype}{list(new.shape)}, so a '
        'checkpoint could not be restored. Make init return the second one'
      )


def calls_loss(tx: optax.GradientTransformation, params: Any) -> bool:
  """Returns whether an optimizer evaluates the loss function.

  Args:
    tx: from `optimizer.make_optimizer`.
    params: shapes of the trained parameters.
  """
  calls = []

  def value_fn(params):
    calls.append(True)
    return _sum(params)

  loss = jax.ShapeDtypeStruct((), jnp.float32)
  state = jax.eval_shape(tx.init, params)
  jax.eval_shape(_make_update(tx, value_fn), params, state, params, loss)
  return bool(calls)


def _sum(params):
  return sum(jnp.sum(x, dtype=jnp.float32) for x in jax.tree.leaves(params))


def _make_update(tx, value_fn):
  def update(grads, state, params, loss):
    return optax.with_extra_args_support(tx).update(
      grads, state, params, value=loss, grad=grads, value_fn=value_fn
    )

  return update


def _shapes(call, function, *arguments):
  """Returns the shapes of a function's outputs; explains its errors."""
  try:
    return jax.eval_shape(function, *arguments)
  except _NotSavable:
    raise
  except Exception as error:  # of any type, from the caller's code
    reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:300]
    raise ValueError(
      f'optimizer: {call} fails with {reason}. A run gives an optimizer the '
      'gradients, the parameters, the loss and the loss function, and no other '
      'arguments'
    ) from error


class _NotSavable(ValueError):
  """A state contains something that a checkpoint cannot store."""


def _check_state(state):
  """Raises ValueError if a state cannot be saved or used."""

  def is_leaf(x):
    return isinstance(x, optax.contrib.ScheduleFreeState)

  for path, x in jax.tree.leaves_with_path(state, is_leaf=is_leaf):
    name = f'state{jax.tree_util.keystr(path)}'
    if is_leaf(x):
      raise _NotSavable(
        'optimizer: schedule_free is not supported, because it evaluates other '
        'parameters than it trains (optax.contrib.schedule_free_eval_params). '
        'Use another optimizer'
      )
    numbers = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
    if not isinstance(x, numbers) or np.dtype(object) == getattr(
      x, 'dtype', None
    ):
      raise _NotSavable(
        f'optimizer: its state cannot be saved, because {name} is '
        f'{_text(x)}. A state consists of arrays and numbers'
      )
    if not np.size(x):
      raise _NotSavable(
        f'optimizer: its state cannot be saved, because the array {name} has '
        f'the shape {list(np.shape(x))}, without values. Leave it out'
      )
