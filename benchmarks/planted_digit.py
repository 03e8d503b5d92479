"""Measures whether attention maps find a digit on a noisy canvas.

  python benchmarks/planted_digit.py workdirs/planted_digit

A small ViT learns to read a digit of scikit-learn, 16 x 16 pixels, at a random
place of a noisy canvas of 64 x 64 pixels. The canvases of training are new in
each step. 100 canvases with other digits measure the maps: a map finds its
digit if more than three times the area of the digit's box, in fractions, is the
fraction of the map inside the box. A run that is complete is not repeated. The
script prints a table and writes the figures of docs/gallery.md to the run
folder.
"""

import argparse
import os
import time

import numpy as np
from sklearn import datasets

import vit_jax
from vit_jax import base_config
from vit_jax.data import examples
from vit_jax.figures import attention_maps
from vit_jax.figures import catalog
from vit_jax.figures import model_figures
from vit_jax.figures import photo_figures

CANVAS, SIDE, PATCH = 64, 16, 8
NUM_MAPS = 100
TIMES = 3  # times the area, which a map must exceed
_DIGITS = datasets.load_digits()
_HELD_OUT = np.array(
  [examples.hash_fraction(str(i)) < 0.2 for i in range(len(_DIGITS.target))]
)


def canvases(seed, held_out, count):
  """Returns (images [n, 64, 64, 3], labels [n], corners [n, 2])."""
  rng = np.random.default_rng(seed)
  chosen = rng.choice(np.flatnonzero(_HELD_OUT == held_out), count)
  pixels = rng.normal(0.3, 0.15, (count, CANVAS, CANVAS))
  corners = rng.integers(0, CANVAS - SIDE + 1, (count, 2))
  for i, (row, column) in enumerate(corners):
    digit = np.kron(_DIGITS.images[chosen[i]] / 16, np.ones((2, 2)))
    pixels[i, row : row + SIDE, column : column + SIDE] += 0.7 * digit
  images = np.clip(pixels, 0, 1).astype(np.float32)[..., None].repeat(3, 3)
  return 2 * images - 1, _DIGITS.target[chosen], corners


def make_config():
  config = base_config.for_dataset('digits')
  config.pretrained = 'scratch'
  config.model.update(
    dict(
      name='ViT-Ti_16',
      patch_size=PATCH,
      hidden_size=64,
      mlp_dim=128,
      num_heads=4,
      num_layers=2,
      num_registers=4,
      classifier='token',
    )
  )
  config.pp.crop = CANVAS
  config.update(
    dict(
      batch=64,
      batch_eval=64,
      accum_steps=1,
      total_steps=3000,
      warmup_steps=100,
      optimizer='adamw',
      base_lr=2e-3,
      weight_decay=0.05,
      momentum_dtype='float32',
      eval_every=500,
      checkpoint_every=1000,
    )
  )
  return config


def train(workdir):
  """Trains the model, unless the run is complete; returns its metrics."""
  config = make_config()

  def batch_of(step):
    images, labels, _ = canvases([0, step], False, config.batch)
    return {'image': images, 'label': labels}

  def test():
    for i in range(8):
      images, labels, _ = canvases([1, i], True, 64)
      yield {'image': images, 'label': labels}

  data = vit_jax.data.from_batches(batch_of, test=test, num_classes=10)
  return vit_jax.train_and_evaluate(config, workdir, data=data).metrics


def inside(maps, corners):
  """Returns the fraction of each map [n, h, w] in the box of its digit."""
  fine = np.kron(maps, np.ones((1, PATCH, PATCH)))
  return np.array(
    [
      x[row : row + SIDE, column : column + SIDE].sum() / x.sum()
      for x, (row, column) in zip(fine, corners, strict=True)
    ]
  )


def measure(trained):
  """Prints how many maps find their digit; returns (images, corners)."""
  images, labels, corners = canvases(2, True, NUM_MAPS)
  classes = trained.logits(images).argmax(-1)
  last = photo_figures.reduce(trained, images, attention_maps.last_block)
  maps = {
    'attention rollout': photo_figures.reduce(
      trained, images, attention_maps.rollout
    ),
    'last block, class token, mean of the heads': last['token'].mean(1),
    'relevance for the predicted class': photo_figures.reduce(
      trained, images, attention_maps.relevance, classes
    ),
    'last block, mean of all patches': last['patches'].mean((1, 2)),
    'uniform': np.ones((NUM_MAPS, CANVAS // PATCH, CANVAS // PATCH)),
  }
  area = (SIDE / CANVAS) ** 2
  print(f'{(classes == labels).sum()} of {NUM_MAPS} digits are read correctly')
  print(f'\n| map | maps above {TIMES} times the area | median | lowest |')
  print('| --- | ---: | ---: | ---: |')
  for name, values in maps.items():
    times = inside(values, corners) / area
    found = (times > TIMES).sum()
    print(f'| {name} | {found} | {np.median(times):.2f} | {times.min():.2f} |')
  return images, corners


def draw(trained, images, corners, folder):
  """Writes the figures of the gallery; those of photos show the first image."""
  row, column = (corners[0] + SIDE // 2) // PATCH
  on_digit = catalog.Options(patch=(int(row), int(column)))
  for name in catalog.OF_PHOTOS[:-1]:
    options = on_digit if name == 'similarity' else catalog.DEFAULT
    (figure,) = photo_figures.make(trained, name, images[:1], options)
    catalog.save(figure, folder, name)
  for name in (*catalog.OF_PARAMETERS, *catalog.OF_IMAGES):
    catalog.save(model_figures.make(trained, name, images), folder, name)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('workdir')
  workdir = parser.parse_args().workdir
  start = time.perf_counter()
  metrics = train(workdir)
  print(f'{time.perf_counter() - start:.0f} s')
  print(f'accuracy on 512 held-out canvases: {metrics["accuracy_test"]:.2%}')
  trained = vit_jax.load(workdir)
  images, corners = measure(trained)
  folder = os.path.join(workdir, 'figures')
  os.makedirs(folder, exist_ok=True)
  draw(trained, images, corners, folder)


if __name__ == '__main__':
  main()
