"""Times each setting of `config.augment`.

  python benchmarks/augmentation.py --repeats=15

A batch is 128 images of 32 px or 16 images of 224 px, uint8. The settings take
turns, and the fastest repeat counts. Then other work on the machine has little
effect.
"""

import time

from absl import app
from absl import flags
import jax
import numpy as np

from vit_jax import base_config
from vit_jax.augment import augmentation

_REPEATS = flags.DEFINE_integer('repeats', 15, 'Timed repeats.')
_BATCHES = ((128, 32), (16, 224))  # images, pixels
_SETTINGS = {
  'none': {},
  'policy=randaug(2,15)': dict(policy='randaug(2,15)'),
  'policy=randaug_fixed(2,15)': dict(policy='randaug_fixed(2,15)'),
  'policy=rand-m9-mstd0.5-inc1': dict(policy='rand-m9-mstd0.5-inc1'),
  'policy=trivial': dict(policy='trivial'),
  'policy=3augment': dict(policy='3augment'),
  'jitter=0.3': dict(jitter=0.3),
  'erasing=0.25': dict(erasing=0.25),
  'pad=4': dict(pad=4),
  'mixup=0.8, cutmix=1': dict(mixup=0.8, cutmix=1.0),
}


def make(changes, count, size):
  """Returns (function that augments a batch, seconds of compilation)."""
  config = base_config.get_config()
  config.augment.update(changes)
  augment = augmentation.Settings(**config.augment).make(10)
  rng = np.random.default_rng(0)
  batch = jax.device_put(
    {
      'image': rng.integers(0, 256, (count, size, size, 3), np.uint8),
      'label': rng.integers(0, 10, count),
    }
  )
  start = time.perf_counter()
  compiled = jax.jit(augment).lower(jax.random.key(0), batch, 0).compile()
  seconds = time.perf_counter() - start
  return lambda i: compiled(jax.random.key(i), batch, 0), seconds


def measure(count, size):
  """Returns {setting: (milliseconds, seconds of compilation)}."""
  made = {
    name: make(changes, count, size) for name, changes in _SETTINGS.items()
  }
  shortest = dict.fromkeys(made, float('inf'))
  for i in range(_REPEATS.value):
    for name, (augment, _) in made.items():
      start = time.perf_counter()
      jax.block_until_ready(augment(i))
      shortest[name] = min(shortest[name], time.perf_counter() - start)
  return {name: (1e3 * shortest[name], made[name][1]) for name in made}


def main(_):
  found = [measure(*batch) for batch in _BATCHES]
  heads = [f'{count} images of {size} px, ms' for count, size in _BATCHES]
  print(f'| setting | {" | ".join(heads)} | compilation, s |')
  print('| --- | ---: | ---: | ---: |')
  for name in _SETTINGS:
    times = ' | '.join(f'{x[name][0]:.1f}' for x in found)
    print(f'| `{name}` | {times} | {found[-1][name][1]:.1f} |')


if __name__ == '__main__':
  app.run(main)
