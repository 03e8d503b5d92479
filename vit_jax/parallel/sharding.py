"""The device mesh, and where arrays lie on it.

Arrays are global: each has its full shape, and a part of it on every device.
The mesh has three axes. A batch's rows are spread over 'data' and 'fsdp'
together. Parameters and optimizer state are spread over 'fsdp' by their largest
axis, to save memory, and over 'tensor' by attention heads and MLP columns, to
share the work of a layer. Models know nothing of it: the rules below go by an
array's path and shape.
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

# Which axis of an array is split over 'tensor': the end of its path, and the
# axis counted from the end, so that stacked layers change nothing. A layer that
# widens is split by what it puts out, the one after it by what it takes in:
# one sum over the devices for the two (Shoeybi et al. 2019, arXiv 1909.08053,
# section 3). Optimizer state has the same path below a longer one.
_ATTENTION = r'MultiHeadDotProductAttention_\d+'
_MLP = r'(MlpBlock_\d+|token_mixing|channel_mixing)'
_TENSOR_RULES = (
  (rf'{_ATTENTION}/(query|key|value)/(kernel|bias)', -2),  # [D, H, D / H]
  (rf'{_ATTENTION}/out/kernel', -3),  # [H, D / H, D]
  (rf'{_MLP}/Dense_0/(kernel|bias)', -1),  # [D, M]
  (rf'{_MLP}/Dense_1/kernel', -2),  # [M, D]
  (r'attention_layer/(query|key|value)/(kernel|bias)', -1),  # BERT [D, D]
  (r'attention_block/dense_layer/kernel', -2),
  (r'mlp/dense_layer/(kernel|bias)', -1),
  (r'mlp_block/dense_layer/kernel', -2),
  (r'(Embed_0|embedders_token_ids)/embedding', -1),  # [vocabulary, D]
  (r'head/kernel', -1),  # [D, K]
)
# Arrays with fewer values stay whole on every device: fetching a small one
# costs more than keeping it. The biases of the published models are below.
SMALLEST_SPLIT = 2**13


def make_mesh(
  devices: Sequence[jax.Device] | None = None,
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
) -> Mesh:
  """A mesh of all devices, or the given ones, with the axes `AXES`.

  Args:
    devices: of all processes.
    data: parts of a batch that share nothing else; -1 for the rest.
    fsdp: parts of a batch that share out parameters too; -1 likewise.
    tensor: parts of each layer; -1 likewise.

  Raises:
    ValueError: the lengths do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  lengths = dict(zip(AXES, (data, fsdp, tensor), strict=True))
  given = math.prod(n for n in lengths.values() if n != -1)
  rest = [name for name, n in lengths.items() if n == -1]
  if len(devices) % given or (given != len(devices) and not rest):
    product = ' × '.join(f'{name} {n}' for name, n in lengths.items())
    raise ValueError(
      f'config.mesh: {product} does not fit {len(devices)} device(s)'
      + (
        f': {given} does not divide {len(devices)}. Lower what is not -1'
        if rest
        else f': it makes {given}. Set one of them to -1 for the rest'
      )
    )
  lengths.update({name: len(devices) // given for name in rest})
  # Linen's dropout fails under jax's explicit axis type.
  return jax.make_mesh(
    tuple(lengths.values()),
    AXES,
    devices=devices,
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def describe_mesh(mesh: Mesh) -> str:
  """'data 4 × tensor 2', without axes of length one; '' for one device."""
  return ' × '.join(f'{name} {n}' for name, n in mesh.shape.items() if n > 1)


# --- parameters and optimizer state ------------------------------------------


def partition_spec(
  path: str, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
  """The axes of the mesh over which each axis of an array is split.

  What does not divide stays whole.

  Args:
    path: '/'-joined; its end decides.
    shape: of the array.
    mesh: from `make_mesh`.
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
  """The sharding of every array of parameters or of a state, as a tree."""
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
  """`tree`, laid out by the rules, inside a compiled function."""
  return jax.lax.with_sharding_constraint(tree, by_rules(tree, mesh))


def check_used(params: Mapping[str, Any], mesh: Mesh) -> None:
  """Raises a ValueError where an axis of the mesh would split no parameter."""
  used = {
    axis
    for sharding in jax.tree.leaves(by_rules(params, mesh))
    for axis in sharding.spec
  }
  for axis, wish in (
    (
      'fsdp',
      f'no array of {SMALLEST_SPLIT} values or more has an axis that '
      'it divides',
    ),
    ('tensor', 'it divides neither attention heads nor the width of an MLP'),
  ):
    if mesh.shape[axis] > 1 and axis not in used:
      raise ValueError(
        f'config.mesh.{axis}={mesh.shape[axis]} splits no parameter of this '
        f'model: {wish}. Use --config.mesh.{axis}=1'
      )


def put(array: jax.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
  """A global array, of which each process brings its part of the same one."""
  array = np.asarray(array)
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def gather(tree: Any) -> Any:
  """`tree` with arrays that this process can read whole."""

  def whole(x):
    if x.is_fully_addressable or x.is_fully_replicated:
      return x
    return jax.jit(lambda x: x, out_shardings=replicated(x.sharding.mesh))(x)

  return jax.tree.map(whole, tree)


# --- batches -----------------------------------------------------------------


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """The given axis, that of a batch's rows, spread over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))


def num_row_parts(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


@dataclasses.dataclass(frozen=True)
class Share:
  """What a process makes of each batch: some of `num_parts` equal row parts.

  Where the processes fall into groups that make different rows, `group` of
  `num_groups` is this one's; else there is one group.
  """

  parts: tuple[int, ...] = (0,)
  num_parts: int = 1
  group: int = 0
  num_groups: int = 1

  def rows(self, size: int) -> np.ndarray:
    """Which rows of a batch of `size` this process makes, ascending."""
    return np.arange(size).reshape(self.num_parts, -1)[list(self.parts)].ravel()


def share_of(mesh: Mesh, process: int) -> Share:
  """The `Share` of a process."""
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
  """Global arrays, rows spread over the devices, from this process's rows."""
  sharding = by_rows(mesh)
  if sharding.is_fully_addressable:
    return jax.device_put(batch, sharding)
  share = share_of(mesh, jax.process_index())

  def put_rows(x):
    size = len(x) // len(share.parts) * share.num_parts
    rows = share.rows(size)

    def of_device(index):  # the rows of one device, which are contiguous
      first, last, _ = index[0].indices(size)
      start = np.searchsorted(rows, first)
      return x[start : start + last - first]

    return jax.make_array_from_callback(
      (size, *x.shape[1:]), sharding, of_device
    )

  return jax.tree.map(put_rows, batch)


def check_batch(name: str, size: int, accum_steps: int, mesh: Mesh) -> None:
  """Raises unless `size` rows divide into micro-batches on every device."""
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
      + f': use --config.{name}={nearest}'
      + (' or a smaller accum_steps' if accum_steps > 1 else '')
    )
