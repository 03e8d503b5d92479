"""The device mesh, and rules for the sharding of arrays.

Arrays are global: an array has its full shape, and devices store its shards.
The mesh has three axes. The rows of a batch are split over 'data' and 'fsdp'.
Parameters and optimizer state are split over 'fsdp' along their largest axis,
to save memory. They are also split over 'tensor' along attention heads and MLP
columns, to divide the work of a layer. The rules depend on the path and the
shape of an array. Model code does not contain them.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')

# The end of an array's path selects the axis that is split over 'tensor'. Axes
# are negative, so the rules also hold for stacked layers. The first layer of a
# pair is split along its outputs, the second along its inputs. The pair then
# needs only one sum over the devices (Shoeybi et al. 2019, arXiv 1909.08053,
# section 3). A path in optimizer state ends with the path of its parameter.
_ATTENTION = r'MultiHeadDotProductAttention_\d+'
_MLP = r'(MlpBlock_\d+|token_mixing|channel_mixing)'
_TENSOR_RULES = (
  (rf'{_ATTENTION}/(query|key|value)/(kernel|bias)', -2),  # [D, H, D / H]
  (rf'{_ATTENTION}/out/kernel', -3),  # [H, D / H, D]
  (rf'{_MLP}/(Dense_0|gate)/(kernel|bias)', -1),  # [D, M]
  (rf'{_MLP}/Dense_1/kernel', -2),  # [M, D]
  (r'attention_layer/(query|key|value)/(kernel|bias)', -1),  # BERT [D, D]
  (r'attention_block/dense_layer/kernel', -2),
  (r'mlp/dense_layer/(kernel|bias)', -1),
  (r'mlp_block/dense_layer/kernel', -2),
  (r'(Embed_0|embedders_token_ids)/embedding', -1),  # [vocabulary, D]
  (r'head/kernel', -1),  # [D, K]
)
# Smaller arrays are not split over 'fsdp': collecting their shards costs more
# than a copy on each device. All biases in the blocks of the published models
# are smaller.
SMALLEST_SPLIT = 2**13


def make_mesh(
  devices: Sequence[jax.Device] | None = None,
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
) -> Mesh:
  """Returns a mesh with the axes `AXES`.

  One length may be -1. It is then computed from the number of devices.

  Args:
    devices: devices of all processes; None is all devices of JAX.
    data: length of 'data': parts of a batch.
    fsdp: length of 'fsdp': parts of a batch and of the parameters.
    tensor: length of 'tensor': parts of each layer.

  Raises:
    ValueError: the product of the lengths is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  lengths = dict(zip(AXES, (data, fsdp, tensor), strict=True))
  size = math.prod(n for n in lengths.values() if n != -1)
  rest = [name for name, n in lengths.items() if n == -1]
  if len(devices) % size or (size != len(devices) and not rest):
    product = ' × '.join(f'config.mesh.{k}={n}' for k, n in lengths.items())
    raise ValueError(
      f'{product} does not match the {len(devices)} device(s)'
      + (
        f': {size} does not divide {len(devices)}. Change a value other than '
        '-1.'
        if rest
        else f': the product is {size}. Set one value to -1 to use all devices.'
      )
    )
  lengths.update({name: len(devices) // size for name in rest})
  # Dropout of Flax linen fails with JAX's explicit axis type.
  return jax.make_mesh(
    tuple(lengths.values()),
    AXES,
    devices=devices,
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def describe_mesh(mesh: Mesh) -> str:
  """Returns axes longer than 1: 'data 4 × tensor 2'; '' for one device."""
  return ' × '.join(f'{name} {n}' for name, n in mesh.shape.items() if n > 1)


# --- parameters and optimizer state ------------------------------------------


def partition_spec(
  path: str, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
  """Returns the mesh axis over which each axis of an array is split.

  An axis is not split if its length is not a multiple of the mesh axis.

  Args:
    path: '/'-joined path of the array. Its end selects the rule.
    shape: shape of the array.
    mesh: mesh from `make_mesh`.
  """
  spec = [None] * len(shape)
  for pattern, axis in _TENSOR_RULES:
    if (
      mesh.shape['tensor'] > 1
      and re.search(rf'(^|/){pattern}$', path)
      and len(shape) >= -axis
      and shape[axis] % mesh.shape['tensor'] == 0
    ):
      spec[axis] = 'tensor'
  if mesh.shape['fsdp'] > 1 and math.prod(shape) >= SMALLEST_SPLIT:
    free = [
      axis
      for axis, n in enumerate(shape)
      if spec[axis] is None and n % mesh.shape['fsdp'] == 0
    ]
    if free:
      spec[max(free, key=lambda axis: shape[axis])] = 'fsdp'
  while spec and spec[-1] is None:
    spec.pop()
  return PartitionSpec(*spec)


def by_rules(tree: Any, mesh: Mesh) -> Any:
  """Returns a tree with the sharding of every array of parameters or state."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(
      mesh,
      partition_spec(
        jax.tree_util.keystr(path, simple=True, separator='/'), x.shape, mesh
      ),
    ),
    tree,
  )


def constrain(tree: Any, mesh: Mesh) -> Any:
  """Applies the sharding rules to `tree` inside a compiled function."""
  return jax.lax.with_sharding_constraint(tree, by_rules(tree, mesh))


def check_used(params: Mapping[str, Any], mesh: Mesh) -> None:
  """Raises ValueError if a mesh axis longer than 1 splits no parameter."""
  used = {
    axis
    for sharding in jax.tree.leaves(by_rules(params, mesh))
    for axis in sharding.spec
  }
  for axis, reason in (
    (
      'fsdp',
      f'no axis of an array of {SMALLEST_SPLIT} values or more is divisible '
      'by this number',
    ),
    (
      'tensor',
      'neither the number of attention heads nor the width of an MLP is '
      'divisible by this number',
    ),
  ):
    if mesh.shape[axis] > 1 and axis not in used:
      raise ValueError(
        f'config.mesh.{axis}={mesh.shape[axis]} splits no parameter of this '
        f'model: {reason}. Use config.mesh.{axis}=1.'
      )


def put(array: jax.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
  """Returns a global array from the full array, which all processes have."""
  array = np.asarray(array)
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def gather(tree: Any) -> Any:
  """Returns `tree` with arrays that this process can read completely."""

  def complete(x):
    if x.is_fully_addressable or x.is_fully_replicated:
      return x
    return jax.jit(lambda x: x, out_shardings=replicated(x.sharding.mesh))(x)

  return jax.tree.map(complete, tree)


# --- batches -----------------------------------------------------------------


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding with a complete copy of an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Returns the sharding that splits axis `axis`, the rows, over devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))


def num_row_parts(mesh: Mesh) -> int:
  """Returns the number of parts into which the rows of a batch are split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


@dataclasses.dataclass(frozen=True)
class Share:
  """The rows of a batch that a process makes: some of `num_parts` equal parts.

  Processes of one group make the same rows; different groups make different
  rows. `group` is the index of this process's group, below `num_groups`. If the
  rows of groups would overlap or differ in number, all processes form one group
  and may make different rows.
  """

  parts: tuple[int, ...] = (0,)
  num_parts: int = 1
  group: int = 0
  num_groups: int = 1

  def rows(self, size: int) -> np.ndarray:
    """Returns ascending indices of this process's rows in `size` rows."""
    return np.arange(size).reshape(self.num_parts, -1)[list(self.parts)].ravel()


def share_of(mesh: Mesh, process: int) -> Share:
  """Returns the `Share` of a process."""
  num_parts = num_row_parts(mesh)
  holders = [
    {device.process_index for device in devices}
    for devices in mesh.devices.reshape(num_parts, -1)
  ]
  parts_of = {
    p: tuple(i for i, held in enumerate(holders) if p in held)
    for p in set().union(*holders)
  }
  groups = sorted(set(parts_of.values()))
  sizes = {len(parts) for parts in groups}
  if len(sizes) > 1 or sum(map(len, groups)) > num_parts:  # they overlap
    return Share(parts_of[process], num_parts)
  return Share(
    parts_of[process], num_parts, groups.index(parts_of[process]), len(groups)
  )


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Returns global arrays, split by rows, from the rows of this process.

  Arrays that are already on the mesh are kept as they are.
  """
  sharding = by_rows(mesh)

  def is_placed(x):
    return isinstance(x, jax.Array) and getattr(x.sharding, 'mesh', 0) == mesh

  if sharding.is_fully_addressable:
    return jax.device_put(
      batch,
      jax.tree.map(lambda x: x.sharding if is_placed(x) else sharding, batch),
    )
  share = share_of(mesh, jax.process_index())

  def put_rows(x):
    if is_placed(x):
      return x
    size = len(x) // len(share.parts) * share.num_parts
    rows = share.rows(size)

    def of_device(index):  # the rows of one device are contiguous
      first, last, _ = index[0].indices(size)
      start = np.searchsorted(rows, first)
      return x[start : start + last - first]

    return jax.make_array_from_callback(
      (size, *x.shape[1:]), sharding, of_device
    )

  return jax.tree.map(put_rows, batch)


def check_batch(name: str, size: int, accum_steps: int, mesh: Mesh) -> None:
  """Raises ValueError if micro-batches cannot be split over the devices."""
  parts = accum_steps * num_row_parts(mesh)
  if size % parts:
    nearest = max(parts, round(size / parts) * parts)
    split = ' × '.join(
      f'config.mesh.{axis}={mesh.shape[axis]}'
      for axis in ROWS
      if mesh.shape[axis] > 1
    )
    raise ValueError(
      f'config.{name}={size} is not divisible by '
      + (
        f'{num_row_parts(mesh)} device(s)'
        if mesh.shape['tensor'] == 1 and mesh.shape['fsdp'] == 1
        else split or 'one device'
      )
      + (f' × config.accum_steps={accum_steps}' if accum_steps > 1 else '')
      + f': it must be a multiple of {parts}. Use config.{name}={nearest}'
      + (' or a smaller config.accum_steps.' if accum_steps > 1 else '.')
    )
