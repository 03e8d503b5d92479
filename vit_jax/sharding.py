"""The device mesh, and where arrays lie on it.

Arrays are global: a batch has its full size, and its rows lie spread over the
mesh's 'data' axis. Parameters and optimizer state are the same on every device.
"""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

DATA = 'data'


def make_mesh(devices=None):
  """A mesh of all devices, or the given ones, along one axis 'data'."""
  devices = jax.devices() if devices is None else devices
  # Linen's dropout fails under jax's explicit axis type.
  return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,),
                       devices=devices)


def replicated(mesh):
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh, axis=0):
  """The given axis, that of a batch's rows, spread over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))


def put_batch(batch, mesh):
  """Global arrays, rows spread over the devices, from this process's rows."""
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(by_rows(mesh), x), batch)


def check_batch(name, size, accum_steps, mesh):
  """Raises unless `size` rows divide into micro-batches on every device."""
  parts = accum_steps * mesh.size
  if size % parts:
    nearest = max(parts, round(size / parts) * parts)
    raise ValueError(
        f'config.{name}={size} is not divisible by {mesh.size} device(s)'
        + (f' × config.accum_steps={accum_steps}' if accum_steps > 1 else '')
        + f': use --config.{name}={nearest}'
        + (' or a smaller accum_steps' if accum_steps > 1 else ''))
