"""Seconds to the first batch of a run that resumes at step k.

  python benchmarks/resume.py
  python benchmarks/resume.py --dataset=cifar10 --tfds_data_dir=/prepared

Without --dataset, the benchmark writes a folder of images. A TFDS dataset is
timed twice: in memory, and streamed from its shards. A resumed run that streams
skips the records that its epoch has already used.
"""

import pathlib
import tempfile
import time

from absl import app
from absl import flags
from absl import logging
import numpy as np
from PIL import Image

from vit_jax import base_config
from vit_jax.run import setup

_STEPS = flags.DEFINE_list(
  'steps', ['0', '100', '10000', '1000000', '100000000'], 'Steps to resume at.'
)
_BATCH = flags.DEFINE_integer('batch', 128, 'Images per step.')
_DATASET = flags.DEFINE_string('dataset', None, 'TFDS name.')
_TFDS_DATA_DIR = flags.DEFINE_string(
  'tfds_data_dir', '', 'Folder of prepared TFDS datasets.'
)


def write_folder(folder, num_images=2000):
  """Writes two classes of small PNG files."""
  rng = np.random.default_rng(0)
  for name in ('a', 'b'):
    folder.joinpath(name).mkdir()
    for i in range(num_images // 2):
      pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f'{i}.png')


def table(title, config):
  """Prints a row of the table for each step."""
  data = setup.get_datasets(config)
  next(data.train(0))  # so that TensorFlow's start is not timed
  for step in map(int, _STEPS.value):
    start = time.perf_counter()
    next(data.train(step))
    seconds = time.perf_counter() - start
    epoch = step * config.batch / data.num_train
    print(f'| {title} | {step} | {epoch:.1f} | {seconds:.2f} |', flush=True)


def main(_):
  logging.set_verbosity(logging.ERROR)
  print(
    '| source | step | epochs done | seconds to the first batch |\n'
    '| --- | ---: | ---: | ---: |'
  )
  with tempfile.TemporaryDirectory() as folder:
    config = base_config.for_dataset(_DATASET.value or folder)
    config.batch = _BATCH.value
    config.pp.crop = 32
    if not _DATASET.value:
      write_folder(pathlib.Path(folder))
      table('folder', config)
      return
    config.tfds_data_dir = _TFDS_DATA_DIR.value
    table(f'{_DATASET.value}, in memory', config)
    config.in_memory_bytes = 0
    table(f'{_DATASET.value}, streamed', config)


if __name__ == '__main__':
  app.run(main)
