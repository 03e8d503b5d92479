"""Times training steps with frozen parameters, and measures their memory.

  python benchmarks/frozen.py --model=ti16 --image_size=96 --batch=16

The rows are: nothing frozen, the embeddings and blocks 0 to 5 frozen, and all
but the head frozen. The steps of the rows alternate, so that other work on the
machine affects all rows alike. The memory is the compiler's.
"""

import statistics
import time

from absl import app
from absl import flags
import jax
import numpy as np

from vit_jax import base_config
from vit_jax import models
from vit_jax import train_state
from vit_jax import train_step
from vit_jax.cost import memory
from vit_jax.optim import optimizer
from vit_jax.optim import rules
from vit_jax.parallel import numerics
from vit_jax.parallel import sharding
from vit_jax.tasks import classification

_MODEL = flags.DEFINE_string('model', 'ti16', 'Name of the model.')
_SIZE = flags.DEFINE_integer('image_size', 96, 'Side of the images, pixels.')
_BATCH = flags.DEFINE_integer('batch', 16, 'Images per step.')
_REPEATS = flags.DEFINE_integer('repeats', 10, 'Timed steps of each row.')

_LOWER = 'cls|embedding/.*|.*posembed.*|.*encoderblock_[0-5]/.*'
FREEZE = {
  'nothing': '',
  'embeddings and blocks 0 to 5': _LOWER,
  'all but the head': '(?!head/).*',
}


def make_step(freeze, batch, mesh):
  """Returns (function that runs a step, `memory.Needed`) of a freeze rule."""
  config = base_config.get_config()
  config.update(dict(optimizer='adamw', momentum_dtype='float32'))
  task = classification.of_model(models.get_model(_MODEL.value, num_classes=10))
  shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
  frozen = rules.find_frozen(rules.paths_of(shapes), freeze)

  def schedule(step):
    return 1e-4

  tx = optimizer.make_optimizer(config, schedule)
  init = train_state.make_init_fn(task, tx, batch, mesh, frozen)
  state = init(jax.random.key(0))
  update = train_step.make_update_fn(
    task, tx, schedule, mesh, keys=numerics.run_keys(1), frozen_paths=frozen
  )

  def step():
    nonlocal state
    start = time.perf_counter()
    state, metrics = update(state, batch, None)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - start

  return step, memory.needed(update, state, batch, None)


def main(_):
  rng = np.random.default_rng(0)
  shape = (_BATCH.value, _SIZE.value, _SIZE.value, 3)
  mesh = sharding.make_mesh()
  batch = sharding.put_batch(
    {
      'image': rng.uniform(-1, 1, shape).astype(np.float32),
      'label': rng.integers(10, size=_BATCH.value).astype(np.int32),
    },
    mesh,
  )
  rows = {
    name: make_step(freeze, batch, mesh) for name, freeze in FREEZE.items()
  }
  for step, _ in rows.values():
    step()  # compiles
  times = [[step() for step, _ in rows.values()] for _ in range(_REPEATS.value)]
  medians = [statistics.median(column) for column in zip(*times, strict=True)]
  print('| frozen | ms per step | ratio | state and batch, MB | work, MB |')
  print('| --- | ---: | ---: | ---: | ---: |')
  for (name, (_, needed)), seconds in zip(rows.items(), medians, strict=True):
    print(
      f'| {name} | {1e3 * seconds:.0f} | {seconds / medians[0]:.2f} '
      f'| {needed.arguments / 1e6:.1f} '
      f'| {(needed.outputs + needed.work) / 1e6:.1f} |'
    )


if __name__ == '__main__':
  app.run(main)
