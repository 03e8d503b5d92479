"""The state of a run: created on the mesh, saved and restored with Orbax."""

import os
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from vit_jax import sharding


@flax.struct.dataclass
class TrainState:
  """What a step reads and writes."""

  step: jax.Array  # completed updates, int32 []
  params: Any  # nested dict of float32 arrays
  opt_state: optax.OptState


def make_init_fn(model, tx, image_size, mesh):
  """Returns the compiled `key -> TrainState`, in place on every device.

  Args:
    model: linen module.
    tx: optax gradient transformation.
    image_size: (height, width) in pixels, RGB.
    mesh: the state is replicated over it.
  """

  def init(key):
    params = model.init(key, jnp.zeros((1, *image_size, 3)),
                        train=False)['params']
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

  return jax.jit(init, out_shardings=sharding.replicated(mesh))


def with_params(state, params):
  """`state` with other parameters, laid out as its own are."""
  return state.replace(params=jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding), params, state.params))


class Checkpoints:
  """The newest states of a run, each in a folder named after its step."""

  def __init__(self, folder, keep):
    self._folder = os.path.abspath(folder)
    self._manager = ocp.CheckpointManager(
        self._folder, options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True))

  def latest_step(self):
    """Completed updates of the newest checkpoint, None where there is none."""
    return self._manager.latest_step()

  def save(self, step, state):
    """Starts writing; returns once the arrays are copied off the devices."""
    self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, init_fn):
    """The newest checkpoint, laid out as the states of `init_fn` are.

    Raises:
      ValueError: it cannot be read; the message says what to do.
    """
    step = self.latest_step()
    abstract = jax.eval_shape(init_fn, jax.random.key(0))
    try:
      return self._manager.restore(
          step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax raises what its storage layers raise
      folder = os.path.join(self._folder, str(step))
      earlier = [s for s in self._manager.all_steps() if s != step]
      goes_on = (f'to go on from step {max(earlier)}' if earlier
                 else 'to start again from the beginning')
      reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:200]
      raise ValueError(
          f'the checkpoint {folder} cannot be restored ({reason}). If it is '
          f'damaged, remove that folder {goes_on}; or train in another '
          '--workdir') from error

  def close(self):
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()
