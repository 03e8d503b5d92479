"""Estimates the device memory of a run, with XLA's memory analysis."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax import base_config
from vit_jax import console
from vit_jax.parallel import host_memory
from vit_jax.parallel import processes
from vit_jax.parallel import sharding

# Fraction of a device's memory that a program may use. The rest is for memory
# fragmentation, and for the next batch, which arrives during a step.
_USABLE_FRACTION = 0.95


@dataclasses.dataclass(frozen=True)
class Needed:
  """Bytes of one device's memory that a compiled program needs."""

  arguments: int  # the state and a batch
  outputs: int  # outputs that do not reuse the memory of an argument
  work: int  # temporary arrays, such as activations and gradients

  @property
  def total(self) -> int:
    return self.arguments + self.outputs + self.work


def needed(function: Callable, *arguments: Any) -> Needed:
  """Compiles a function for abstract arguments; returns the memory it needs."""
  analysis = function.lower(*arguments).compile().memory_analysis()
  return Needed(
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    analysis.temp_size_in_bytes,
  )


def available() -> int:
  """Returns the bytes of memory of one device of this process."""
  device = jax.local_devices()[0]
  statistics = device.memory_stats() or {}
  if 'bytes_limit' in statistics:
    return statistics['bytes_limit']
  # CPUs share the memory.
  return host_memory.of_machine() // jax.local_device_count()


def check_batches(config: ConfigDict) -> None:
  """Raises ValueError if the images of one batch do not fit into memory."""
  for name in ('batch', 'batch_eval'):
    host_memory.check_batch(name, config[name], base_config.image_size(config))


def per_device(tree: Any) -> int:
  """Returns the bytes of abstract or real arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def readable(count: float) -> str:
  """Returns a text such as '1.50 GB' or '12.3 MB'."""
  return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'


# --- micro-batches -----------------------------------------------------------


def _choices(batch_size, mesh):
  """Returns all possible numbers of micro-batches, in ascending order."""
  rows = batch_size // sharding.num_row_parts(mesh)
  return [n for n in range(1, rows + 1) if rows % n == 0]


def fitting_accum_steps(
  make_update: Callable,
  arguments: Any,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  limit: float | None = None,
) -> int:
  """Returns the smallest number of micro-batches that fits into memory.

  Args:
    make_update: accum_steps -> jitted update function.
    arguments: abstract arguments of the update function, first the state.
    batch_size: number of rows of a batch.
    mesh: device mesh.
    limit: bytes of memory of a device. None: the memory that it reports.

  Raises:
    ValueError: one image per device does not fit. The message has advice.
  """
  limit = _USABLE_FRACTION * (limit or available())
  choices, at_least = _choices(batch_size, mesh), 0
  for accum_steps in choices:
    if accum_steps < at_least and accum_steps != choices[-1]:
      continue
    needs = _needed_or_none(make_update(accum_steps), *arguments)
    if needs and needs.total <= limit:
      return max(processes.exchange(accum_steps))
    if needs:  # n times as many micro-batches save at most a factor of n
      room = max(limit - needs.arguments - needs.outputs, 1)
      at_least = accum_steps * needs.work / room
  raise ValueError(
    'config.accum_steps=auto: even one image at a time on each device needs '
    + (f'{readable(needs.total)}, more than ' if needs else 'more than ')
    + f'the usable {readable(limit)} of a device. '
    + _less_memory(batch_size, choices[-1], arguments[0], mesh)
  )


def find_accum_steps(config: ConfigDict, parts: Any, frozen: Any = None) -> int:
  """Returns `config.accum_steps`; for 'auto', the number that memory allows.

  Args:
    config: settings from `base_config`.
    parts: from `setup.make_parts`.
    frozen: frozen arrays of the task, from `initial_weights.load_frozen`.
  """
  if config.accum_steps != 'auto':
    return config.accum_steps
  console.log_info(
    'config.accum_steps=auto: compiling the step with more and more '
    'micro-batches until it fits into memory'
  )
  accum_steps = fitting_accum_steps(
    parts.make_update,
    (parts.abstract_state, parts.abstract_feed(), frozen),
    parts.batch,
    parts.mesh,
  )
  console.log_info(f'config.accum_steps=auto: {accum_steps}')
  return accum_steps


def _needed_or_none(update, *arguments):
  """Returns `needed`, or None if the compiler reports too little memory."""
  try:
    return needed(update, *arguments)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return None


# --- out of memory -----------------------------------------------------------


def _less_memory(
  batch_size, accum_steps, state, mesh, batch_eval=None, has_sam=False
):
  """Returns advice on using less memory, with the effect of each setting."""
  parts = sharding.num_row_parts(mesh)
  ways = []
  more = [n for n in _choices(batch_size, mesh) if n > accum_steps]
  if more:
    ways.append(
      f'config.accum_steps={more[0]} processes '
      f'{batch_size // parts // more[0]} image(s) at a time on each device '
      f'instead of {batch_size // parts // accum_steps}'
      + (
        ', but changes the training, because config.sam.rho perturbs the '
        'parameters for each micro-batch'
        if has_sam
        else ''
      )
    )
  if batch_eval and batch_eval > parts:
    smaller = max(parts, batch_eval // 2 // parts * parts)
    ways.append(
      f'config.batch_eval={smaller} evaluates {smaller // parts} image(s) at a '
      f'time on each device instead of {batch_eval // parts}'
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
      f'config.mesh.data=1 with config.mesh.fsdp={data * fsdp} stores '
      f'{readable(per_device(split))} of parameters and optimizer state on '
      f'each device instead of {readable(per_device(state))}'
    )
  ways.append(
    'config.model.remat=full stores only the inputs of layers; '
    'config.model.dtype=bfloat16; smaller images (config.pp.crop); a smaller '
    'model'
  )
  return 'To use less memory: ' + '; '.join(ways)


@contextlib.contextmanager
def explain_oom(
  config: ConfigDict, accum_steps: int, state: Any, mesh: jax.sharding.Mesh
) -> Iterator[None]:
  """Turns an out-of-memory error of a device into a MemoryError with advice.

  Args:
    config: settings of the run.
    accum_steps: the number of micro-batches in use.
    state: the state, or its shapes.
    mesh: device mesh of the state.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    first_line = str(error).partition('\n')[0]
    raise MemoryError(
      f'a device ran out of memory; it has {readable(available())} '
      f'({first_line}). '
      + _less_memory(
        config.batch,
        accum_steps,
        state,
        mesh,
        config.batch_eval,
        has_sam=bool(config.sam.rho),
      )
    ) from error
