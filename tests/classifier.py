"""Functions that make the state and the training step of a classifier."""

import jax
import jax.numpy as jnp

from vit_jax import train_state
from vit_jax import train_step
from vit_jax.parallel import numerics
from vit_jax.run import setup
from vit_jax.tasks import classification
from vit_jax.tasks import losses


def batch_spec(image_size, size=1, mesh=None):
  """Returns the shapes and dtypes of a batch of images and integer labels."""
  where = {'sharding': setup.sharding.by_rows(mesh)} if mesh else {}
  return {
    'image': jax.ShapeDtypeStruct((size, *image_size, 3), jnp.float32, **where),
    'label': jax.ShapeDtypeStruct((size,), jnp.int32, **where),
  }


def make_init_fn(model, tx, image_size, mesh):
  """Returns `train_state.make_init_fn` for an image classifier."""
  return train_state.make_init_fn(
    classification.of_model(model), tx, batch_spec(image_size), mesh
  )


def make_update_fn(
  model,
  tx,
  schedule,
  mesh,
  key,
  accum_steps=1,
  loss_fn=losses.softmax_cross_entropy,
):
  """Returns a jitted function (state, batch) -> (state, metrics)."""
  update = train_step.make_update_fn(
    classification.of_model(model, loss_fn),
    tx,
    schedule,
    mesh,
    keys=numerics.RunKeys(key, key, key),
    accum_steps=accum_steps,
  )

  def run(state, batch):
    return update(state, batch, None)

  run.jitted = update
  return run
