"""Measures the seconds of a linear probe of a folder of photographs.

  python benchmarks/linear_probe.py --model=ti16 --images=2000

The photographs are JPEG files of 500 x 375 pixels in four classes, made from
random smooth images. The weights are random: they take as long as published
ones. The run is the command of a user, in a new process. It checks the images,
computes their features and fits 14 heads.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

CLASSES = ('beech', 'fir', 'oak', 'pine')


def write_photos(folder, count):
  """Writes JPEG files, whose mean color depends on the class."""
  rng = np.random.default_rng(0)
  for label, name in enumerate(CLASSES):
    os.makedirs(os.path.join(folder, name))
    for i in range(count // len(CLASSES)):
      pixels = rng.uniform(0, 255, (6, 8, 3))
      pixels[..., label % 3] += 25 * (label > 0)
      image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
      image = image.resize((500, 375), Image.Resampling.BICUBIC)
      image.save(os.path.join(folder, name, f'{i}.jpg'), quality=90)


def write_weights(path, name):
  """Writes random weights of a model for images of 224 pixels."""
  import jax
  import jax.numpy as jnp

  from vit_jax import checkpoint
  from vit_jax import models

  model = models.get_model(name, num_classes=1000)
  images = jnp.zeros((1, 224, 224, 3))
  params = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
  checkpoint.save(path, params['params'])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--model', default='ti16')
  parser.add_argument('--images', type=int, default=2000)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    photos, weights = f'{folder}/photos', f'{folder}/weights.npz'
    write_photos(photos, args.images)
    write_weights(weights, args.model)
    start = time.perf_counter()
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'vit_jax.main'),
        f'--config=configs/linear_probe.py:{args.model},{photos}',
        f'--config.pretrained={weights}',
        # Nothing is compiled by an earlier run.
        f'--config.compilation_cache_dir={folder}/compiled',
        f'--workdir={folder}/run',
      ],
      stderr=subprocess.PIPE,
      text=True,
      check=True,
    )
    seconds = time.perf_counter() - start
  of_features = re.search(r'features of each image in (\d+) s', done.stderr)[1]
  accuracy = re.search(r'done: accuracy (\S+)', done.stderr)[1]
  print(
    f'{os.cpu_count()} CPUs, {platform.machine()}, load average of a minute: '
    f'{os.getloadavg()[0]:.1f}'
  )
  print('| model | photographs | features, s | all, s | test accuracy, % |')
  print('| --- | ---: | ---: | ---: | ---: |')
  print(
    f'| {args.model} | {args.images} | {of_features} | {seconds:.0f} '
    f'| {accuracy} |'
  )


if __name__ == '__main__':
  main()
