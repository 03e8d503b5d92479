"""The state of a run: created on the mesh, saved and restored with Orbax."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from vit_jax.parallel import sharding


@flax.struct.dataclass
class TrainState:
  """What a step reads and writes."""

  step: jax.Array  # completed updates, int32 []
  params: Any  # nested dict of float32 arrays
  opt_state: optax.OptState


def make_init_fn(model, tx, image_size, mesh):
  """Returns the compiled `key -> TrainState`, each part made where it lies.

  Args:
    model: linen module.
    tx: optax gradient transformation.
    image_size: (height, width) in pixels, RGB.
    mesh: of the devices that share the state by `sharding.by_rules`.
  """

  def init(key):
    params = model.init(
      key, jnp.zeros((1, *image_size, 3), jnp.float32), train=False
    )['params']
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

  shardings = sharding.by_rules(jax.eval_shape(init, jax.random.key(0)), mesh)
  return jax.jit(init, out_shardings=shardings)


def with_params(state, params):
  """`state` with other parameters, laid out as its own are."""
  return state.replace(
    params=jax.tree.map(
      lambda new, old: sharding.put(new, old.sharding), params, state.params
    )
  )
