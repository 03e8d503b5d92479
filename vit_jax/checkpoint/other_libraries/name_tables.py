"""Reads and writes the arrays of other libraries by tables of names.

The rows of the tables are described in `torch_names`. They are used in both
directions: from {their path: array} to {our path: array}, and back.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import re

import numpy as np

from vit_jax.checkpoint.other_libraries import torch_names
from vit_jax.models import param_paths

Table = Sequence[tuple[str, str, str]]
# {change: (their array and number of heads H -> ours, our array -> theirs)}
_CHANGES = {
  'same': (lambda x, _: x, lambda x: x),
  'turned': (lambda x, _: x.T, lambda x: x.T),
  'conv': (  # [F, C, h, w] -> [h, w, C, F]
    lambda x, _: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
  ),
  'pointwise': (  # [F, C, 1, 1] -> [C, F]
    lambda x, _: x[:, :, 0, 0].T,
    lambda x: x.T[:, :, None, None],
  ),
  'heads': (  # [H·d, D] -> [D, H, d]; [H·d] -> [H, d]
    lambda x, heads: x.T.reshape(*x.T.shape[:-1], heads, -1),
    lambda x: x.reshape(*x.shape[:-2], -1).T,
  ),
  'out': (  # [D, H·d] -> [H, d, D]
    lambda x, heads: x.T.reshape(heads, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[-1]).T,
  ),
  'vector': (lambda x, _: x[None, None], lambda x: x[0, 0]),
  'rows': (lambda x, _: x[None], lambda x: x[0]),
}
# Parts of models that vit_jax cannot represent.
_REASONS = (
  (
    r'(.*\.)?rel_pos|(.*\.)?relative_position',
    'a table of relative positions in the style of Swin, or for all blocks',
  ),
  (r'.*\.lambda_', 'differential attention'),
  (r'.*\.attn\.gate\.', 'attention with gates'),
  (r'.*\.running_mean', 'batch norms'),
)


def _pattern(template):
  """Returns a regular expression for a path; {s+1} becomes the group s_1."""
  pattern = re.escape(template)
  pattern = re.sub(r'\\\{(\w)\\\}', r'(?P<\1>\\d+)', pattern)
  return re.compile(re.sub(r'\\\{(\w)\\\+1\\\}', r'(?P<\1_1>\\d+)', pattern))


def _fill(template, numbers):
  """Fills a path template; `numbers` has i, s, u or s_1, u_1 as strings."""
  values = {
    name[0]: int(number) - name.endswith('_1')
    for name, number in numbers.items()
  }
  template = re.sub(
    r'\{(\w)\+1\}', lambda match: str(values[match[1]] + 1), template
  )
  return template.format(**values)


def _rows(table):
  """Yields templates (our paths, their path, change) for each array."""
  for kind, here, there in table:
    folder, _, names = here.rpartition('/')
    folder = f'{folder}/' if folder else ''
    for suffix, torch_suffix, change in torch_names.ARRAYS[kind]:
      yield (
        [f'{folder}{name}{suffix}' for name in names.split('|')],
        there + torch_suffix,
        change,
      )


def _index(table, side):
  """Returns [(path pattern, row)]; side 0 has our paths, side 1 theirs."""
  return [
    (_pattern(path), row)
    for row in _rows(table)
    for path in (row[0] if side == 0 else [row[1]])
  ]


def _lookup(index, path):
  """Yields (row, numbers) for each row that has this path."""
  for pattern, row in index:
    match = pattern.fullmatch(path)
    if match:
      yield row, match.groupdict()


def read(
  flat: Mapping[str, np.ndarray],
  table: Table,
  num_heads: int | None,
  pool_heads: int | None = None,
) -> dict[str, np.ndarray]:
  """Returns arrays with our names; of several rows, the first one is used.

  Args:
    flat: {their path: array}.
    table: rows of names.
    num_heads: attention heads in each block; None without attention.
    pool_heads: attention heads of the pooling; None: `num_heads`.

  Raises:
    ValueError: lists the names that have no counterpart in vit_jax.
  """
  index, found, unknown = _index(table, 1), {}, []
  for path, array in flat.items():
    row, numbers = next(_lookup(index, path), (None, None))
    if row is None:
      unknown.append(path)
      continue
    here, _, change = row
    pools = here[0].startswith(param_paths.POOLING)
    heads = (pool_heads if pools else None) or num_heads
    if change in ('heads', 'out'):
      width = array.shape[-1]
      if change == 'heads':
        width = array.shape[0] // len(here)
      if width % heads:
        raise ValueError(
          f'num_heads={heads} does not divide {width}, the width of {path} '
          f'{array.shape}. Use a divisor of {width}.'
        )
    for name, part in zip(here, np.split(array, len(here)), strict=True):
      found[_fill(name, numbers)] = _CHANGES[change][0](part, heads)
  if unknown:
    raise ValueError(_complaint(unknown, flat))
  return found


def our_names(paths: Iterable[str], table: Table) -> dict[str, str]:
  """Returns {our path: their path} of the arrays that have rows in a table."""
  index, found = _index(table, 1), {}
  for path in paths:
    for (here, _, _), numbers in itertools.islice(_lookup(index, path), 1):
      found[_fill(here[0], numbers)] = path
  return found


def write(
  flat: Mapping[str, np.ndarray], table: Table, program: str
) -> dict[str, np.ndarray]:
  """Returns our arrays with names of another library; the opposite of `read`.

  Of several rows for an array, the first one is used.

  Raises:
    ValueError: lists the arrays that have no name in `program`.
  """
  index, found, done = _index(table, 0), {}, set()
  for path in flat:
    for (here, there, change), numbers in _lookup(index, path):
      parts = [_fill(name, numbers) for name in here]
      if done.isdisjoint(parts) and all(part in flat for part in parts):
        found[_fill(there, numbers)] = np.concatenate(
          [_CHANGES[change][1](flat[part]) for part in parts]
        )
        done.update(parts)
  if flat.keys() - done:
    raise ValueError(
      f'{program} has no names for:\n'
      + '\n'.join(
        f'  {path} {np.shape(flat[path])}'
        for path in sorted(flat.keys() - done)
      )
      + '\nSave an .npz instead.'
    )
  return found


def _complaint(unknown, flat):
  reasons = [
    reason
    for pattern, reason in _REASONS
    if any(re.match(pattern, path) for path in unknown)
  ]
  return (
    'vit_jax has no counterpart of these arrays'
    + (f' ({"; ".join(reasons)})' if reasons else '')
    + ':\n'
    + '\n'.join(f'  {path} {flat[path].shape}' for path in sorted(unknown))
    + '\nUse other weights.'
  )
