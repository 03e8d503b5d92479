"""What a run needs of its devices' memory, by the compiler's own account."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import math
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax import console
from vit_jax.parallel import processes
from vit_jax.parallel import sharding

# Of a device's memory, what a program may take: allocators lose some between
# arrays, and the next batch arrives while one is worked on.
_USABLE_SHARE = 0.95
_CGROUP_LIMIT = '/sys/fs/cgroup/memory.max'


@dataclasses.dataclass(frozen=True)
class Needed:
  """Bytes of one device's memory that a compiled program needs."""

  arguments: int  # the state and a batch
  outputs: int  # what does not take the place of an argument
  work: int  # activations, gradients, and what else comes and goes

  @property
  def total(self) -> int:
    return self.arguments + self.outputs + self.work


def needed(function: Callable, *arguments: Any) -> Needed:
  """What a jitted function needs for abstract arguments; compiles it."""
  found = function.lower(*arguments).compile().memory_analysis()
  return Needed(
    found.argument_size_in_bytes,
    found.output_size_in_bytes - found.alias_size_in_bytes,
    found.temp_size_in_bytes,
  )


def available() -> int:
  """Bytes of memory of one device of this process."""
  device = jax.local_devices()[0]
  statistics = device.memory_stats() or {}
  if 'bytes_limit' in statistics:
    return statistics['bytes_limit']
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  if os.path.exists(_CGROUP_LIMIT):
    with open(_CGROUP_LIMIT, encoding='ascii') as file:
      limit = file.read().strip()
    total = min(total, int(limit)) if limit.isdigit() else total
  return total // jax.local_device_count()  # processors share the machine's


def per_device(tree: Any) -> int:
  """Bytes that abstract or real arrays take on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def readable(count: float) -> str:
  """'1.50 GB', or '12.3 MB'."""
  return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'


# --- micro-batches -----------------------------------------------------------


def _choices(batch_size, mesh):
  """Numbers of micro-batches that a batch divides into, ascending."""
  rows = batch_size // sharding.num_row_parts(mesh)
  return [n for n in range(1, rows + 1) if rows % n == 0]


def fitting_accum_steps(
  make_update: Callable,
  arguments: Any,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  limit: float | None = None,
) -> int:
  """The fewest micro-batches with which an update fits into memory.

  Args:
    make_update: accum_steps -> jitted update function.
    arguments: abstract ones of that function; the first is the state.
    batch_size: rows of a batch.
    mesh: of the devices.
    limit: bytes of a device; None asks it.

  Raises:
    ValueError: one image at a time is too much; says what would help.
  """
  limit = _USABLE_SHARE * (limit or available())
  choices, at_least = _choices(batch_size, mesh), 0
  for accum_steps in choices:
    if accum_steps < at_least and accum_steps != choices[-1]:
      continue
    found = _needed_or_none(make_update(accum_steps), *arguments)
    if found and found.total <= limit:
      return max(processes.exchange(accum_steps))
    if found:  # the work of n times as many is at least an n-th
      room = max(limit - found.arguments - found.outputs, 1)
      at_least = accum_steps * found.work / room
  raise ValueError(
    'config.accum_steps=auto: even one image at a time on each device needs '
    + (f'{readable(found.total)}, more than ' if found else 'more than ')
    + f'the {readable(limit)} that a device has for it. '
    + _less_memory(batch_size, choices[-1], arguments[0], mesh)
  )


def find_accum_steps(config: ConfigDict, parts: Any, frozen: Any = None) -> int:
  """`config.accum_steps`, found by memory where it is 'auto'.

  Args:
    config: from `base_config`.
    parts: from `setup.make_parts`.
    frozen: what the task does not train.
  """
  if config.accum_steps != 'auto':
    return config.accum_steps
  console.log_info('config.accum_steps=auto: compiling until a step fits')
  accum_steps = fitting_accum_steps(
    parts.make_update,
    (parts.abstract_state, parts.abstract_batch(config.batch), frozen),
    config.batch,
    parts.mesh,
  )
  console.log_info(f'config.accum_steps=auto: {accum_steps}')
  return accum_steps


def _needed_or_none(update, *arguments):
  """`needed`, None where the compiler itself finds that it cannot fit."""
  try:
    return needed(update, *arguments)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return None


# --- running out -------------------------------------------------------------


def _less_memory(batch_size, accum_steps, state, mesh, batch_eval=None):
  """What would help, with numbers."""
  parts = sharding.num_row_parts(mesh)
  held = per_device(state)
  ways = []
  more = [n for n in _choices(batch_size, mesh) if n > accum_steps]
  if more:
    ways.append(
      f'--config.accum_steps={more[0]} works on '
      f'{batch_size // parts // more[0]} image(s) at a time on each device '
      f'instead of {batch_size // parts // accum_steps}'
    )
  if batch_eval and batch_eval > parts:
    smaller = max(parts, batch_eval // 2 // parts * parts)
    ways.append(
      f'--config.batch_eval={smaller}, if it was in evaluation, '
      f'{smaller // parts} instead of {batch_eval // parts}'
    )
  data, fsdp = mesh.shape['data'], mesh.shape['fsdp']
  if data > 1:
    other = sharding.make_mesh(
      mesh.devices.ravel(),
      data=1,
      fsdp=data * fsdp,
      tensor=mesh.shape['tensor'],
    )
    split = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      state,
      sharding.by_rules(state, other),
    )
    ways.append(
      f'--config.mesh.data=1 --config.mesh.fsdp={data * fsdp} keeps '
      f'{readable(per_device(split))} of parameters and optimizer state on '
      f'each device instead of {readable(held)}'
    )
  ways.append(
    '--config.model.remat=full keeps only the inputs of layers; '
    '--config.model.dtype=bfloat16; smaller images '
    '(config.pp.crop); a smaller model'
  )
  return 'Less memory: ' + '; '.join(ways)


@contextlib.contextmanager
def explain_oom(
  config: ConfigDict, accum_steps: int, state: Any, mesh: jax.sharding.Mesh
) -> Iterator[None]:
  """Turns running out of a device's memory into a MemoryError that advises.

  Args:
    config: of the run.
    accum_steps: in use.
    state: the state, or its shapes.
    mesh: that it lies on.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    first_line = str(error).partition('\n')[0]
    raise MemoryError(
      f'a device has run out of memory; it has {readable(available())} '
      f'({first_line}). '
      + _less_memory(config.batch, accum_steps, state, mesh, config.batch_eval)
    ) from error
