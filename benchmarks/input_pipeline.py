"""Throughput of the training input, compared with the training step.

  python benchmarks/input_pipeline.py --models=ti16 --batches=16

The photographs are random crops of scikit-learn's two sample images (640 × 427
pixels). The small images are the photographs resized to 32 × 32. Both kinds
are written to a folder of JPEG files, as a user would store them. The last
column is the input's time as a fraction of the step's time. Each time is
measured with all cores. Above 1, the step waits for the input.
"""

import itertools
import pathlib
import statistics
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np
from PIL import Image
from sklearn import datasets
import step_time

from vit_jax import base_config
from vit_jax.run import setup

_NUM_BATCHES = flags.DEFINE_integer('num_batches', 20, 'Timed batches.')
_NUM_FILES = flags.DEFINE_integer('num_files', 256, 'Files in the folder.')


def write_folder(folder, small):
  """Writes two classes of JPEG files, cropped at random offsets."""
  rng = np.random.default_rng(0)
  for name, pixels in zip(
    ('china', 'flower'), datasets.load_sample_images().images, strict=True
  ):
    folder.joinpath(name).mkdir(parents=True)
    height, width = pixels.shape[:2]
    for i in range(_NUM_FILES.value // 2):
      top, left = rng.integers(0, 40, 2)
      image = Image.fromarray(pixels[top:height, left:width])
      if small:
        image = image.resize((32, 32))
      image.save(folder / name / f'{i}.jpg', quality=92)


def rates(folder, batch, size):
  """Returns images per second for three groups of batches, after warm-up."""
  config = base_config.for_dataset(str(folder))
  config.batch = batch
  config.pp.crop = size
  batches = setup.get_datasets(config).train(0)
  for _ in range(4):
    next(batches)
  taken = []
  for _ in range(_NUM_BATCHES.value):
    start = time.perf_counter()
    next(batches)
    taken.append(time.perf_counter() - start)
  # Some batches are already buffered, so only sums of times are meaningful.
  thirds = [sum(part) for part in np.array_split(taken, 3)]
  return [_NUM_BATCHES.value / 3 * batch / seconds for seconds in thirds]


def main(_):
  size = step_time._IMAGE_SIZE.value
  print(
    '| images | model | image_size | batch | input, images/s | step, '
    'images/s | fraction of the step |\n|' + ' --- |' * 7
  )
  batches = [int(batch) for batch in step_time._BATCHES.value]
  with tempfile.TemporaryDirectory() as folder:
    for kind in ('photographs', 'small'):
      write_folder(pathlib.Path(folder, kind), small=kind == 'small')
    for name, batch in itertools.product(step_time._MODELS.value, batches):
      step, _ = step_time.make_step(
        name, batch, step_time._DTYPES.value[0], 'training', {}
      )
      taken = step_time.seconds_of(step, step_time._REPEATS.value)
      step_rate = batch / statistics.median(taken)
      for kind in ('photographs', 'small'):
        rate = statistics.median(rates(pathlib.Path(folder, kind), batch, size))
        print(
          f'| {kind} | {name} | {size} | {batch} | {rate:.0f} | '
          f'{step_rate:.1f} | {step_rate / rate:.3f} |',
          flush=True,
        )
  print(f'\n{jax.device_count()} × {jax.devices()[0].device_kind}')


if __name__ == '__main__':
  app.run(main)
