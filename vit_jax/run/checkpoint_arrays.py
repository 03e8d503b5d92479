"""Compares the arrays of a checkpoint with the state of a run."""

from typing import Any

import jax

from vit_jax.optim import rules

_MEANING = {
  'opt_state': 'another optimizer or other frozen parameters',
  'params': 'another model or task',
  'ema': 'another moving average (config.ema_decay, or of the task)',
  'task_state': 'another task',
}


def check(folder: str, stored: Any, state: Any) -> None:
  """Raises ValueError if a checkpoint has other arrays than a state.

  Args:
    folder: folder of the checkpoint, for the message.
    stored: tree of Orbax's metadata of the arrays.
    state: dict of the fields of an abstract `TrainState`.
  """
  before, now = {}, {}
  for arrays, tree in ((before, stored), (now, state)):
    for path, x in jax.tree.leaves_with_path(tree):
      arrays[rules.path_of(path)] = _describe(x)
  changed = [
    f'{path} ({before[path]} in the checkpoint, {now[path]} now)'
    for path in before.keys() & now.keys()
    if before[path] != now[path]
  ]
  lines = [
    _line(what, sorted(paths))
    for what, paths in (
      ('only in the checkpoint', before.keys() - now.keys()),
      ('missing in the checkpoint', now.keys() - before.keys()),
      ('of another shape or type', changed),
    )
    if paths
  ]
  if not lines:
    return
  fields = {
    path.partition('/')[0]
    for path in before.keys() | now.keys()
    if before.get(path) != now.get(path)
  }
  meanings = [text for field, text in _MEANING.items() if field in fields]
  raise ValueError(
    f'the checkpoint {folder} has other arrays than this run:\n'
    + '\n'.join(lines)
    + f'\nIt was saved with {", or ".join(meanings) or "another state"}. Give '
    'the run what it was started with, or use another workdir=… for a new run'
  )


def _describe(x):
  """Returns 'float32 [2, 3]'. Typed random keys are stored as uint32."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
    x = jax.eval_shape(jax.random.key_data, x)
  return f'{x.dtype} {list(x.shape)}'


def _line(what, paths, count=5):
  """Returns '  only in the checkpoint: a, b … and 3 more'."""
  more = len(paths) - count
  return f'  {what}: {", ".join(paths[:count])}' + (
    f' … and {more} more' if more > 0 else ''
  )
