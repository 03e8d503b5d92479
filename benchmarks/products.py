"""Times our dense layers and patch embedding against the layers of Flax.

  python benchmarks/products.py --repeats=9

`linear.Dense` and `patches.PatchEmbedding` (in `models/layers/`) compute matrix
products. Flax's layers give the same outputs. The benchmark trains a few layers
of ViT-Ti/16 with each combination of layers. The combinations take turns, and
the fastest repeat counts. Then other work on the machine has little effect.
"""

import contextlib
import time
from unittest import mock

from absl import app
from absl import flags
import flax.linen as nn
import jax
import numpy as np
import optax

from vit_jax import models
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.models.layers import linear
from vit_jax.models.layers import patches
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.tasks import classification

_BATCH = flags.DEFINE_integer('batch', 16, 'Images per step.')
_LAYERS = flags.DEFINE_integer('layers', 4, 'Layers of ViT-Ti/16.')
_ACCUM_STEPS = flags.DEFINE_list(
  'accum_steps', ['1', '4'], 'Numbers of micro-batches per step.'
)
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed repeats.')
_SIZE = (224, 224)


def convolution(hidden_size, patch_size, dtype, name):
  """Returns a function that embeds patches with Flax's convolution."""

  def embed(images):
    x = nn.Conv(
      hidden_size,
      (patch_size,) * 2,
      strides=patch_size,
      padding='VALID',
      dtype=dtype,
      name=name,
    )(images)
    return x.reshape(x.shape[0], -1, hidden_size)

  return embed


_FLAX_DENSE = {
  (linear, 'Dense'): nn.Dense,
  (linear, 'DenseGeneral'): nn.DenseGeneral,
}
_FLAX_PATCHES = {(patches, 'PatchEmbedding'): convolution}
_WAYS = {  # layers that are replaced by Flax's
  "Flax's layers": {**_FLAX_DENSE, **_FLAX_PATCHES},
  'dense layers as products': _FLAX_PATCHES,
  'patches as products': _FLAX_DENSE,
  'both': {},
}


def make_step(exchanged, accum_steps):
  """Returns a function that trains one step and waits for its end."""
  mesh = sharding.make_mesh()
  rng = np.random.default_rng(0)
  batch = sharding.put_batch(
    {
      'image': rng.uniform(-1, 1, (_BATCH.value, *_SIZE, 3)).astype(np.float32),
      'label': np.eye(10, dtype=np.float32)[
        rng.integers(10, size=_BATCH.value)
      ],
    },
    mesh,
  )
  model = models.get_model(
    'ViT-Ti_16', num_classes=10, num_layers=_LAYERS.value
  )
  tx = optax.sgd(1e-3, momentum=0.9, accumulator_dtype='bfloat16')
  with contextlib.ExitStack() as stack:
    for (module, name), layer in exchanged.items():
      stack.enter_context(mock.patch.object(module, name, layer))
    task = classification.of_model(model)
    state = train_state.make_init_fn(task, tx, batch, mesh)(jax.random.key(0))
    update = (
      train_step.make_update_fn(
        task,
        tx,
        lambda _: 1e-3,
        mesh,
        keys=numerics.run_keys(1),
        accum_steps=accum_steps,
      )
      .lower(state, batch, None)
      .compile()
    )

  def step():
    nonlocal state
    state, metrics = update(state, batch, None)
    jax.block_until_ready(metrics)

  return step


def main(_):
  print(
    '| | micro-batches | milliseconds | times as fast |\n'
    '| --- | ---: | ---: | ---: |'
  )
  for accum_steps in map(int, _ACCUM_STEPS.value):
    steps = {
      name: make_step(exchanged, accum_steps)
      for name, exchanged in _WAYS.items()
    }
    taken = {name: [] for name in steps}
    for _ in range(_REPEATS.value):
      for name, step in steps.items():
        start = time.perf_counter()
        step()
        taken[name].append(time.perf_counter() - start)
    shortest = {name: min(x) for name, x in taken.items()}
    for name, seconds in shortest.items():
      print(
        f'| {name} | {accum_steps} | {1e3 * seconds:.0f} | '
        f'{next(iter(shortest.values())) / seconds:.2f} |',
        flush=True,
      )


if __name__ == '__main__':
  app.run(main)
