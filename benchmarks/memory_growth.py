"""Memory of one process that works for a long time.

  python benchmarks/memory_growth.py

Each part has its own process:

- run: a run of --steps steps that is evaluated, saved and draws pictures (a
  masked autoencoder) a hundred times
- load: --calls calls of `vit_jax.load`, and of the loaded model
- train: --calls calls of `vit_jax.train_and_evaluate` with new data

The program prints the memory (resident set) ten times for each part. The first
tenth compiles and imports. Its exit status is 1 if the memory grows by more
than --limit_mb between the second and the last tenth.
"""

import gc
import pathlib
import resource
import subprocess
import sys
import tempfile

from absl import app
from absl import flags
from absl import logging
import numpy as np

import vit_jax

_PARTS = flags.DEFINE_list('parts', ['run', 'load', 'train'], 'what to measure')
_STEPS = flags.DEFINE_integer('steps', 10_000, 'training steps of the run')
_CALLS = flags.DEFINE_integer('calls', 100, 'calls in one process')
_LIMIT = flags.DEFINE_float('limit_mb', 50, 'largest growth after 20 %')
_PART = flags.DEFINE_string('part', '', 'measures a part in this process')
_ROOT = pathlib.Path(__file__).parent.parent


def used_mb():
  """Returns the resident memory of this process (Linux)."""
  gc.collect()
  pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
  return int(pages) * resource.getpagesize() / 1e6


def quickstart(steps, **settings):
  """Returns the config of the quickstart with other settings."""
  config = vit_jax.get_config(str(_ROOT / 'configs' / 'quickstart.py'))
  config.update(dict(total_steps=steps, warmup_steps=1, batch=32, **settings))
  config.model.update(dict(num_layers=1, hidden_size=32, num_heads=2))
  return config


def run(folder, report):
  """Trains for a long time."""
  steps = _STEPS.value
  every = max(1, steps // 100)
  config = quickstart(
    steps, task='mae', labels='none', eval_every=every, checkpoint_every=every
  )
  config.batch = 8
  config.model.update(dict(dropout_rate=0.0, positions='sincos2d'))
  config.mae.update(dict(decoder_size=32, decoder_layers=1, decoder_heads=2))

  def hook(step, state, metrics):
    del state, metrics
    if step % max(1, steps // 10) == 0:
      report()

  vit_jax.train_and_evaluate(config, f'{folder}/run', hooks=[hook])


def load(folder, report):
  """Loads a model again and again, and uses it."""
  vit_jax.train_and_evaluate(quickstart(2), f'{folder}/run')
  images = np.zeros((4, 16, 16, 3), np.float32)
  for call in range(1, _CALLS.value + 1):
    vit_jax.load(f'{folder}/run').logits(images)
    if call % max(1, _CALLS.value // 10) == 0:
      report()


def train(folder, report):
  """Trains again and again in one process."""
  rng = np.random.default_rng(0)
  for call in range(1, _CALLS.value + 1):
    data = vit_jax.data.from_arrays(
      rng.integers(0, 256, (200, 16, 16, 3), np.uint8), np.arange(200) % 10
    )
    vit_jax.train_and_evaluate(
      quickstart(5, batch_eval=20), f'{folder}/{call}', data=data
    )
    if call % max(1, _CALLS.value // 10) == 0:
      report()


def main(_):
  if _PART.value:
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
      part = {'run': run, 'load': load, 'train': train}[_PART.value]
      part(folder, lambda: print(f'{used_mb():.0f}', flush=True))
    return
  print('| part | memory after each tenth, MB | growth, MB |')
  print('| --- | --- | ---: |')
  failed = False
  for part in _PARTS.value:
    flag = f'--part={part}'
    child = subprocess.run(
      [sys.executable, __file__, *sys.argv[1:], flag],
      cwd=_ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      check=True,
    )
    used = [int(line) for line in child.stdout.split()]
    growth = used[-1] - used[1]
    failed |= growth > _LIMIT.value
    shown = ' '.join(map(str, used))
    print(f'| {part} | {shown} | {growth} |', flush=True)
  sys.exit(failed)


if __name__ == '__main__':
  app.run(main)
